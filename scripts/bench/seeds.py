"""What chance alone does: many students that differ in their seed, and which test images each of them gets right.

    python scripts/bench/seeds.py --runs DIR [--seeds 30] [KEY=VALUE ...]

An MLP learns Fashion-MNIST from the labels alone. Writes `tests/cases/fashion_mnist_correct.npz`,
from which `tests/test_statistics.py` draws comparisons whose truth is known, and prints the students' accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from kdistill import distill, evaluate, load_config
from kdistill.predictions import FILE, read_predictions

RECIPE = [
    "dataset=fashion_mnist",
    "student=mlp",
    "student.params.hidden=[64]",
    "student.epochs=10",
    "student.batch_size=256",
    "finetune=none",
    "loss=ce",
    "eval.cost=false",
    "device.threads=1",
]
PLACE = Path(__file__).resolve().parents[2] / "tests" / "cases" / "fashion_mnist_correct.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", default="runs/seeds", help="folder for the artifacts")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("overrides", nargs="*", help="settings for all students")
    args = parser.parse_args()
    words = [*RECIPE, f"runs={args.runs}", *args.overrides]
    rows = [right(*words, f"student.seed={seed}") for seed in range(args.seeds)]
    correct = np.stack(rows)
    np.savez_compressed(PLACE, correct=np.packbits(correct, axis=1))
    accuracy = 100 * correct.mean(axis=1)
    print(f"{len(rows)} seeds: top-1 {accuracy.mean():.2f} +- {accuracy.std(ddof=1):.2f} %")


def right(*words: str) -> np.ndarray:
    """Whether each test image's class is found, bool `[N]`."""
    config = load_config(*words)
    distill(config)
    folder = evaluate(config)["student"]["predictions"]
    answers = read_predictions(Path(folder) / FILE)
    return (answers.logits.argmax(dim=1) == answers.labels).numpy()


if __name__ == "__main__":
    main()
