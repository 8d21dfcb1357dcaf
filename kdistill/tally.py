"""What an epoch's steps add up to: the terms of the loss, weighted, and where they stopped being numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from kdistill import ranks


@dataclass(frozen=True)
class Broken:
    """The first step, counted from 0, whose loss is not finite, and its weighted terms."""

    step: int
    terms: dict[str, float]


@dataclass
class Tally:
    """Sums of an epoch's weighted terms by name, over all ranks.

    A GPU's numbers wait there until somebody looks: it has to catch up before they are read.
    """

    sums: dict[str, float] = field(default_factory=dict)
    broken: Broken | None = None
    _weights: Mapping[str, float] = field(default_factory=dict)
    _unseen: list[tuple[int, list[Tensor]]] = field(default_factory=list)

    def add(
        self, step: int, weights: Mapping[str, float], parts: Sequence[tuple[float, list[Tensor]]]
    ) -> None:
        """Add a step; the weights are the same through an epoch.

        Args:
            step: its number in the epoch, counted from 0.
            weights: of each term.
            parts: of each part of the batch its share of it, and the terms before their weight: scalars, detached.
        """
        # of a small network's step, an operation saved for a share of 1 is a measurable part
        rows = [terms if share == 1 else [share * term for term in terms] for share, terms in parts]
        whole = [reduce(torch.add, column) for column in zip(*rows, strict=True)]
        self._weights = weights
        self._unseen.append((step, ranks.means(whole)))

    def look(self) -> Tally:
        """Count in what was added since the last look."""
        unseen, self._unseen = self._unseen, []
        for (step, _), values in zip(unseen, _numbers([row for _, row in unseen]), strict=True):
            named = zip(self._weights.items(), values, strict=True)
            terms = {name: weight * value for (name, weight), value in named}
            for name, value in terms.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            if self.broken is None and not all(map(math.isfinite, values)):
                self.broken = Broken(step, terms)
        return self


def _numbers(rows: Sequence[Sequence[Tensor]]) -> list[list[float]]:
    """Scalars as numbers, of which each row has equally many; a GPU is waited for once."""
    # one row, as on a CPU: each number by itself is quicker than one operation for all
    if len(rows) < 2:
        return [[value.item() for value in row] for row in rows]
    flat: list[float] = torch.stack([value for row in rows for value in row]).tolist()
    width = len(rows[0])
    return [flat[start : start + width] for start in range(0, len(flat), width)]
