"""Data sets for tests, and all that is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor

from kdistill.config.data import Dataset
from kdistill.data import Data, Split
from tests.conftest import NO_AUGMENT


def config(name: str, **changes: Any) -> Dataset:
    """A `dataset` section, with the changes given."""
    values: dict[str, Any] = {
        "name": name,
        "validation": 0.1,
        "split_seed": 0,
        "train_samples": None,
        "unlabelled": None,
        "augment": NO_AUGMENT,
    }
    if name == "synthetic":
        values |= {"classes": 4, "channels": 3, "image_size": 6, "samples": 80, "test_samples": 20}
        values |= {"noise": 1.0, "max_labels": None, "seed": 0}
    elif name == "diabetes":
        del values["unlabelled"]
    elif name in ("mnist", "fashion_mnist", "cifar10", "cifar100"):
        values |= {"root": None, "download": False}
    return TypeAdapter(Dataset).validate_python(values | changes)


def all_images(data: Data) -> Tensor:
    batches = data.train.batches(torch.arange(len(data.train)), 1000)
    return torch.cat([batch.images for batch in batches])


def whole(split: Split) -> list[Tensor]:
    """Images, labels and positions of all samples that can be read."""
    batches = list(split.batches(torch.arange(len(split)), 7))
    return [torch.cat([getattr(b, what) for b in batches]) for what in ("images", "labels", "indices")]


def assert_same(one: Data, other: Data) -> None:
    """All splits and all that is known of them, bit for bit."""
    for a, b in ((one.train, other.train), (one.validation, other.validation), (one.test, other.test)):
        assert all(torch.equal(left, right) for left, right in zip(whole(a), whole(b), strict=True))
        assert (list(a.ids), a.skipped) == (list(b.ids), b.skipped)
    assert (one.mean, one.std, one.fingerprint) == (other.mean, other.std, other.fingerprint)
    assert one.test_fingerprint == other.test_fingerprint


def write_image(path: Path, seed: int, size: tuple[int, int] = (14, 10)) -> None:
    """A picture of noise, width x height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
