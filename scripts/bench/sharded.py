"""Memory of each process that trains a network too large for one: sharded against whole, on a CPU.

    python scripts/bench/sharded.py [--width 4096] [--depth 6] [--processes 2]

The network is a perceptron; SGD with momentum, in fp32, without and with a moving average (`optim.ema`). Each row is
a training of two epochs with torchrun. Counted is what a process holds above what it held before the network was
built: `between` epochs, and at its `peak` in the second one, looked at every 10 ms. `step s` is the mean time of a
step there. Prints one JSON line for each row and a Markdown table. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

from memory import memory, peak
from step import table

#: steps of an epoch
STEPS, BATCH_SIZE = 8, 32
ROWS = {
    "whole": [],
    "sharded": ["device.shard=true"],
    "whole, ema": ["student.optim.ema=0.999"],
    "sharded, ema": ["device.shard=true", "student.optim.ema=0.999"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=4096, help="units of a layer")
    parser.add_argument("--depth", type=int, default=6, help="hidden layers")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    hidden = ",".join([str(args.width)] * args.depth)
    words = ["student=mlp", f"student.params.hidden=[{hidden}]", f"device.processes={args.processes}"]
    if args.row:
        train([*words, *ROWS[args.row]])
        return
    print(table([run(name, args) for name in ROWS]))


def run(name: str, args: argparse.Namespace) -> dict[str, object]:
    """Measure a row in processes of its own."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.processes}"]
    sizes = [f"--width={args.width}", f"--depth={args.depth}", f"--processes={args.processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as logs:  # torchrun would leave them
        command = [sys.executable, *start, f"--log-dir={logs}", __file__, *sizes, f"--row={name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = {"row": name, **json.loads(done.stdout)}
    print(json.dumps(found), flush=True)
    return found


def train(words: list[str]) -> None:
    """Train as one of the processes; the first of them prints what it found."""
    from kdistill import launch, load_config, ranks
    from kdistill.loop import fit
    from kdistill.losses import build_objective
    from kdistill.stages.job import Job
    from kdistill.training_data import TrainingData

    ranks.join()
    samples = ranks.size() * STEPS * BATCH_SIZE
    words = [
        *words,
        "dataset=synthetic",
        f"dataset.samples={samples}",
        "dataset.validation=0.01",
        "device=cpu",
    ]
    words += ["student.epochs=2", f"student.batch_size={ranks.size() * BATCH_SIZE}", "student.keep=last"]
    words += ["student.optim.lr=0.001"]  # a perceptron that deep diverges at a student's own
    job = Job.open(load_config(*words, "device.precision=fp32", "loss=ce"))
    data = TrainingData(job.data.train, job.student_views, order_seed=0)
    start = now()
    network = job.build("student")
    parameters = sum(p.numel() for p in network.parameters())
    between: list[float] = []
    with peak(now, seconds=0.01) as most:

        def epoch_is_over(row: dict[str, object]) -> None:
            between.append(now())
            if len(between) == 1:
                most[0] = between[0]  # the first one held the whole network for a moment

        objective = build_objective(job.config.loss)
        settings = job.config.student
        fitted = fit(
            network, data, job.data.validation, objective, settings, job.engine, on_epoch=epoch_is_over
        )
    if ranks.is_main():
        row = {
            "parameters": f"{parameters / 1e6:.1f} million",
            "between MiB": round(between[0] - start),
            "peak MiB": round(most[0] - start),
            "step s": round(settings.batch_size / fitted.history[-1]["images_per_second"], 3),
        }
        print(json.dumps(row))
    launch.end(0)


def now() -> float:
    return memory(os.getpid())


if __name__ == "__main__":
    main()
