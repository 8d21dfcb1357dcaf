"""What bfloat16 brings on a CPU: training steps and answers of networks of all sizes, against fp32.

    python scripts/bench/precision.py [--network resnet8 ...] [--rounds 7] [--threads 1]

Both as kdistill runs them, weights and images channels_last, batches of 128 random images; in turns in one process,
so that a busy machine slows both. `training` and `inference` are medians over the rounds of bf16's speed divided by
fp32's. `device.precision=auto` gives a network bf16 from so many multiply-adds on as `kdistill/engine.py` says,
where training gains 1.6 and more, on CPUs that gain from it at all. Prints one JSON line for each network and a
Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from step import table

from kdistill import load_config
from kdistill.engine import cpu_gains_from_bf16
from kdistill.optim import build_optimizer
from kdistill.stages.job import Job
from kdistill.stages.networks import size_of

BATCH_SIZE = 128
PRECISIONS = ("fp32", "bf16")
#: row -> image size, channels, the student's settings
NETWORKS = {
    "cnn": (28, 1, ["student=cnn"]),
    "mlp": (28, 1, ["student=mlp"]),
    "cnn, channels [16, 32, 64]": (28, 1, ["student=cnn", "student.params.channels=[16,32,64]"]),
    "resnet8 on 8 x 8": (8, 1, ["student=resnet8"]),
    "resnet8, width 8": (28, 1, ["student=resnet8", "student.params.width=8"]),
    "resnet20 on 8 x 8": (8, 1, ["student=resnet20"]),
    "resnet8": (28, 1, ["student=resnet8"]),
    "resnet18, width 16": (28, 1, ["student=resnet18", "student.params.width=16"]),
    "resnet20": (28, 1, ["student=resnet20"]),
    "wrn_16_2": (32, 3, ["student=wrn_16_2"]),
    "resnet8x4": (32, 3, ["student=resnet8x4"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn in fp32")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not cpu_gains_from_bf16():
        print("kdistill does not choose bfloat16 on this CPU by itself")
    rows: list[dict[str, object]] = []
    for name in args.network:
        rows.append({"network": name, **measure(name, args.rounds, args.seconds)})
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


def measure(name: str, rounds: int, seconds: float) -> dict[str, object]:
    size, channels, words = NETWORKS[name]
    words = [*words, "dataset=synthetic", f"dataset.samples={2 * BATCH_SIZE}", f"dataset.image_size={size}"]
    words += [f"dataset.channels={channels}", "device=cpu"]
    jobs = {p: Job.open(load_config(*words, f"device.precision={p}")) for p in PRECISIONS}
    job = jobs["fp32"]
    row: dict[str, object] = {
        "images": f"{size} x {size}",
        "multiply-adds": f"{size_of(job.config.student, job.data, job.shown('student')) / 1e6:.3g} million",
        "threads": torch.get_num_threads(),
    }
    for what, way in (("training", training), ("inference", inference)):
        row[what] = round(
            compared({precision: way(job) for precision, job in jobs.items()}, rounds, seconds), 2
        )
    return row


def compared(ways: dict[str, Callable[[], object]], rounds: int, seconds: float) -> float:
    """How many times as fast bf16 is: the median over rounds in which each way has as many calls."""
    for way in ways.values():
        way()  # warms up
    calls = max(1, round(seconds / timed(ways["fp32"], 1)))
    return statistics.median(timed(ways["fp32"], calls) / timed(ways["bf16"], calls) for _ in range(rounds))


def timed(way: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        way()
    return time.perf_counter() - started


def training(job: Job) -> Callable[[], object]:
    """A step of the optimizer on a batch."""
    network, images = job.build("student").train(), job.first_images(BATCH_SIZE)
    optimizer = build_optimizer(network, job.config.student.optim)
    labels = torch.arange(len(images)) % len(job.data.classes)

    def step() -> None:
        with job.engine.autocast():
            logits = network(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference(job: Job) -> Callable[[], object]:
    """Answers to a batch."""
    network, images = job.build("student").eval(), job.first_images(BATCH_SIZE)

    @torch.inference_mode()
    def answer() -> object:
        with job.engine.autocast():
            return network(images)

    return answer


if __name__ == "__main__":
    main()
