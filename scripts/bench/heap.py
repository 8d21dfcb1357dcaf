"""What it brings on a CPU to keep freed memory for the next tensors, and to rewrite a network that only answers.

    python scripts/bench/heap.py [--network resnet8 ...] [--rounds 5] [--threads 2]

Each round is two processes for each network, in another order each time: one as kdistill is, one in which glibc gives
freed memory back to the system, as it does by default. Each asks a network and then trains it, in batches of 128 random
images, fp32, channels_last. `training` and `answers` say how many times as fast kept memory is, `folded` how many times
as fast a network with folded batch norms answers, and `fused` how many times as fast as that one whose convolutions
add and rectify what they write, all with kept memory: medians over rounds. `pages` are those that the system has to
clear by default for a step of training and for the answers to a batch; `peak` is how many times as much memory a
process takes that keeps it. Prints one JSON line for each network and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from precision import BATCH_SIZE, NETWORKS, timed, training
from step import table

from kdistill import load_config
from kdistill.models import Classifier
from kdistill.models.folding import fold_batch_norm
from kdistill.models.fusing import fuse_relu
from kdistill.resources import USERS_OWN, peak_memory, reset_peak_memory
from kdistill.stages.job import Job

#: what is set by the user is left alone; this setting itself changes nothing
DEFAULT = {"GLIBC_TUNABLES": "glibc.malloc.check=0"}
CHOSEN = ["cnn", "resnet8", "resnet18, width 16", "resnet20"]
Numbers = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", nargs="*", choices=list(NETWORKS), default=CHOSEN)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--here", action="store_true", help="measure in this process: what each round calls")
    args = parser.parse_args()
    if args.here:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args.network[0], args.seconds)))
        return
    rows: list[dict[str, object]] = []
    for name in args.network:
        words = ["--here", "--network", name, f"--seconds={args.seconds}", f"--threads={args.threads}"]
        kept: list[Numbers] = []
        default: list[Numbers] = []
        for _ in range(args.rounds):
            for found, environment in random.sample([(kept, {}), (default, DEFAULT)], 2):
                found.append(in_a_process(words, environment))
        pairs = list(zip(kept, default, strict=True))
        rows.append({"network": name, "threads": args.threads, **compared(pairs)})
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


def in_a_process(words: list[str], environment: dict[str, str]) -> Numbers:
    own = {name: value for name, value in os.environ.items() if name not in USERS_OWN}
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, env=own | environment, stdout=subprocess.PIPE, check=True)
    found: Numbers = json.loads(done.stdout)
    return found


def compared(pairs: list[tuple[Numbers, Numbers]]) -> dict[str, object]:
    """The row of a network, from what each round measured with kept memory and by default."""

    def ratio(what: str) -> float:
        return round(statistics.median(default[what] / kept[what] for kept, default in pairs), 2)

    def pages(what: str) -> int:
        return round(statistics.median(default[f"{what} pages"] for _, default in pairs))

    folded = statistics.median(kept["answers"] / kept["folded"] for kept, _ in pairs)
    fused = statistics.median(kept["folded"] / kept["fused"] for kept, _ in pairs)
    return {
        "training": ratio("training"),
        "answers": ratio("answers"),
        "folded": round(folded, 2),
        "fused": round(fused, 2),
        "pages, training": pages("training"),
        "pages, answers": pages("answers"),
        "peak": round(statistics.median(kept["peak"] / default["peak"] for kept, default in pairs), 2),
    }


def measure(name: str, seconds: float) -> Numbers:
    """Seconds of a step and of the answers to a batch, and the pages that each needs to be cleared."""
    size, channels, words = NETWORKS[name]
    words = [*words, "dataset=synthetic", f"dataset.samples={2 * BATCH_SIZE}", f"dataset.image_size={size}"]
    job = Job.open(load_config(*words, f"dataset.channels={channels}", "device=cpu", "device.precision=fp32"))
    images = job.first_images(BATCH_SIZE)
    network = job.build("student").eval()
    folded = fold_batch_norm(network, images)
    ways = {
        "answers": asking(network, images),
        "folded": asking(folded, images),
        "fused": asking(fuse_relu(folded, images), images),
        "training": training(job),
    }
    reset_peak_memory(job.engine.device)
    found: Numbers = {}
    for what, way in ways.items():
        timed(way, 3)  # warms up
        calls = max(3, round(seconds / timed(way, 2) * 2))
        before = pages()
        found[what] = timed(way, calls) / calls
        found[f"{what} pages"] = (pages() - before) / calls
    return found | {"peak": peak_memory(job.engine.device)}


def asking(network: Classifier, images: torch.Tensor) -> Callable[[], object]:
    def ask() -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = network(images)
        return logits

    return ask


def pages() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
