"""What a process and its children hold in memory, on Linux."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def memory(process: int) -> float:
    """MiB that a process and all below it hold; what they share counts once, mapped files do not."""
    total = 0.0
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) / 1024
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            total += sum(memory(int(child)) for child in children.read_text().split())
    return total


@contextmanager
def peak(now: Callable[[], float], seconds: float = 0.1) -> Iterator[list[float]]:
    """A list whose one number is, in the end, the largest value of `now` seen."""
    found, done = [now()], threading.Event()

    def watch() -> None:
        while not done.wait(seconds):
            found[0] = max(found[0], now())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found[0] = max(found[0], now())
