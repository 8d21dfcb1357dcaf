"""What soft-target generation costs, against bare inference of the same teacher with the best settings.

    python scripts/bench/teacher.py [--precision bf16 fp32] [--views 2] [--rounds 5] [--samples 12000]

The teacher is a ResNet-18 of width 16 with random weights, on Fashion-MNIST with crop and flip. `generate` is the
stage as `kdistill soft-targets` runs it, with its file; `bare` is a loop over normalised batches that are tensors
already, in inference mode, channels_last, and nothing kept. A view that repeats another one of its sample is not asked
about; `generate` counts all views, and `repeats` is the share of those: of two views one in a hundred.
Prints one JSON line for each row and a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time

import torch
from step import table

from kdistill import load_config, make_soft_targets, train_teacher
from kdistill.resources import synchronize
from kdistill.stages.job import Job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--precision", nargs="*", default=["bf16", "fp32"])
    parser.add_argument("--views", type=int, nargs="*", default=[2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows: list[dict[str, object]] = []
    for precision, views in itertools.product(args.precision, args.views):
        words = ["dataset=fashion_mnist", f"dataset.train_samples={args.samples}", "teacher=resnet18"]
        words += ["teacher.params.width=16", f"device.precision={precision}"]
        about = {"precision": precision, "threads": torch.get_num_threads(), "views": views}
        rows.append(about | measure(words, args.rounds, views))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


def measure(words: list[str], rounds: int, views: int = 2) -> dict[str, float]:
    """Images per second both ways, interleaved: medians, and the median of the rounds' ratios.

    `words` are the settings of kdistill: data set, device, teacher.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [*words, "teacher.epochs=0", f"soft_targets.views={views}", f"runs={folder}"]
        train_teacher(load_config(*words))
        job = Job.open(load_config(*words))
        pairs = [(generate(words, number), bare(job)) for number in range(rounds + 1)][
            1:
        ]  # the first warms up
    made, limit = zip(*pairs, strict=True)
    return {
        "repeats": round(1 - job.teacher_views.different(views) / views, 3),
        "generate": round(statistics.median(made)),
        "bare": round(statistics.median(limit)),
        "generate/bare": round(statistics.median(a / b for a, b in pairs), 3),
    }


def generate(words: list[str], seed: int) -> float:
    made = make_soft_targets(
        load_config(*words, f"soft_targets.seed={seed}")
    )  # what is there is not made again
    views, samples, _ = made.manifest["shape"]
    return float(views * samples / made.manifest["seconds"])


@torch.inference_mode()
def bare(job: Job) -> float:
    teacher = job.load(job.require_teacher()).eval()
    size = job.config.soft_targets.batch_size
    if job.engine.compile:
        teacher.net.compile()
    split = job.data.train.to(job.engine.device)
    size = min(size, len(split))
    count = len(split) // size * size
    read = split.batches(torch.arange(count), size)
    batches = [((batch.images / 255 - teacher.mean) / teacher.std) for batch in read]
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]

    def ask(batches: list[torch.Tensor]) -> None:
        for batch in batches:
            with job.engine.autocast():
                teacher.net(batch)
        synchronize(job.engine.device)

    ask(batches[:1])  # compiles, chooses kernels
    started = time.perf_counter()
    ask(2 * batches)
    return 2 * count / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
