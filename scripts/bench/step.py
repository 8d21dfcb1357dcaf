"""What a distillation step costs: stored soft targets, against plain training and against the bare limit.

    python scripts/bench/step.py [--student tiny resnet8 resnet20] [--rounds 25] [--threads 2]

For each student, three ways to take the same number of steps on Fashion-MNIST (crop and flip, batch 128, SGD),
interleaved in one process, each round in another order, and the median and the quartiles of the rounds' ratios:

- distil: kdistill's loop, KD at T=4 from soft targets stored for every view;
- plain: kdistill's loop with labels alone;
- limit: forward, backward and optimizer step on normalised batches that are already tensors.

Prints one JSON line for each student and a Markdown table. Nothing is written but the soft targets, random
numbers in a temporary folder: their values do not change the time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from kdistill import load_config
from kdistill.engine import Engine
from kdistill.loop import fit
from kdistill.losses import build_objective
from kdistill.optim import build_optimizer
from kdistill.resources import synchronize
from kdistill.stages.job import Job
from kdistill.stored import Reader, layout_of
from kdistill.teachers import StoredTeacher
from kdistill.training_data import TrainingData

STUDENTS = {
    # two strided convolutions and a linear head
    "tiny": ["student=cnn", "student.params.channels=[16,32]"],
    "resnet8": ["student=resnet8"],
    "resnet20": ["student=resnet20"],
}
#: training samples of one epoch: short ones, so that what disturbs the machine meets all three ways of a round alike
SAMPLES = {"tiny": 5_120, "resnet8": 2_560, "resnet20": 1_280}
WAYS = ("distil", "plain", "limit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", nargs="*", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--samples", type=int, help="training samples of an epoch; default: by student")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows: list[dict[str, object]] = []
    for name in args.student:
        words = [
            "dataset=fashion_mnist",
            f"dataset.train_samples={args.samples or SAMPLES[name]}",
            "student.epochs=2",
        ]
        words += [f"device.precision={args.precision}", *STUDENTS[name]]
        about = {"student": name, "precision": args.precision, "threads": torch.get_num_threads()}
        rows.append(about | measure(words, args.rounds))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


def measure(words: list[str], rounds: int) -> dict[str, float]:
    """Images per second of each way, medians over the rounds, and quartiles of the rounds' ratios.

    `words` are the settings of kdistill: data set, device, student. The last epoch of each training counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        ways = ways_of([*words, "student.optim.warmup_epochs=0"], Path(folder))
        for way in WAYS:
            ways[way]()  # warms up
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        draw = random.Random(0)
        for _ in range(rounds):
            # else one way would always find the caches as the same other one left them
            for way in draw.sample(WAYS, len(WAYS)):
                found[way].append(ways[way]())
    row: dict[str, float] = {way: round(statistics.median(rates)) for way, rates in found.items()}
    for base in ("plain", "limit"):
        ratios = [a / b for a, b in zip(found["distil"], found[base], strict=True)]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).round(3).tolist()
        row |= {f"distil/{base}": middle, f"{base} 25 %": low, f"{base} 75 %": high}
    return row


def ways_of(words: list[str], folder: Path) -> dict[str, Callable[[], float]]:
    """Each way as a function that trains and returns the images per second of its last epoch."""
    job = Job.open(load_config(*words))
    config, engine = job.config, job.engine
    split = job.data.train.to(engine.device)
    layout = layout_of({"shape": (1, len(split), len(job.data.classes)), "dtype": "float16"})
    path = folder / layout.file
    np.save(path, np.random.default_rng(0).normal(0, 4, layout.shape).astype(np.float16))

    def loop(loss: str) -> float:
        network = job.build("student")
        objective = build_objective(load_config(*words, f"loss={loss}").loss)
        signal = StoredTeacher(Reader(path, layout, engine.device)) if objective.needs_teacher else None
        data = TrainingData(split, job.student_views, order_seed=0)
        validation = split.select(torch.arange(1))  # it is no part of a step
        fitted = fit(network, data, validation, objective, config.student, engine, signal=signal)
        return float(fitted.history[-1]["images_per_second"])

    def limit() -> float:
        return bare(job, engine)

    return {"distil": lambda: loop("kd"), "plain": lambda: loop("ce"), "limit": limit}


def bare(job: Job, engine: Engine) -> float:
    """The network's own work: no data, no augmentation, no records."""
    student = job.config.student
    network = job.build("student").train()
    if engine.compile:
        network.net.compile()
    split = job.data.train.to(engine.device)
    # some batches in turn: a network that has learnt one by heart takes other branches
    read = islice(split.batches(torch.arange(len(split)), student.batch_size), 16)
    batches = [((batch.images / 255 - network.mean) / network.std, batch.labels) for batch in read]
    optimizer = build_optimizer(network, student.optim)

    def take(steps: int) -> None:
        for pixels, labels in islice(cycle(batches), steps):
            with engine.autocast():
                logits = network.net(pixels)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronize(engine.device)

    take(3)  # compiles, chooses kernels
    steps = len(split) // student.batch_size
    started = time.perf_counter()
    take(steps)
    return steps * student.batch_size / (time.perf_counter() - started)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    heads = list(rows[0])
    lines = [heads, ["--"] * len(heads), *([str(row[head]) for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
