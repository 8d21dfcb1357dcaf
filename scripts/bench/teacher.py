"""What soft-target generation costs, against bare inference of the same teacher with the best settings.

    python scripts/bench/teacher.py [--precision bf16 fp32] [--rounds 5] [--samples 12000]

The teacher is a ResNet-18 of width 16 with random weights, on Fashion-MNIST with crop and flip; two views of
each sample. `generate` is the stage as `kdistill soft-targets` runs it, with its file; `bare` is
a loop over normalised batches that are tensors already, in inference mode, channels_last, and nothing kept.
Prints one JSON line for each precision and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time

import torch

from kdistill import load_config, make_soft_targets, train_teacher
from kdistill.stages.job import Job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--precision", nargs="*", default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [measure(precision, args.rounds, args.samples) for precision in args.precision]
    heads = list(rows[0])
    for cells in (heads, ["--"] * len(heads), *(list(row.values()) for row in rows)):
        print(f"| {' | '.join(map(str, cells))} |")


def measure(precision: str, rounds: int, samples: int) -> dict[str, object]:
    """Images per second both ways, interleaved: medians, and the median of the rounds' ratios."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["dataset=fashion_mnist", f"dataset.train_samples={samples}", "teacher=resnet18"]
        words += ["teacher.params.width=16", "teacher.epochs=0", "soft_targets.views=2", f"runs={folder}"]
        words += [f"device.precision={precision}"]
        train_teacher(load_config(*words))
        job = Job.open(load_config(*words))
        pairs = [(generate(words), bare(job)) for _ in range(rounds + 1)][1:]  # the first warms up
    made, limit = zip(*pairs, strict=True)
    row: dict[str, object] = {
        "precision": precision,
        "threads": torch.get_num_threads(),
        "generate": round(statistics.median(made)),
        "bare": round(statistics.median(limit)),
        "generate/bare": round(statistics.median(a / b for a, b in pairs), 3),
    }
    print(json.dumps(row), flush=True)
    return row


def generate(words: list[str]) -> float:
    made = make_soft_targets(load_config(*words, "force=true"))
    views, samples, _ = made.manifest["shape"]
    return float(views * samples / made.manifest["seconds"])


@torch.inference_mode()
def bare(job: Job) -> float:
    teacher = job.load(job.require_teacher()).eval()
    size = job.config.soft_targets.batch_size
    count = len(job.data.train) // size * size
    read = job.data.train.batches(torch.arange(count), size)
    batches = [((batch.images / 255 - teacher.mean) / teacher.std) for batch in read]
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    started = time.perf_counter()
    for _ in range(2):
        for batch in batches:
            with job.engine.autocast():
                teacher.net(batch)
    return 2 * count / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
