"""Splits one after another as one split, each read by its own means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from kdistill.data.batch import Batch
from kdistill.data.splits import Split, batches_of, slices


@dataclass(frozen=True, eq=False)
class JoinedSplit:
    """The samples of all `parts`, those of the first part first; a batch may hold some of each."""

    parts: tuple[Split, ...]
    id_prefixes: tuple[str, ...]  # one for each part

    @property
    def labels(self) -> Tensor:
        return self._labels

    @cached_property
    def _labels(self) -> Tensor:
        return torch.cat([part.labels for part in self.parts])

    @property
    def skipped(self) -> int:
        return sum(part.skipped for part in self.parts)

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @cached_property
    def _ids(self) -> list[str]:
        named = zip(self.id_prefixes, self.parts, strict=True)
        return [prefix + name for prefix, part in named for name in part.ids]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.parts[0].image_shape

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def to(self, device: torch.device) -> JoinedSplit:
        return JoinedSplit(tuple(part.to(device) for part in self.parts), self.id_prefixes)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        return batches_of(self, slices(order, batch_size))

    def read(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        wanted = [part.cpu() for part in parts]
        starts = [0, *accumulate(map(len, self.parts))]
        # where in each batch the samples of each split stand
        places = [
            [((part >= start) & (part < end)).nonzero().flatten() for part in wanted]
            for start, end in pairwise(starts)
        ]
        streams = [
            split.read([part[place] - start for part, place in zip(wanted, its_places, strict=True)])
            for split, start, its_places in zip(self.parts, starts, places, strict=False)
        ]
        shares = zip(wanted, zip(*places, strict=True), zip(*streams, strict=True), strict=True)
        for part, its_places, batches in shares:
            yield _merged(part, its_places, batches, starts)


def _merged(
    wanted: Tensor, places: Sequence[Tensor], batches: Sequence[Batch], starts: Sequence[int]
) -> Batch:
    """One batch in the order of `wanted`, of batches that may lack the corrupt ones of what stands at `places`."""
    kept = [
        place
        if len(batch.indices) == len(place)
        else place[torch.isin(wanted[place] - start, batch.indices.cpu())]
        for place, batch, start in zip(places, batches, starts, strict=False)
    ]
    order = torch.cat(kept).argsort().to(batches[0].indices.device)
    indices = [batch.indices + start for batch, start in zip(batches, starts, strict=False)]
    return Batch(
        torch.cat([batch.images for batch in batches])[order],
        torch.cat([batch.labels for batch in batches])[order],
        torch.cat(indices)[order],
    )
