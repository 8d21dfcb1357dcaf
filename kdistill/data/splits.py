"""Splits: labelled images that come in batches, how they are ordered, and how one is cut from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from kdistill.data.views import CUT, ORDER, random_bits
from kdistill.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Part of a split. `images`: uint8 `[N, C, H, W]`; `labels` and positions in the split: int64 `[N]`."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class Split(Protocol):
    """Labelled images. `labels`: int64 `[n]`; `skipped`: corrupt images met so far and left out."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int: ...

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield consecutive slices of `order` (int64, positions in the split); the last may be smaller."""
        ...

    def to(self, device: torch.device) -> Split:
        """Return this split with its batches on `device`; images in memory move once."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split in memory. `images`: uint8 `[n, C, H, W]`; `labels`: int64 `[n]`, on the same device."""

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        for indices in slices(order.to(self.labels.device), batch_size):
            yield Batch(self.images.index_select(0, indices), self.labels[indices], indices)

    def to(self, device: torch.device) -> ArraySplit:
        return ArraySplit(self.images.to(device), self.labels.to(device), self.skipped)

    def select(self, indices: Tensor) -> ArraySplit:
        """Return a split of these positions (int64 `[m]`), in this order."""
        return ArraySplit(self.images[indices], self.labels[indices])

    def fingerprint(self, classes: Sequence[str]) -> str:
        """Return the sha256 (hex) over class names, shape, labels and pixels."""
        digest = hashlib.sha256(json.dumps([list(classes), list(self.images.shape)]).encode())
        for array in (self.labels, self.images):
            digest.update(array.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, ready to use. The test split is read on first use and not before.

    `mean` and `std`: per channel, of pixels in [0, 1], from the training split; a constant channel has std 1.
    `fingerprint`: sha256 (hex) over all that train and validation hold.
    `read_test` returns the test split and its fingerprint.
    """

    train: Split
    validation: Split
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    read_test: Callable[[], tuple[Split, str]] = field(repr=False)

    @property
    def test(self) -> Split:
        return self._test[0]

    @property
    def test_fingerprint(self) -> str:
        return self._test[1]

    @cached_property
    def _test(self) -> tuple[Split, str]:
        return self.read_test()


def slices(order: Tensor, batch_size: int) -> Sequence[Tensor]:
    """Cut `order` into consecutive parts of `batch_size`; nothing for an empty order."""
    return order.split(batch_size) if len(order) else ()


def sample_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of `0..n-1`, int64 `[n]`: a pure function of `(seed, epoch, n)`."""
    return random_bits(torch.arange(n), ORDER, seed, epoch).argsort(stable=True)


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Return a seeded permutation, int64 `[n]`, of which every prefix is stratified by class.

    A prefix of at least as many samples as there are classes holds one of every class; a longer prefix
    contains a shorter one. `labels`: int64 `[n]`.
    """
    shuffled = random_bits(torch.arange(len(labels)), CUT, seed).argsort(stable=True)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - starts[labels[by_class]]
    # Member r of n in a class stands at (r + 1/2) / n of the whole; each class's first goes to the front.
    place = torch.where(rank == 0, 0.0, (rank + 0.5) / counts[labels[by_class]])
    return by_class[place.argsort(stable=True)]


def cut(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return positions of what stays and of the `share` cut off, stratified, each int64 and ascending.

    At least one sample of every class is cut off.
    """
    order = stratified_order(labels, seed)
    size = max(round(share * len(labels)), len(labels.unique()))
    return order[size:].sort().values, order[:size].sort().values


def subset(labels: Tensor, size: int | None, classes: Sequence[str], seed: int) -> Tensor:
    """Return the positions, int64 and ascending, of `size` stratified samples; a larger size only adds.

    Raises DataError when `size` is more than there is, or too small for one sample per class.
    """
    if size is None:
        return torch.arange(len(labels))
    if size > len(labels):
        raise DataError(f"dataset.train_samples={size}, but only {len(labels)} training samples are there")
    if size < len(classes):
        raise DataError(
            f"dataset.train_samples={size} is too few for {len(classes)} classes: each needs at least one"
        )
    return stratified_order(labels, seed)[:size].sort().values


def check_classes(labels: Tensor, classes: Sequence[str], split: str) -> None:
    """Raise DataError when a class has no sample in the split of this name."""
    counts = labels.bincount(minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if count == 0:
            raise DataError(
                f"class {name!r} has no sample in the {split} split, where every class needs at least one:"
                " add samples, or take the class out"
            )


def channel_statistics(split: Split, order: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of pixels in [0, 1]; the std of a constant channel is 1.

    `order` says which samples to look at (int64). Grey levels are counted, so their order changes nothing.
    """
    histogram: Tensor | None = None
    for batch in split.batches(order, 1024):
        channels = batch.images.cpu().transpose(0, 1).flatten(1)
        counts = torch.stack([channel.bincount(minlength=256) for channel in channels])
        histogram = counts if histogram is None else histogram + counts
    if histogram is None:
        raise DataError("no readable image in the training split")
    grey, counts = torch.arange(256), histogram
    n = int(counts[0].sum())
    total, squares = (counts * grey).sum(1).tolist(), (counts * grey.square()).sum(1).tolist()
    variance = [(q * n - s * s) / n**2 for q, s in zip(squares, total, strict=True)]
    return tuple(s / n / 255 for s in total), tuple(v**0.5 / 255 if v else 1.0 for v in variance)
