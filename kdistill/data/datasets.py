"""From the `dataset` section of the config to data that is ready to use."""

from __future__ import annotations

import numpy as np
import torch

from kdistill.config.data import (
    Dataset,
    Diabetes,
    Digits,
    Downloaded,
    ImageFolder,
    ImageTable,
    Synthetic,
    TaskName,
    WebDataset,
)
from kdistill.data.assemble import from_arrays
from kdistill.data.downloaded import read_downloaded
from kdistill.data.folder import load_image_folder
from kdistill.data.splits import ArraySplit, Data, cut
from kdistill.data.table import load_image_table
from kdistill.data.unlabelled import with_unlabelled
from kdistill.data.webdataset import load_webdataset

# Not the user's split_seed: another cut of train and validation must leave the test split as it is.
TEST_SEED = 0
TEST_SHARE = 0.2


def load_data(
    config: Dataset,
    *,
    workers: int = 0,
    memory_gb: float = 4.0,
    cache: str | None = None,
    index: str | None = None,
) -> Data:
    """Return the data set that the config names; its test split is read on first use.

    `workers` processes decode image files; image files of up to `memory_gb` GiB, decoded, are held in
    memory; in the folder `cache` they are kept decoded for the next time; in `index`, lists of what is in shards.
    None of it changes a pixel. Raises DataError when files are missing, damaged or too few.
    """
    data = _labelled(config, workers, memory_gb, cache, index)
    if isinstance(config, Diabetes) or config.unlabelled is None:
        return data
    skip = isinstance(config, ImageFolder | ImageTable | WebDataset) and config.on_error == "skip"
    return with_unlabelled(
        data,
        config.unlabelled,
        skip_corrupt=skip,
        workers=workers,
        memory_gb=memory_gb,
        cache=cache,
        index=index,
    )


def _labelled(config: Dataset, workers: int, memory_gb: float, cache: str | None, index: str | None) -> Data:
    match config:
        case Digits():
            return _digits(config)
        case Downloaded():
            train, classes = read_downloaded(config, train=True)
            test = lambda: read_downloaded(config, train=False)[0]  # noqa: E731
            return from_arrays(config, classes, "classification", train, test)
        case Synthetic():
            return _synthetic(config)
        case Diabetes():
            return _diabetes(config)
        case ImageFolder():
            return load_image_folder(
                config, workers=workers, memory_gb=memory_gb, cache=cache, test_seed=TEST_SEED
            )
        case ImageTable():
            return load_image_table(
                config, workers=workers, memory_gb=memory_gb, cache=cache, test_seed=TEST_SEED
            )
        case WebDataset():
            return load_webdataset(
                config, workers=workers, memory_gb=memory_gb, cache=cache, index=index, test_seed=TEST_SEED
            )


def _digits(config: Digits) -> Data:
    from sklearn.datasets import load_digits  # not with the module: it takes a second

    digits = load_digits()
    grey = np.rint(digits.images * 255 / 16).astype(np.uint8)
    whole = ArraySplit(torch.from_numpy(grey)[:, None], torch.from_numpy(digits.target).long())
    rest, test = cut(whole.labels, TEST_SHARE, TEST_SEED)
    classes = [str(name) for name in digits.target_names]
    return from_arrays(config, classes, "classification", whole.select(rest), lambda: whole.select(test))


def _synthetic(config: Synthetic) -> Data:
    """Class patterns of coarse random blocks, N(0, 1) per pixel, plus N(0, noise^2), brought to uint8.

    With several labels, an image is the sum of its classes' patterns, divided by the root of their number.
    """
    size, shape = config.image_size, (config.channels, config.image_size, config.image_size)
    blocks = -(-size // 4)
    coarse = np.random.default_rng([config.seed, 0]).standard_normal(
        (config.classes, config.channels, blocks, blocks), dtype=np.float32
    )
    patterns = coarse.repeat(4, axis=2).repeat(4, axis=3)[:, :, :size, :size]
    # 45 grey levels per standard deviation: one pixel in 200 is clipped.
    scale = 45 / (1 + config.noise**2) ** 0.5

    def draw(stream: int, n: int) -> ArraySplit:
        labels = np.arange(n) % config.classes
        pixels = np.random.default_rng([config.seed, stream]).standard_normal((n, *shape), dtype=np.float32)
        pixels *= config.noise
        if config.max_labels is None:
            pixels += patterns[labels]
        else:
            shown = _several_labels(config, labels, stream)
            weights = shown / np.sqrt(shown.sum(axis=1, keepdims=True))
            pixels += np.tensordot(weights.astype(np.float32), patterns, axes=1)
            labels = shown.astype(np.float32)
        grey = np.rint(pixels * scale + 127.5).clip(0, 255).astype(np.uint8)
        return ArraySplit(torch.from_numpy(grey), torch.from_numpy(labels))

    classes = [str(label) for label in range(config.classes)]
    task: TaskName = "classification" if config.max_labels is None else "multilabel"
    return from_arrays(config, classes, task, draw(1, config.samples), lambda: draw(2, config.test_samples))


def _several_labels(config: Synthetic, first: np.ndarray, stream: int) -> np.ndarray:
    """Bool `[n, classes]`: the class `first` of each image and, at random, up to max_labels - 1 others."""
    assert config.max_labels is not None
    rng = np.random.default_rng([config.seed, stream, 1])
    counts = rng.integers(1, config.max_labels, len(first), endpoint=True)
    places = rng.random((len(first), config.classes))
    places[np.arange(len(first)), first] = -1
    return places.argsort(axis=1).argsort(axis=1) < counts[:, None]


def _diabetes(config: Diabetes) -> Data:
    """Ten features as channels of 1 x 1 images, so that each is normalised by itself."""
    from sklearn.datasets import load_diabetes

    source = load_diabetes()
    features = torch.from_numpy(source.data).float()[:, :, None, None]
    whole = ArraySplit(features, torch.from_numpy(source.target).float()[:, None])
    rest, test = cut(whole.labels, TEST_SHARE, TEST_SEED)
    return from_arrays(config, ["progression"], "regression", whole.select(rest), lambda: whole.select(test))
