"""Stored soft targets: how they lie on disk, who writes them and who reads them.

Shapes: V views, n samples, K classes, k of them stored one by one, N samples of a batch.

    logits.npy    all logits: float16 or float32 `[V, n, K]`
    top_k.npy     the k largest logits of each sample and the rest as one number: records `[V, n]`

Both are plain `.npy` files with one row per sample in a fixed place: rows are written in any order, also by several
processes at once as long as no two write the same row, and a batch is read without the rest of the file.
"""

from __future__ import annotations

import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kdistill.errors import ConfigError, RunError
from kdistill.files import sync

#: files up to this size are held in the machine's memory: what can be read while one waits for nothing
IN_MEMORY_BYTES = 2**26
#: share of a GPU's free memory that a file may take
GPU_SHARE = 0.25


@dataclass(frozen=True)
class Layout(ABC):
    """How logits lie in a file. `shape` is (V, n, K), `dtype` float16 or float32."""

    shape: tuple[int, int, int]
    dtype: str
    file: ClassVar[str]

    @property
    @abstractmethod
    def row(self) -> np.dtype:
        """What is stored of one sample."""

    @property
    def bytes(self) -> int:
        """Size of the file, but for its header."""
        return self.shape[0] * self.shape[1] * self.row.itemsize

    @abstractmethod
    def pack(self, logits: Tensor) -> np.ndarray:
        """Return the rows `[N]` to store for logits `[N, K]`.

        Raises `RunError` for logits that are not finite, in themselves or in `dtype`.
        """

    @abstractmethod
    def unpack(self, rows: Tensor) -> Tensor:
        """Return logits float32 `[N, K]` for stored rows, uint8 `[N, bytes of a row]`."""

    def _narrow(self, logits: Tensor, values: Tensor) -> Tensor:
        """`values`, which were made from `logits`, in the number format that is stored."""
        narrow = values.to(getattr(torch, self.dtype))
        if not torch.isfinite(logits).all():
            raise RunError(
                "the teacher gives logits that are not finite; train it again or with device.precision=fp32"
            )
        if not torch.isfinite(narrow).all():
            raise RunError(
                f"the teacher's logits reach {logits.abs().max().item():.3g}, too large for float16;"
                " set soft_targets.dtype=float32"
            )
        return narrow


class AllLogits(Layout):
    """Every logit as it is."""

    file = "logits.npy"

    @property
    def row(self) -> np.dtype:
        return np.dtype((self.dtype, self.shape[2:]))

    def pack(self, logits: Tensor) -> np.ndarray:
        return self._narrow(logits, logits).cpu().numpy()

    def unpack(self, rows: Tensor) -> Tensor:
        return _as(self.dtype, rows).float()


@dataclass(frozen=True)
class TopLogits(Layout):
    """The `top_k` largest logits with their classes, and the mass of all other classes as one number.

    That number is the tail: logsumexp of the other logits, minus the largest logit, so that it fits float16
    whatever the logits' level is. Reading shares the tail's mass evenly: each of the K - k other classes gets the
    logit `tail - log(K - k)`. So at T=1 the probabilities of the k classes are exact, up to the rounding of
    `dtype`, and so is the sum of the others; at any other T, and within the tail, they are an approximation, the
    better the larger k is. K - k = 1 loses nothing.
    """

    top_k: int
    file = "top_k.npy"

    def __post_init__(self) -> None:
        if self.top_k >= self.shape[2]:
            raise ConfigError(
                f"soft_targets.top_k={self.top_k} must be smaller than the teacher's number of classes,"
                f" {self.shape[2]}; soft_targets.top_k=null stores all of them"
            )

    @property
    def row(self) -> np.dtype:
        classes = self.shape[2]
        number = "uint8" if classes <= 2**8 else "uint16" if classes <= 2**16 else "int32"
        k = (self.top_k,)
        return np.dtype([("classes", number, k), ("logits", self.dtype, k), ("tail", self.dtype, (1,))])

    def pack(self, logits: Tensor) -> np.ndarray:
        wide = logits.float()
        top = wide.topk(self.top_k, dim=1)
        largest = self._narrow(wide, top.values)
        tail = wide.scatter(1, top.indices, -torch.inf).logsumexp(1, keepdim=True) - largest[:, :1].float()
        rows = np.empty(len(logits), self.row)
        rows["classes"] = top.indices.cpu().numpy()
        rows["logits"] = largest.cpu().numpy()
        rows["tail"] = self._narrow(wide, tail).cpu().numpy()
        return rows

    def unpack(self, rows: Tensor) -> Tensor:
        fields = [self.row[name] for name in ("classes", "logits", "tail")]
        parts = rows.split([field.itemsize for field in fields], dim=1)
        # copied, since a number's bytes must be aligned
        aligned = [part.clone(memory_format=torch.contiguous_format) for part in parts]
        classes, logits, tail = (_as(f.base.name, part) for f, part in zip(fields, aligned, strict=True))
        logits = logits.float()
        other = logits[:, :1] + tail.float() - math.log(self.shape[2] - self.top_k)
        return other.repeat(1, self.shape[2]).scatter_(1, classes.long(), logits)


