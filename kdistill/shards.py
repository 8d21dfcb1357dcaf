"""Work on samples that several processes do side by side: which samples are whose, and which are done.

What is left of the samples is cut into shards of consecutive ones, a shard for each process. Each process keeps in a
file of its own what is done; a run that was cut off goes on from all of these files, also with another number of
processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill import ranks
from kdistill.files import load_state, save_state

log = logging.getLogger("kdistill")


class Shard:
    """The shard of this rank.

    `done` is bool `[n]`: what any rank had done when the shards were cut, and what this one has done since. `mine`:
    positions of this rank's samples, int64, ascending.
    """

    def __init__(self, folder: Path, done: Tensor, seconds: float) -> None:
        self.done, self.seconds = done, seconds
        self._path = folder / f"checkpoint-{ranks.rank()}"
        self._clock = time.monotonic()
        left = (~done).nonzero().flatten()
        self.mine = left[ranks.part(len(left))]

    @classmethod
    def cut(cls, folder: Path, samples: int) -> Shard:
        """Cut what is left into shards. All ranks call this; the main one reads in `folder` what is done."""
        done, seconds = torch.zeros(samples, dtype=torch.bool), 0.0
        for state in _saved(folder, samples) if ranks.is_main() else ():
            done |= state["done"]
            seconds = max(seconds, state["seconds"])
        return cls(folder, ranks.broadcast(done), seconds)

    def save(self) -> None:
        """Save what is done, once it is on the disk."""
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        save_state(self._path, {"done": self.done, "seconds": self.seconds})


def files_of(folder: Path) -> list[Path]:
    """The files that say what is done, of any number of ranks."""
    return sorted(folder.glob("checkpoint-*[0-9]"))


def _saved(folder: Path, samples: int) -> Iterator[dict[str, Any]]:
    for path in files_of(folder):
        state = load_state(path)
        if state is None:
            log.warning("%s is damaged: what it says to be done is done again", path)
        elif state["done"].shape != (samples,):
            log.warning("%s is of another version of kdistill: what it says to be done is done again", path)
        else:
            yield state
