"""The same distillation in kdistill, in torchdistill and in a plain loop: time, memory, accuracy.

    python -m venv DIR/env && DIR/env/bin/pip install torchdistill==1.1.5 safetensors
    python scripts/bench/peer.py --work DIR [--student tiny resnet8] [--epochs 10] [--samples 12000] [--seeds 0 1 2]
        [--turn-seconds 3] [--row "kdistill, compiled" torchdistill ...]

Teacher: ResNet-18 with a CIFAR stem, of width 16, trained once by kdistill; its weights are handed to the others.
Students: a CNN of two strided convolutions, or ResNet-8. Fashion-MNIST, crop and flip, T=4, alpha=0.1 on the
labels, batch 128, SGD with Nesterov momentum. Each job is a process of its own, from its imports to its trained
student. The jobs of a seed and a student take turns of some seconds, in which all others are stopped: all meet the
same machine. A job's seconds are those of its turns; images/s are an epoch's, in the median. Every finished job is a
line of DIR/rows.jsonl: the same command goes on after a break. Prints a Markdown table of medians, and medians of the
seeds' ratios, those of the jobs also as if torchdistill took no time to validate. `--device cuda` does it all on a GPU.

torchdistill: as the library leaves it (2 workers, the teacher in training mode), with the teacher in evaluation
mode, and that without workers. It validates after each epoch, as its example program and kdistill do; the plain loop
does not, as PyTorch's tutorial does not. kdistill: a view for each epoch, 2 views, and with its networks compiled; its
job makes the soft targets, too. Its sweep over 8 temperatures is one command, whose soft targets are made once. Two at
a time: kdistill's sweep by joblib, and two of torchdistill's jobs at once, each with one thread; the seconds are those
of both, halved.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from turns import Command, in_turns

import kdistill
from kdistill import load_config, train_teacher
from kdistill.models import cnn, resnet
from kdistill.stages.job import Job

#: temperatures of the sweep, of which the table gives the time for one
SWEEP = (1, 2, 3, 4, 5, 6, 8, 10)
STUDENTS = {
    "tiny": (
        cnn,
        {"name": "cnn", "params": {"channels": [16, 32]}},
        ["student=cnn", "student.params.channels=[16,32]"],
    ),
    "resnet8": (resnet, {"name": "resnet8", "params": {"width": None}}, ["student=resnet8"]),
}
SWEEPING = ["soft_targets.views=null", f"loss.T={','.join(map(str, SWEEP))}", "-m"]
ROWS = {
    "kdistill": ["soft_targets.views=null"],
    "kdistill, 2 views": ["soft_targets.views=2"],
    "kdistill, compiled": ["soft_targets.views=null", "device.compile=true"],
    "kdistill, sweep of 8": SWEEPING,
    "kdistill, sweep of 8, two at a time": [*SWEEPING, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "torchdistill": ["torchdistill", "--workers=2"],
    "torchdistill, eval": ["torchdistill", "--workers=2", "--eval-teacher"],
    "torchdistill, eval, 0 workers": ["torchdistill", "--workers=0", "--eval-teacher"],
    "torchdistill, eval, 0 workers, two at a time": ["torchdistill", "--workers=0", "--eval-teacher"],
    "plain loop": ["plain", "--workers=2"],
}
#: how long each of them takes, roughly
WEIGHTS = {"tiny": (4, 2, 9, 10, 9, 14, 12, 12, 17, 12), "resnet8": (3, 2, 8, 14, 13, 6, 5, 5, 6, 5)}
KDISTILL = [sys.executable, "-m", "kdistill"]
AT_ONCE = ", two at a time"
Row = dict[str, float | int | str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--student", nargs="*", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--turn-seconds", type=float, default=3)
    parser.add_argument("--row", nargs="*", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()
    words = ["dataset=fashion_mnist", f"dataset.train_samples={args.samples}", "teacher=resnet18"]
    words += ["teacher.params.width=16", "teacher.epochs=6", "finetune=none", f"student.epochs={args.epochs}"]
    words += ["loss.alpha=0.1", f"device={args.device}"]
    prepared = Job.open(load_config(*words, f"runs={args.work / 'runs'}"))
    train_teacher(prepared.config)
    export(prepared, args.work / "data.npz")

    file = args.work / "rows.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    setting: Row = {"epochs": args.epochs, "samples": args.samples, "device": args.device}
    setting["turn_seconds"] = args.turn_seconds
    for seed, student in itertools.product(args.seeds, args.student):
        cases: list[Row] = [{"row": name, "student": student, "seed": seed, **setting} for name in args.row]
        cases = [case for case in cases if not any(case.items() <= row.items() for row in done)]
        commands = [command_of(case, prepared, words, args.work) for case in cases]
        for number in in_turns(commands, args.turn_seconds):
            case, command = cases[number], commands[number]
            found = of_kdistill(command, case, words, args.work) if is_ours(case) else of_peer(command)
            done.append({**case, **found})
            print(json.dumps(done[-1]), flush=True)
            with file.open("a") as lines:
                lines.write(json.dumps(done[-1]) + "\n")
    asked = [row for row in done if setting.items() <= row.items() and row["row"] in args.row]
    print(table(asked))
    print("\n".join(ratios(asked)))


def export(job: Job, path: Path) -> None:
    """The images as kdistill has them, for the others."""
    data = job.data
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    arrays = {f"{name}_images": split.images.numpy() for name, split in splits.items()}  # type: ignore[attr-defined]
    arrays |= {f"{name}_labels": split.labels.numpy() for name, split in splits.items()}
    arrays |= {"mean": np.float32(data.mean), "std": np.float32(data.std)}
    if not path.exists():
        np.savez(path, **arrays)


def command_of(case: Row, prepared: Job, words: list[str], work: Path) -> Command:
    """For kdistill in a folder that has the teacher and nothing else."""
    name = str(case["row"])
    settings = ROWS[name]
    weight = WEIGHTS[str(case["student"])][list(ROWS).index(name)]
    folder = Path(kdistill.__file__).parents[1]
    if is_ours(case):
        runs = runs_of(case, work)
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(work / "runs" / "artifacts" / "teacher", runs / "artifacts" / "teacher")
        line = [*KDISTILL, "distill", *words_of(case, words, work), *settings]
        # else a job would find the kernels that another one has compiled
        return Command(
            line, weight=weight, variables={"TORCHINDUCTOR_CACHE_DIR": str(runs / "kernels")}, folder=folder
        )
    module, about, _ = STUDENTS[str(case["student"])]
    data = prepared.data
    shape = {"classes": len(data.classes), "channels": data.channels, "image_size": data.image_size}
    line = [str(work / "env" / "bin" / "python"), str(Path(__file__).with_name("peer_job.py")), *settings]
    line += [f"--data={work / 'data.npz'}", f"--teacher={prepared.require_teacher().folder}"]
    line += [f"--student={json.dumps(about | shape)}", f"--source={module.__file__}"]
    line += [f"--epochs={case['epochs']}", f"--seed={case['seed']}", f"--device={case['device']}"]
    if name.endswith(AT_ONCE):
        return Command(line, line, weight=weight, variables={"OMP_NUM_THREADS": "1"}, folder=folder)
    return Command(line, weight=weight, folder=folder)


def of_kdistill(command: Command, case: Row, words: list[str], work: Path) -> Row:
    """The test accuracy by another command, which is not timed."""
    settings, runs = ROWS[str(case["row"])], runs_of(case, work)
    line = [*KDISTILL, "eval", *words_of(case, words, work), settings[0], "loss.T=4", "eval.cost=false"]
    subprocess.run([*line, f"hydra.run.dir={runs}/eval"], check=True, capture_output=True)
    row = json.loads((runs / "eval" / "result.json").read_text())["row"]
    histories = list((runs / "artifacts" / "student").glob("*/metrics.jsonl"))
    epochs = [json.loads(line) for history in histories for line in history.read_text().splitlines()]
    shutil.rmtree(runs)
    return {
        "job_seconds": command.seconds / len(histories),
        "images_per_second": statistics.median(epoch["images_per_second"] for epoch in epochs),
        "cpu_seconds_per_1000": command.cpu_seconds / len(epochs) / int(case["samples"]) * 1000,
        "peak_mb": command.peak_mb,
        "top1": row["student top1"],
    }


def of_peer(command: Command) -> Row:
    """What the first says of itself, where there are two; measuring the accuracy is not timed."""
    said = [json.loads(text.splitlines()[-1]) for text in command.said]
    apart, validating = (min(one[key] for one in said) for key in ("apart", "validation_seconds"))
    found = {key: said[0][key] for key in ("images_per_second", "cpu_seconds_per_1000", "top1")}
    found |= {"job_seconds": (command.seconds - apart) / len(said), "peak_mb": command.peak_mb}
    return found | {"validation_seconds": validating / len(said)}


def is_ours(case: Row) -> bool:
    return str(case["row"]).startswith("kdistill")


def runs_of(case: Row, work: Path) -> Path:
    return work / "fresh" / str(list(ROWS).index(str(case["row"])))


def words_of(case: Row, words: list[str], work: Path) -> list[str]:
    own = STUDENTS[str(case["student"])][2]
    return [*words, *own, f"student.seed={case['seed']}", f"runs={runs_of(case, work)}"]


def table(rows: list[Row]) -> str:
    heads = ["student", "row", "job s", "images/s in training", "CPU s / 1,000 images", "peak MB", "top-1 %"]
    lines = [heads, ["--"] * len(heads)]
    for student, name in groups(rows):
        own = [row for row in rows if (row["student"], row["row"]) == (student, name)]
        columns = ("job_seconds", "images_per_second", "cpu_seconds_per_1000", "peak_mb")
        job, rate, cpu, peak = (statistics.median(float(row[key]) for row in own) for key in columns)
        top1 = [100 * float(row["top1"]) for row in own]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        cells = [student, name, f"{job:.1f}", f"{rate:,.0f}", f"{cpu:.2f}", f"{peak:,.0f}"]
        lines.append([*cells, f"{statistics.mean(top1):.2f}{spread}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratios(rows: list[Row]) -> Iterator[str]:
    """How many times faster kdistill's rows are than torchdistill's fastest of the same seed, which ran beside them.

    Those of one job at a time; for a row of two at a time also with torchdistill's of two at a time among them.
    """
    for student, name in groups(rows):
        own = [row for row in rows if (row["student"], row["row"]) == (student, name)]
        for also_two in (False, True) if name.endswith(AT_ONCE) else (False,):
            peers = [[row for row in rows if _ran_beside(row, one, also_two)] for one in own]
            if not name.startswith("kdistill") or not all(peers):
                continue
            pairs = list(zip(own, peers, strict=True))
            jobs = [min(float(r["job_seconds"]) for r in p) / float(o["job_seconds"]) for o, p in pairs]
            bare = [min(map(_unvalidated, p)) / float(o["job_seconds"]) for o, p in pairs]
            rate = "images_per_second"
            training = [float(o[rate]) / max(float(r[rate]) for r in p) for o, p in pairs]
            told = [
                f"{what} {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
                for what, found in (
                    ("job", jobs),
                    ("job without its validation", bare),
                    ("training", training),
                )
            ]
            against = f"fastest{', one or two at a time' if also_two else ''}"
            yield f"{student}, {name}, times torchdistill's {against}: {', '.join(told)}"


def _unvalidated(row: Row) -> float:
    return float(row["job_seconds"]) - float(row["validation_seconds"])


def _ran_beside(row: Row, own: Row, also_two: bool) -> bool:
    """Whether it is one of torchdistill's that the own row is to be compared with."""
    same = all(row[key] == own[key] for key in ("student", "seed"))
    two = str(row["row"]).endswith(AT_ONCE)
    return same and str(row["row"]).startswith("torchdistill") and (also_two or not two)


def groups(rows: list[Row]) -> list[tuple[str, str]]:
    """The students, and of each the rows, in the order of `ROWS`."""
    found = {(str(row["student"]), str(row["row"])) for row in rows}
    return sorted(found, key=lambda group: (group[0], list(ROWS).index(group[1])))


if __name__ == "__main__":
    main()
