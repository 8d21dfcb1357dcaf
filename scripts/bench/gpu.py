"""What kdistill makes of a GPU: distillation, plain training and soft targets, against the limit and the GPU's peak.

    python scripts/bench/gpu.py [--student tiny resnet8 resnet20 resnet18] [--compile false true] [--rounds 5]
    python scripts/bench/gpu.py student.batch_size=512                    # any setting of kdistill

Colour images of CIFAR's size, random, in the GPU's memory; crop and flip; bfloat16. The ways of training are those
of `step.py`, and soft targets are made as in `teacher.py`: see there. Their images per second are medians over the
rounds. Besides:

- epoch s: seconds of an epoch of distillation on so many samples;
- distil use, limit use: share of the GPU's peak that its arithmetic takes. A sample costs three passes of two
  operations for each multiply-add in training, one pass for a soft target. The peak is measured, as the rate of a
  large matrix product in bfloat16: less than the data sheet says, and what there is to be had.

Prints two Markdown tables and one JSON line with all of it. Without a GPU, `--device cpu --samples 512` tries the code.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import step
import teacher
import torch

from kdistill import load_config
from kdistill.resources import synchronize
from kdistill.stages.job import Job
from kdistill.stages.networks import size_of

STUDENTS = {**step.STUDENTS, "resnet18": ["student=resnet18"]}
Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("settings", nargs="*", help="further settings of kdistill")
    parser.add_argument("--student", nargs="*", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--teacher", default="resnet18", help="what makes the soft targets")
    parser.add_argument("--compile", nargs="*", choices=["false", "true"], default=["false", "true"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=45_000, help="of an epoch")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(
            2, "gpu.py: torch finds no CUDA device; --device cpu --samples 512 tries the code on a CPU\n"
        )
    device = torch.device(args.device)
    words = [
        f"device={args.device}",
        "device.precision=bf16",
        *images_like_cifar(args.samples),
        *args.settings,
    ]

    peak = peak_rate(device)
    students = [
        {"student": name, "compile": compiled}
        | training([*words, f"device.compile={compiled}", *STUDENTS[name]], args.rounds, peak)
        for name in args.student
        for compiled in args.compile
    ]
    teachers = [
        {"teacher": args.teacher, "compile": compiled}
        | soft_targets([*words, f"device.compile={compiled}", f"teacher={args.teacher}"], args.rounds, peak)
        for compiled in args.compile
    ]
    about = {"device": name_of(device), "torch": torch.__version__, "peak TFLOP/s": round(peak / 1e12, 2)}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for rows in (students, teachers):
        print(f"\n{step.table(rows)}")
    print(f"\n{json.dumps(about | {'training': students, 'soft targets': teachers})}")


def images_like_cifar(samples: int) -> list[str]:
    """A data set with so many training samples; a tenth is for validation."""
    size = ["dataset.image_size=32", f"dataset.samples={samples * 10 // 9 + 10}"]
    return [
        "dataset=synthetic",
        *size,
        f"dataset.train_samples={samples}",
        "dataset.augment.crop=4",
        "dataset.augment.flip=true",
    ]


def training(words: list[str], rounds: int, peak: float) -> Row:
    """What `step.measure` finds, as seconds of an epoch and as use of the device, too."""
    torch.compiler.reset()  # it keeps so many versions of a function, and each network is one
    found = step.measure([*words, "student.epochs=2"], rounds)
    job = Job.open(load_config(*words))
    operations = 3 * 2 * size_of(job.config.student, job.data, job.shown("student"))
    return {
        "epoch s": round(len(job.data.train) / found["distil"], 3),
        **found,
        "distil use": round(found["distil"] * operations / peak, 4),
        "limit use": round(found["limit"] * operations / peak, 4),
    }


def soft_targets(words: list[str], rounds: int, peak: float) -> Row:
    """What `teacher.measure` finds, and the use of the device."""
    torch.compiler.reset()
    found = teacher.measure(words, rounds)
    job = Job.open(load_config(*words))
    operations = 2 * size_of(job.config.teacher, job.data, job.shown("teacher"))
    return {**found, "generate use": round(found["generate"] * operations / peak, 4)}


def peak_rate(device: torch.device) -> float:
    """Operations per second of a large matrix product in bfloat16, the best of ten tries."""
    size, times = (8192, 10) if device.type == "cuda" else (512, 1)
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(10):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(times):
            matrix @ matrix
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 * times / min(seconds)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


if __name__ == "__main__":
    main()
