"""Decoded images on disk: made once from image files, then mapped into memory instead of decoded again.

A cache is `NAME.npy`, uint8 `[n, C, H, W]`, and `NAME.json`, which says what it was made from. The list is
removed before the pixels are replaced and written after them, so whenever there is one it is that of the pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from kdistill.data.decoding import Decoded, ImageFiles
from kdistill.data.filesplit import FileSplit
from kdistill.data.splits import slices
from kdistill.errors import ConfigError, StorageError
from kdistill.files import locked, sha256_of, storage_errors, write_json
from kdistill.records import Progress

_log = logging.getLogger("kdistill")

#: raised when `decode` gives other pixels for the same file
_DECODING = 1
_CHECKED_BYTES = 2**30
_BATCH = 64


@dataclass(frozen=True, eq=False)
class CachedFiles(ImageFiles):
    """Image files that were decoded before, in `pixels`; read by position as if they were decoded now.

    `files`: what they were decoded from. `rows`: where in the cache each file is, int64 `[m]`; `failures`: by row,
    why a file could not be decoded.
    """

    files: ImageFiles
    pixels: _Pixels
    rows: Tensor
    failures: Mapping[int, str]

    def __getitems__(self, positions: Sequence[int]) -> Decoded:
        rows = self.rows[list(positions)]
        found = list(zip(positions, rows.tolist(), strict=True))
        bad = [(index, self.failures[row]) for index, row in found if row in self.failures]
        good = [(index, row) for index, row in found if row not in self.failures]
        kept = np.array([row for _, row in good], dtype=np.int64)
        return [index for index, _ in good], torch.from_numpy(self.pixels.array[kept]), bad

    def select(self, indices: Tensor) -> CachedFiles:
        chosen = self.files.select(indices)
        return replace(self, names=chosen.names, files=chosen, rows=self.rows[indices])

    def size(self, index: int) -> int:
        return self.files.size(index)

    def content(self, index: int) -> bytes:
        return self.files.content(index)


class _Pixels:
    """The pixels of a cache, mapped into memory. Another process is sent the path alone and maps them itself."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.array = np.asarray(np.load(path, mmap_mode="r"))

    def __reduce__(self) -> tuple[type[_Pixels], tuple[Path]]:
        return _Pixels, (self._path,)


def cached(split: FileSplit, folder: str | None, name: str) -> FileSplit:
    """Return `split` read from its cache in `folder`, which is made if need be; as it is without a folder.

    `name` tells the splits of one root apart. A cache is made anew when an image file was added, removed or
    changed (by size or time), or when it is damaged: its size is compared at each start and, up to 1 GiB, its
    checksum. Reading all of a larger one could take longer than the run's first epoch.

    Raises ConfigError for a folder among the images, StorageError where the disk has too little space.
    """
    if folder is None:
        return split
    files, path = split.files, _path(split.files, Path(folder).expanduser(), name)
    with (
        locked(path.with_suffix(".lock"), f"the cache {path}", "device.cache"),
        storage_errors(path.parent, "device.cache"),
    ):
        made_from = {"images": _state(files), "Pillow": PIL.__version__, "decoding": _DECODING}
        about = _valid(path, made_from) or _make(path, split, made_from)
        pixels, rows = _Pixels(path), torch.arange(len(files))
    failures = {int(row): cause for row, cause in about["failures"].items()}
    read = CachedFiles(
        files.root, files.names, files.image_size, files.channels, files, pixels, rows, failures
    )
    return replace(
        split, files=read, workers=0
    )  # to hand pixels over takes a worker longer than to read them


def _path(files: ImageFiles, folder: Path, name: str) -> Path:
    root = Path(files.root).resolve()
    if folder.resolve().is_relative_to(root):
        raise ConfigError(
            f"device.cache={folder} lies among the images of {files.root}: name a folder outside of it"
        )
    shape = "x".join(map(str, files.image_shape))
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    return folder / f"{root.name}-{name}-{shape}-{digest}.npy"


def _state(files: ImageFiles) -> str:
    """The sha256 (hex) over each file's name, size and times of change."""
    digest = hashlib.sha256()
    for i, name in enumerate(files.names):
        digest.update(json.dumps([name, *files.state(i)]).encode())
    return digest.hexdigest()


def _valid(path: Path, made_from: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is known of a cache that can be used; None, and a line in the log, for one that cannot."""
    try:
        about: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        changed = [what for what, value in made_from.items() if about["made_from"].get(what) != value]
        size = path.stat().st_size
        whole = size == about["bytes"] and (size > _CHECKED_BYTES or sha256_of(path) == about["sha256"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):  # not the JSON that was written
        changed, whole = [], False
    if changed:
        _log.info("%s is made anew: %s changed", path, " and ".join(changed))
    elif not whole:
        _log.warning("%s is damaged: it is made anew", path)
    return about if whole and not changed else None


def _make(path: Path, split: FileSplit, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Decode all images into a new cache, and return what is to be known of it."""
    shape = (len(split), *split.image_shape)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    size = len(header.getvalue()) + math.prod(shape)
    _check_space(path.parent, size, shape)
    _log.info("decoding %s images into %s", f"{len(split):,}", path)
    partial, digest, failures = path.with_suffix(".partial"), hashlib.sha256(), dict[str, str]()
    try:
        # Written in order and not through a memory map, where a full disk would kill the process.
        with partial.open("wb") as file:
            for block in chain([header.getvalue()], _decoded(split, failures)):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    path.with_suffix(".json").unlink(missing_ok=True)
    partial.replace(path)
    about = {"made_from": made_from, "failures": failures, "bytes": size, "sha256": digest.hexdigest()}
    write_json(path.with_suffix(".json"), about)
    return about


def _decoded(split: FileSplit, failures: dict[str, str]) -> Iterator[bytes]:
    """Yield the pixels of all files in their order, zeros for those that `failures` then names, with a bar."""
    parts = slices(torch.arange(len(split)), _BATCH)
    with Progress("decoding", len(parts)) as bar:
        for part, (positions, images, bad) in zip(parts, split.decoded(parts), strict=True):
            rows = torch.zeros(len(part), *split.image_shape, dtype=torch.uint8)
            rows[torch.tensor(positions, dtype=torch.int64) - part[0]] = images
            failures.update({str(row): cause for row, cause in bad})
            bar.advance(len(part), lambda: "")
            yield rows.numpy().tobytes()


def _check_space(folder: Path, size: int, shape: Sequence[int]) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        n, *image = shape
        raise StorageError(
            f"device.cache={folder} would take {size / 2**30:.1f} GiB ({n:,} images of"
            f" {' x '.join(map(str, image))} bytes) and {free / 2**30:.1f} GiB are free there. Name a folder on"
            " another disk, or leave the cache out with device.cache=null"
        )
