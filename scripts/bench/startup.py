"""How long a user waits before anything happens: `python scripts/bench/startup.py [runs]`.

Times the installed command as a whole process, the commands in turn. Prints one JSON line and a table:
minimum, median and maximum in seconds, and the target.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

KDISTILL = Path(sys.executable).with_name("kdistill")
#: command -> target in seconds on 2 cores
TARGETS = {"--help": 0.3, "distill --cfg job": 1.5, "list": 1.0, "distil": 1.0}


def seconds(command: str) -> float:
    start = time.perf_counter()
    subprocess.run([KDISTILL, *command.split()], capture_output=True, check=False)
    return time.perf_counter() - start


def main(runs: int) -> None:
    times: dict[str, list[float]] = {command: [] for command in TARGETS}
    for _ in range(runs):
        for command, values in times.items():
            values.append(seconds(command))
    medians = {command: round(statistics.median(values), 3) for command, values in times.items()}
    print(json.dumps({"bench": "startup", "runs": runs, "median_seconds": medians}))
    print(f"{'command':<28}{'min':>7}{'median':>8}{'max':>7}{'target':>8}")
    for command, values in times.items():
        line = f"{min(values):7.2f}{medians[command]:8.2f}{max(values):7.2f}{TARGETS[command]:8.2f}"
        print(f"kdistill {command:<19}{line}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
