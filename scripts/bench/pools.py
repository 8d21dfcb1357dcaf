"""What it brings on a CPU that a global pool hands its gradient back with channels last.

    python scripts/bench/pools.py [--network cnn ...] [--rounds 30] [--threads 2]

Two of the same network learn the same random images in batches of 128, fp32, in turns: one as kdistill
places it, one with PyTorch's own pool. Their weights have to be the same in the end, to the last bit. Prints one JSON
line for each network, and a Markdown table: milliseconds of a step (medians), and how many times as fast kdistill's
is (median of the rounds' ratios, and the quarter and three-quarter ones).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

import torch
from precision import BATCH_SIZE, NETWORKS
from step import table
from torch import nn

from kdistill import load_config
from kdistill.channels_last import AdaptiveMean2d
from kdistill.models import Classifier
from kdistill.optim import build_optimizer
from kdistill.stages.job import Job

TINY = {"tiny": (28, 1, ["student=cnn", "student.params.channels=[16,32]"])}
CHOSEN = ["tiny", "cnn", "resnet8", "resnet20", "resnet18, width 16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", nargs="*", choices=[*TINY, *NETWORKS], default=CHOSEN)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each measurement")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, object]] = []
    for name in args.network:
        row = measure((TINY | NETWORKS)[name], args.rounds, args.seconds)
        rows.append({"network": name, "threads": args.threads, **row})
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


def measure(network: tuple[int, int, list[str]], rounds: int, seconds: float) -> dict[str, float]:
    size, channels, words = network
    words = [*words, "dataset=synthetic", f"dataset.samples={2 * BATCH_SIZE}", f"dataset.image_size={size}"]
    job = Job.open(load_config(*words, f"dataset.channels={channels}", "device=cpu", "device.precision=fp32"))
    courses = {way: Course(job, way) for way in ("kdistill", "plain")}
    for course in courses.values():
        course.train(3)  # warms up
    steps = max(3, round(seconds / max(course.train(3) for course in courses.values())))
    found: dict[str, list[float]] = {way: [] for way in courses}
    for _ in range(rounds):
        for way in random.sample(list(courses), len(courses)):
            found[way].append(courses[way].train(steps))
    ours, theirs = (course.network.state_dict() for course in courses.values())
    if not all(torch.equal(ours[name], theirs[name]) for name in ours):
        raise SystemExit("the two networks have learnt different weights")
    ratios = sorted(plain / own for own, plain in zip(found["kdistill"], found["plain"], strict=True))
    return {
        **{f"{way}, ms": round(1000 * statistics.median(times), 2) for way, times in found.items()},
        "times as fast": round(statistics.median(ratios), 3),
        "25 %": round(ratios[len(ratios) // 4], 3),
        "75 %": round(ratios[3 * len(ratios) // 4], 3),
    }


class Course:
    """A network that learns one batch again and again."""

    def __init__(self, job: Job, way: str) -> None:
        with job.engine.seeded(0):
            self.network: Classifier = job.build("student").train()
        if way == "plain":
            for name, module in list(self.network.named_modules()):
                if isinstance(module, AdaptiveMean2d):
                    self.network.set_submodule(name, nn.AdaptiveAvgPool2d(1))
        self.images = job.first_images(BATCH_SIZE)
        self.labels = torch.arange(len(self.images)) % len(job.data.classes)
        self.optimizer = build_optimizer(self.network, job.config.student.optim)

    def train(self, steps: int) -> float:
        """Seconds of one of so many steps."""
        started = time.perf_counter()
        for _ in range(steps):
            loss = nn.functional.cross_entropy(self.network(self.images), self.labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return (time.perf_counter() - started) / steps


if __name__ == "__main__":
    main()
