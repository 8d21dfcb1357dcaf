"""Every shipped method on Fashion-MNIST, over three seeds, beside the control of the same budget.

    python scripts/bench/methods.py --runs DIR [--docs] [KEY=VALUE ...]

One teacher and one set of soft targets serve all methods on logits; methods on features ask the live teacher.
Each student is trained once: give the same command again after a break and it goes on. Prints one JSON line
for each method and a Markdown table; further words are overrides for all runs.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

from kdistill.config.folders import groups

#: 12,000 images, so that the whole table takes an hour on one core
RECIPE = [
    "dataset=fashion_mnist",
    "dataset.train_samples=12000",
    "teacher=resnet20",
    "teacher.epochs=20",
    "student=cnn",
    "student.params.channels=[16,32,64]",
    "student.epochs=15",
    "finetune=none",
    "device.precision=bf16",
    "device.threads=1",
]
SEEDS = [0, 1, 2]
DOCS = Path(__file__).resolve().parents[2] / "docs"
MARK, END = "<!-- table: methods -->", "<!-- end -->"
#: `features` is filled by others
LEFT_OUT = ("features",)
#: published weights are for CIFAR-100's ResNets and 240 epochs: where they lose here, a tenth of them too
LIGHTER = [
    "at loss.features.at.weight=100",
    "crd loss.features.crd.weight=0.08",
    "nst loss.features.nst.weight=5",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", default="runs/methods", help="folder for the artifacts")
    parser.add_argument(
        "--docs", action="store_true", help="put the tables into the pages of the documentation"
    )
    parser.add_argument("--only", nargs="*", help="these losses alone")
    parser.add_argument("overrides", nargs="*", help="settings for all runs")
    args = parser.parse_args()
    losses = args.only or [name for name in groups()["loss"] if name not in LEFT_OUT]
    losses.sort(key=lambda name: (name in groups()["feature"], name))
    losses += [] if args.only else LIGHTER
    rows = {loss: measure(loss, args.runs, args.overrides) for loss in losses}
    recipe = [*RECIPE, *args.overrides]
    print(table(rows, recipe))
    if args.docs:
        on_features = {
            k: row for k, row in rows.items() if k.split()[0] in (*groups()["feature"], "kd", "ce")
        }
        on_logits = {k: row for k, row in rows.items() if k not in on_features or k in ("kd", "ce")}
        put("losses-on-logits.md", table(on_logits, recipe))
        put("feature-losses.md", table(on_features, recipe))


def put(page: str, text: str) -> None:
    """Replace the table of a page of the documentation."""
    path = DOCS / page
    before, rest = path.read_text().split(MARK)
    path.write_text(f"{before}{MARK}\n{text}{END}{rest.partition(END)[2]}")


def measure(loss: str, runs: str, overrides: list[str]) -> dict[str, list[float]]:
    """Test scores of three students, by name: one sweep of the command line. `loss` may bring overrides."""
    seeds = f"student.seed={','.join(map(str, SEEDS))}"
    words = [*f"loss={loss}".split(), seeds, f"runs={runs}", "eval.cost=false", *RECIPE, *overrides]
    folder = Path(runs) / "sweeps" / re.sub(r"[ =]", "-", loss)
    command = [sys.executable, "-m", "kdistill", "run", "-m", *words, f"hydra.sweep.dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    results = [json.loads((folder / str(job) / "result.json").read_text()) for job in range(len(SEEDS))]
    found = {
        key: [result["row"][key] for result in results] for key in results[0]["row"] if key != "artifact"
    }
    print(json.dumps({"loss": loss, **found}), flush=True)
    return found


def table(rows: dict[str, dict[str, list[float]]], recipe: list[str]) -> str:
    """Markdown: mean and spread over the seeds, and the gain over the control of the same seed."""
    control = rows.get("ce", {}).get("student top1")
    lines = ["| loss | top-1 % | against ce | NLL | agrees with teacher % | seconds |", "|--|--|--|--|--|--|"]
    for loss, found in sorted(rows.items(), key=lambda item: -statistics.mean(item[1]["student top1"])):
        cells = [f"`{loss}`", _spread(found["student top1"], 100)]
        if control is None or loss == "ce":
            cells.append("-")
        else:
            gains = [a - b for a, b in zip(found["student top1"], control, strict=True)]
            cells.append(_spread(gains, 100, sign="+"))
        cells += [_spread(found["nll"], 1), _spread(found["agreement"], 100)]
        cells.append(f"{statistics.median(found['seconds']):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    teacher = next(iter(rows.values()))["teacher top1"][0]
    about = f"Teacher: {100 * teacher:.2f} %. Settings: `{' '.join(recipe)}`, seeds 0, 1, 2 of the student."
    return "\n".join([about, "", *lines, ""])


def _spread(values: list[float], factor: float, sign: str = "") -> str:
    mean, spread = statistics.mean(values) * factor, statistics.stdev(values) * factor
    return f"{mean:{sign}.2f} ± {spread:.2f}"


if __name__ == "__main__":
    main()