def layout_of(about: Mapping[str, Any]) -> Layout:
    """The layout that a manifest, or another mapping with `shape`, `dtype` and `top_k`, speaks of.

    Raises `ConfigError` for a `top_k` that is not smaller than the number of classes.
    """
    views, samples, classes = about["shape"]
    shape = views, samples, classes
    top_k = about.get("top_k")  # manifests of version 0.1 have none
    return AllLogits(shape, about["dtype"]) if top_k is None else TopLogits(shape, about["dtype"], top_k)


class Writer:
    """Writes rows to a file that is there; `create` makes it.

    Not through a memory map, where a disk that fails ends the process without a word, and where of two machines that
    write to one page the last would overwrite the other's rows with what it had read. Hence nothing is read, either.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._start = path.stat().st_size - layout.bytes

    @classmethod
    def create(cls, path: Path, layout: Layout) -> Writer:
        """Make the file, all zeros. Its space is reserved, so that a full disk shows at once (`OSError`)."""
        row = layout.row
        np.lib.format.open_memmap(path, mode="w+", dtype=row.base, shape=(*layout.shape[:2], *row.shape))
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return cls(path, layout)

    def write(self, view: int, indices: Tensor, logits: Tensor) -> None:
        """Store logits `[N, K]` of samples `indices`, int64 `[N]`; raises `RunError` as `Layout.pack` does."""
        rows, places = np.ascontiguousarray(self._layout.pack(logits)), indices.cpu().numpy()
        gaps = np.flatnonzero(np.diff(places) != 1) + 1
        with open(self._path, "wb", opener=_as_it_is) as file:
            for run, place in zip(np.split(rows, gaps), np.split(places, gaps), strict=True):
                file.seek(self._start + (view * self._layout.shape[1] + place[0]) * self._layout.row.itemsize)
                file.write(run.data)

    def flush(self) -> None:
        """Have all that was written on the disk."""
        sync(self._path)


def _as_it_is(path: str, flags: int) -> int:
    """Open a file for writing with the content that it has."""
    return os.open(path, flags & ~(os.O_CREAT | os.O_TRUNC))


def room_on(device: torch.device) -> int:
    """Up to how many bytes of a file are held on the device."""
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return IN_MEMORY_BYTES


class Reader:
    """Reads the logits of a batch: files of up to `in_memory` bytes (None: `room_on`) are held on the device, larger
    ones stay memory-mapped, and a GPU has to be waited for in every batch.
    """

    def __init__(
        self, path: Path, layout: Layout, device: torch.device, in_memory: int | None = None
    ) -> None:
        self._layout, self._device = layout, device
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        # as bytes: both layouts are moved and indexed alike, records as well as numbers
        self._rows = mapped.view(np.ndarray).view(np.uint8).reshape(*layout.shape[:2], layout.row.itemsize)
        self._held: Tensor | None = None
        room = room_on(device) if in_memory is None else in_memory
        if layout.bytes <= room:
            # read, and not copied from the map, whose pages would come one by one
            content = np.fromfile(path, np.uint8, offset=mapped.offset).reshape(self._rows.shape)
            self._held = torch.from_numpy(content).to(device)
        # A view is unpacked once for all its batches, unless that takes more room than the file itself may.
        self._unpacks = 4 * layout.shape[1] * layout.shape[2] <= room
        self._unpacked: tuple[int, Tensor] | None = None
        self._map, self._start = mapped.base, mapped.offset
        if self._held is None and hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)  # no megabytes read ahead for each row

    def logits(self, view: int, indices: Tensor) -> Tensor:
        """Logits float32 `[N, K]` of samples `indices`, int64 `[N]`. Where one view is stored, it serves for all."""
        view %= self._layout.shape[0]
        if self._held is not None:
            indices = indices.to(self._device)
            if not self._unpacks:
                return self._layout.unpack(self._held[view].index_select(0, indices))
            if self._unpacked is None or self._unpacked[0] != view:
                self._unpacked = view, self._layout.unpack(self._held[view])
            return self._unpacked[1].index_select(0, indices)
        wanted = indices.cpu().numpy()
        self._announce(view, wanted)
        rows = self._rows[view].take(wanted, axis=0)
        return self._layout.unpack(torch.from_numpy(rows).to(self._device))

    def _announce(self, view: int, indices: np.ndarray) -> None:
        """Tell the system which rows come, so that it fetches them side by side where they are not in its cache."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        size = self._layout.row.itemsize
        starts = self._start + (view * self._layout.shape[1] + indices) * size
        pages = starts // mmap.PAGESIZE * mmap.PAGESIZE  # where the advice has to begin
        for page, length in zip(pages.tolist(), (starts - pages + size).tolist(), strict=True):
            self._map.madvise(mmap.MADV_WILLNEED, page, length)


def _as(dtype: str, content: Tensor) -> Tensor:
    """Bytes `[N, B]` as numbers of `dtype`."""
    numbers: Tensor = content.view(getattr(torch, dtype))
    return numbers
