"""Shards for tests: written by tarfile, or by the package that the format comes from."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdistill.config.data import WebDataset
from tests.conftest import NO_AUGMENT

#: a sample: its key, and what its members hold, by their endings
Sample = tuple[str, Mapping[str, bytes]]


def config(root: Path, **changes: Any) -> WebDataset:
    values: dict[str, Any] = {"name": "webdataset", "root": str(root), "image_size": 8, "channels": 3}
    values |= {"train_shards": None, "validation_shards": None, "test_shards": None}
    values |= {"label": "cls", "class_names": None, "validation": 0.25, "test": 0.2, "split_seed": 0}
    values |= {"train_samples": None, "on_error": "raise", "unlabelled": None, "augment": NO_AUGMENT}
    return WebDataset.model_validate(values | changes)


def image(seed: int, ending: str = "png") -> bytes:
    """A picture of 14 x 10 pixels of noise, encoded."""
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {"jpg": "jpeg"}.get(ending, ending))
    return buffer.getvalue()


def samples(labels: Iterable[object], start: int = 0) -> list[Sample]:
    """A sample for each label, with keys and pictures from number `start` on: PNG and .cls."""
    return [
        (f"{number:06}", {"png": image(number), "cls": str(label).encode()})
        for number, label in enumerate(labels, start)
    ]


def write(path: Path, content: Iterable[Sample], format: int = tarfile.USTAR_FORMAT, mode: str = "w") -> Path:
    """Write a tar as `tar` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=format) as tar:  # type: ignore[call-overload]
        for key, members in content:
            for ending, value in members.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(value)
                tar.addfile(member, io.BytesIO(value))
    return path


def write_as_webdataset(pattern: str, content: Iterable[Sample], maxcount: int) -> None:
    """Write shards of `maxcount` samples with the package's own writer; `pattern` has a %d for the shard's number."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(pattern, maxcount=maxcount, verbose=0) as writer:
        for key, members in content:
            writer.write({"__key__": key, **members})


def as_json(**fields: object) -> bytes:
    return json.dumps(fields).encode()
