"""From samples to `Data`: validation and test cut off, checked, measured, values to predict standardised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdistill.config.data import Dataset, ImageFolder, ImageTable, TaskName, WebDataset
from kdistill.data.cache import cached
from kdistill.data.filesplit import FileSplit
from kdistill.data.splits import (
    ArraySplit,
    Data,
    Split,
    channel_statistics,
    check_classes,
    cut,
    moments,
    sample_order,
    subset,
)

_STATISTICS_IMAGES = 2000

#: a split with its fingerprint
_Printed = tuple[ArraySplit | FileSplit, str]


def from_arrays(
    config: Dataset,
    classes: Sequence[str],
    task: TaskName,
    whole: ArraySplit,
    read_test: Callable[[], ArraySplit],
) -> Data:
    """Cut validation from `whole`, keep `train_samples` of the rest, and measure what is left."""
    rest, held_out = cut(whole.labels, config.validation, config.split_seed)
    kept = rest[subset(whole.labels[rest], config.train_samples, classes, config.split_seed)]
    train, validation = whole.select(kept), whole.select(held_out)

    def test() -> _Printed:
        split = read_test()
        return split, split.fingerprint(classes)

    sample = torch.arange(len(train))
    parts = (train, train.fingerprint(classes)), (validation, validation.fingerprint(classes))
    return _assemble(classes, task, *parts, read_test=test, sample=sample)


def from_files(
    config: ImageFolder | ImageTable | WebDataset,
    classes: Sequence[str],
    task: TaskName,
    *,
    train: FileSplit,
    validation: FileSplit | None,
    read_test: Callable[[], FileSplit] | None,
    memory_gb: float,
    cache: str | None,
    test_seed: int,
) -> Data:
    """Cut from `train` what is None: test first, then validation; keep `train_samples` of the rest.

    `cache`: folder for decoded images. All of a split's files are cached, so that other cuts find theirs.
    """
    source = f"{Path(config.table).stem}-" if isinstance(config, ImageTable) else ""
    train = cached(train, cache, f"{source}train")
    test: FileSplit | None = None
    if read_test is None:
        train, test = _cut(train, config.test, test_seed)
        check_classes(test.labels, must_occur(classes, task, "test"), "test")
    if validation is None:
        train, validation = _cut(train, config.validation, config.split_seed)
    else:
        validation = cached(validation, cache, f"{source}validation")
    check_classes(train.labels, must_occur(classes, task, "train"), "train")
    train = train.select(subset(train.labels, config.train_samples, classes, config.split_seed))

    count = len(train) + len(validation)
    parts = train.settled(classes, memory_gb, count), validation.settled(classes, memory_gb, count)
    # The same sample in memory and on disk, so that where the images are held changes no result.
    sample = sample_order(len(parts[0][0]), seed=0, epoch=0)[:_STATISTICS_IMAGES]

    def test_part() -> _Printed:
        split = cached(read_test(), cache, f"{source}test") if read_test else test
        assert split is not None
        return split.settled(classes, memory_gb)

    return _assemble(classes, task, *parts, read_test=test_part, sample=sample)


def must_occur(classes: Sequence[str], task: TaskName, split: str) -> Sequence[str]:
    """Return the classes that the split of this name cannot do without.

    Where an image has several, they can be missing where nothing is learnt; values are no classes.
    """
    return classes if task == "classification" or (task == "multilabel" and split == "train") else ()


def _cut(split: FileSplit, share: float, seed: int) -> tuple[FileSplit, FileSplit]:
    rest, cut_off = cut(split.labels, share, seed)
    return split.select(rest), split.select(cut_off)


def _assemble(
    classes: Sequence[str],
    task: TaskName,
    train: _Printed,
    validation: _Printed,
    *,
    read_test: Callable[[], _Printed],
    sample: Tensor,
) -> Data:
    """`sample`: the training samples whose pixels are measured."""
    for (split, _), name in ((train, "train"), (validation, "validation")):
        check_classes(split.labels, must_occur(classes, task, name), name)
    units = moments(train[0].labels) if task == "regression" else None

    def finish(split: ArraySplit | FileSplit) -> Split:
        """In units of the training split, whatever split it is: fingerprints are of the values as given."""
        if units is None:
            return split
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in units)
        return split.with_labels(((split.labels.double() - mean) / std).float())

    def test() -> tuple[Split, str]:
        split, fingerprint = read_test()
        check_classes(split.labels, must_occur(classes, task, "test"), "test")
        return finish(split), fingerprint

    channels, height, width = train[0].image_shape
    # Of a copy, whose workers end with it: training has workers of its own.
    mean, std = channel_statistics(train[0].to(train[0].labels.device), sample)
    return Data(
        train=finish(train[0]),
        validation=finish(validation[0]),
        classes=tuple(classes),
        channels=channels,
        image_size=(height, width),
        mean=mean,
        std=std,
        fingerprint=hashlib.sha256((train[1] + validation[1]).encode()).hexdigest(),
        read_test=test,
        task=task,
        target_mean=units[0] if units else None,
        target_std=units[1] if units else None,
    )
