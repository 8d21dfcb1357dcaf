"""What an epoch's steps add up to: the terms of the loss, weighted, and where they stopped being numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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

    def add(self, step: int, share: float, weights: Mapping[str, float], terms: Mapping[str, Tensor]) -> None:
        """Add a part of a step that is `share` of it: scalars, by name; the weights are the same through an epoch."""
        values = [term.detach() for term in terms.values()]
        if share != 1:  # of a small network's step, an operation saved is a measurable part
            values = [share * value for value in values]
        self._weights = weights
        self._unseen.append((step, ranks.means(values)))

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
    if (
        len(rows) < 2
    ):  # as on a CPU, where of few numbers each by itself is quicker than one operation for all
        return [[value.item() for value in row] for row in rows]
    flat: list[float] = torch.stack([value for row in rows for value in row]).tolist()
    width = len(rows[0])
    return [flat[start : start + width] for start in range(0, len(flat), width)]
