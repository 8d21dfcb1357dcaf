"""From the `dataset` section of the config to data that is ready to use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits

from kdistill.config import schema
from kdistill.data.downloaded import read_downloaded
from kdistill.data.folder import load_image_folder
from kdistill.data.splits import ArraySplit, Data, Split, channel_statistics, check_classes, cut, subset

# Not the user's split_seed: another cut of train and validation must leave the test split as it is.
TEST_SEED = 0
DIGITS_TEST_SHARE = 0.2


def load_data(config: schema.Dataset, *, workers: int = 0, memory_gb: float = 4.0) -> Data:
    """Return the data set that the config names; its test split is read on first use.

    `workers` processes decode image files; an image folder of up to `memory_gb` GiB, decoded, is held in
    memory. Neither changes a pixel. Raises DataError when files are missing, damaged or too few.
    """
    match config:
        case schema.Digits():
            return _digits(config)
        case schema.Downloaded():
            train, classes = read_downloaded(config, train=True)
            return _from_arrays(config, classes, train, lambda: read_downloaded(config, train=False)[0])
        case schema.Synthetic():
            return _synthetic(config)
        case schema.ImageFolder():
            return load_image_folder(config, workers=workers, memory_gb=memory_gb, test_seed=TEST_SEED)


def _digits(config: schema.Digits) -> Data:
    digits = load_digits()
    grey = np.rint(digits.images * 255 / 16).astype(np.uint8)
    whole = ArraySplit(torch.from_numpy(grey)[:, None], torch.from_numpy(digits.target).long())
    rest, test = cut(whole.labels, DIGITS_TEST_SHARE, TEST_SEED)
    classes = [str(name) for name in digits.target_names]
    return _from_arrays(config, classes, whole.select(rest), lambda: whole.select(test))


def _synthetic(config: schema.Synthetic) -> Data:
    """Class patterns of coarse random blocks, N(0, 1) per pixel, plus N(0, noise^2), brought to uint8."""
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
        pixels += patterns[labels]
        grey = np.rint(pixels * scale + 127.5).clip(0, 255).astype(np.uint8)
        return ArraySplit(torch.from_numpy(grey), torch.from_numpy(labels))

    classes = [str(label) for label in range(config.classes)]
    return _from_arrays(config, classes, draw(1, config.samples), lambda: draw(2, config.test_samples))


def _from_arrays(
    config: schema.Dataset, classes: Sequence[str], whole: ArraySplit, read_test: Callable[[], ArraySplit]
) -> Data:
    """Cut validation from `whole`, keep `train_samples` of the rest, and measure what is left."""
    rest, held_out = cut(whole.labels, config.validation, config.split_seed)
    kept = rest[subset(whole.labels[rest], config.train_samples, classes, config.split_seed)]
    train, validation = whole.select(kept), whole.select(held_out)
    check_classes(train.labels, classes, "train")
    check_classes(validation.labels, classes, "validation")
    mean, std = channel_statistics(train, torch.arange(len(train)))

    def test() -> tuple[Split, str]:
        split = read_test()
        return split, split.fingerprint(classes)

    parts = train.fingerprint(classes) + validation.fingerprint(classes)
    return Data(
        train=train,
        validation=validation,
        classes=tuple(classes),
        channels=train.images.shape[1],
        image_size=(train.images.shape[2], train.images.shape[3]),
        mean=mean,
        std=std,
        fingerprint=hashlib.sha256(parts.encode()).hexdigest(),
        read_test=test,
    )
