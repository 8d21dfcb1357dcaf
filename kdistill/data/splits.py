"""Splits: labelled images that come in batches, how they are ordered, and how one is cut from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, overload

import torch
from torch import Tensor

from kdistill.config.data import TaskName
from kdistill.data.batch import Batch
from kdistill.data.views import CUT, ORDER, random_bits
from kdistill.errors import DataError


class Split(Protocol):
    """Images with labels.

    `labels`: int64 `[n]`, -1 without a label; float `[n, K]` for several classes at once (0 or 1) and for values
    (standardised), nan without a label. `skipped`: corrupt images met so far and left out. `ids`: a name for
    each sample by which a user knows it: a file's path within the data set's folder, or the sample's position in
    the data set's own training data as text. `image_shape`: channels, height, width.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def skipped(self) -> int: ...

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int: ...

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield consecutive slices of `order` (int64, positions in the split); the last may be smaller."""
        ...

    def read(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield one batch for each of `parts` (int64, positions), in its order; without its corrupt images."""
        ...

    def to(self, device: torch.device) -> Split:
        """Return this split with its batches on `device`; images in memory move once."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """A split in memory. `images`: `[n, C, H, W]`, uint8 or floating; `labels` on the same device.

    `names`: the samples' ids; None: their positions.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    skipped: int = 0
    names: Sequence[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ids(self) -> Sequence[str]:
        return Numbers(range(len(self))) if self.names is None else self.names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        return batches_of(self, slices(order.to(self.labels.device), batch_size))

    def read(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        if not parts:
            return
        # all at once: a copy for each batch would wait for a GPU each time
        wanted = torch.cat(list(parts)).to(self.labels.device)
        sizes = [len(part) for part in parts]
        for indices, labels in zip(wanted.split(sizes), self.labels[wanted].split(sizes), strict=True):
            yield Batch(self.images.index_select(0, indices), labels, indices)

    def to(self, device: torch.device) -> ArraySplit:
        return ArraySplit(self.images.to(device), self.labels.to(device), self.skipped, self.names)

    def with_labels(self, labels: Tensor) -> ArraySplit:
        return ArraySplit(self.images, labels, self.skipped, self.names)

    def select(self, indices: Tensor) -> ArraySplit:
        """Return a split of these positions (int64 `[m]`), in this order."""
        chosen = indices.tolist()
        names = self.ids
        kept = (
            Numbers([names.numbers[i] for i in chosen])
            if isinstance(names, Numbers)
            else [names[i] for i in chosen]
        )
        return ArraySplit(self.images[indices], self.labels[indices], names=kept)

    def fingerprint(self, classes: Sequence[str]) -> str:
        """Return the sha256 (hex) over class names, shape, labels and pixels."""
        digest = hashlib.sha256(json.dumps([list(classes), list(self.images.shape)]).encode())
        for array in (self.labels, self.images):
            digest.update(array.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Numbers(Sequence[str]):
    """Numbers as text, made when asked for."""

    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [str(number) for number in self.numbers[index]]
        return str(self.numbers[index])


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, ready to use. The test split is read on first use and not before.

    `task`: a name in `kdistill.tasks.TASKS`. `classes`: names of the classes, or of the values to predict.
    `mean` and `std`: per channel, of pixels in [0, 1] (floating-point images: in their own units), from the
    training split; a constant channel has std 1. `target_mean` and `target_std`: of the values to predict, in
    their own units; labels are (value - target_mean) / target_std, in all splits.
    `fingerprint`: sha256 (hex) over all that train and validation hold.
    `read_test` returns the test split and its fingerprint.
    `unlabelled`: images that only a teacher can label; see `kdistill.data.transfer`.
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
    task: TaskName = "classification"
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[float, ...] | None = None
    unlabelled: Split | None = None
    unlabelled_fingerprint: str | None = None

    @property
    def is_images(self) -> bool:
        """Whether the inputs are pixels, not rows of numbers."""
        return self.image_size != (1, 1)

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


def batches_of(split: Split, parts: Sequence[Tensor]) -> Iterator[Batch]:
    """Read the parts, but for those of which no image can be decoded."""
    return (batch for batch in split.read(parts) if len(batch.indices))


def sample_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of `0..n-1`, int64 `[n]`: a pure function of `(seed, epoch, n)`."""
    return random_bits(torch.arange(n), ORDER, seed, epoch).argsort(stable=True)


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Return a seeded permutation, int64 `[n]`, of which every prefix is stratified by class.

    A prefix of at least as many samples as there are classes holds one of every class; a longer prefix
    contains a shorter one. `labels`: int64 `[n]`; floating ones, where there are no classes to stratify by,
    are only shuffled.
    """
    shuffled = random_bits(torch.arange(len(labels)), CUT, seed).argsort(stable=True)
    if labels.is_floating_point():
        return shuffled
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - starts[labels[by_class]]
    # Member r of n in a class stands at (r + 1/2) / n of the whole; each class's first goes to the front.
    place = torch.where(rank == 0, 0.0, (rank + 0.5) / counts[labels[by_class]])
    return by_class[place.argsort(stable=True)]


def cut(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return positions of what stays and of the `share` cut off, stratified, each int64 and ascending.

    At least one sample of every class is cut off; one at all where labels are floating.
    """
    order = stratified_order(labels, seed)
    least = 1 if labels.is_floating_point() else len(labels.unique())
    size = max(round(share * len(labels)), least)
    return order[size:].sort().values, order[:size].sort().values


def subset(labels: Tensor, size: int | None, classes: Sequence[str], seed: int) -> Tensor:
    """Return the positions, int64 and ascending, of `size` stratified samples; a larger size only adds.

    Raises DataError when `size` is more than there is, or too small for one sample per class.
    """
    if size is None:
        return torch.arange(len(labels))
    if size > len(labels):
        raise DataError(f"dataset.train_samples={size}, but only {len(labels)} training samples are there")
    if size < len(classes) and not labels.is_floating_point():
        raise DataError(
            f"dataset.train_samples={size} is too few for {len(classes)} classes: each needs at least one"
        )
    return stratified_order(labels, seed)[:size].sort().values


def check_classes(labels: Tensor, classes: Sequence[str], split: str) -> None:
    """Raise DataError when the split of this name is empty, or a class has no sample in it.

    Where samples have several classes, or values, classes may be missing: pass only those that must be there.
    """
    if len(labels) == 0:
        raise DataError(f"no sample is left for the {split} split: add samples, or cut off smaller shares")
    counts = (labels > 0.5).sum(0) if labels.is_floating_point() else labels.bincount(minlength=len(classes))
    for name, count in zip(classes, counts.tolist(), strict=False):
        if count == 0:
            raise DataError(
                f"class {name!r} has no sample in the {split} split, where every class needs at least one:"
                " add samples, or take the class out"
            )


def channel_statistics(split: Split, order: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of pixels in [0, 1]; the std of a constant channel is 1.

    `order` says which samples to look at (int64). Grey levels are counted, so their order changes nothing.
    Floating-point images, which are in memory, are taken in their own units.
    """
    if isinstance(split, ArraySplit) and split.images.is_floating_point():
        return moments(split.images[order].transpose(0, 1).flatten(1).T)
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


def moments(rows: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each column of `[n, D]`; the std of a constant column is 1."""
    mean, std = rows.double().mean(0), rows.double().std(0, correction=0)
    constant = (rows == rows[:1]).all(0)  # rounding could give a std just above 0
    return tuple(mean.tolist()), tuple(std.masked_fill(constant, 1).tolist())
