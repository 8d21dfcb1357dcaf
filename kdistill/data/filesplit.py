"""A split of image files, decoded when asked for, or held in memory where they fit."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdistill.data.batch import Batch
from kdistill.data.decoding import Decoded, ImageFiles
from kdistill.data.splits import ArraySplit, batches_of, slices
from kdistill.errors import DataError

_log = logging.getLogger("kdistill")

_HASHED_BYTES = 2**30
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class FileSplit:
    """A split whose images are decoded when asked for. `corrupt`: positions met that could not be decoded.

    `ids` are the files' paths within their root.
    """

    files: ImageFiles
    labels: Tensor
    skip_corrupt: bool
    workers: int = 0
    device: torch.device = _CPU
    corrupt: set[int] = field(default_factory=set)
    _idle: list[_Reader] = field(default_factory=list, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ids(self) -> Sequence[str]:
        return self.files.names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.files.image_shape

    @property
    def skipped(self) -> int:
        return len(self.corrupt)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield batches, without corrupt images; raises DataError for one unless `skip_corrupt`."""
        return batches_of(self, slices(order, batch_size))

    def read(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        known = self.skipped
        for positions, images, failures in self.decoded(parts):
            for index, cause in failures:
                self._leave_out(index, cause)
            # a copy from pinned memory does not wait for the GPU
            rows = torch.tensor(positions, dtype=torch.int64, pin_memory=self.device.type == "cuda")
            indices = rows.to(self.device, non_blocking=True)
            yield Batch(images.to(self.device, non_blocking=True), self.labels[indices], indices)
        if self.skipped > known:
            first = self.files.path(min(self.corrupt))
            _log.warning("left out %d corrupt images of %d, such as %s", self.skipped, len(self), first)

    def decoded(self, parts: Sequence[Tensor]) -> Iterator[Decoded]:
        """Yield what each of `parts` (int64, positions) decodes to, pinned where it goes to a GPU."""
        pinned = self.device.type == "cuda"
        reader = self._idle.pop() if self._idle else _Reader(self.files, self.workers, pinned)
        yield from reader.read(parts)
        self._idle.append(reader)  # not one whose reading was broken off: its workers end with it

    def _leave_out(self, index: int, cause: str) -> None:
        if not self.skip_corrupt:
            path = self.files.path(index)
            raise DataError(f"cannot decode {path} ({cause}); dataset.on_error=skip leaves such images out")
        self.corrupt.add(index)

    def to(self, device: torch.device) -> FileSplit:
        return replace(self, labels=self.labels.to(device), device=device)

    def with_labels(self, labels: Tensor) -> FileSplit:
        return replace(self, labels=labels)

    def select(self, indices: Tensor) -> FileSplit:
        """Return a split of these positions (int64 `[m]`), in this order."""
        return replace(self, files=self.files.select(indices), labels=self.labels[indices], corrupt=set())

    def load(self) -> ArraySplit:
        """Return the same images in memory, without the corrupt ones."""
        n = 0
        images = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)
        positions = torch.empty(len(self), dtype=torch.int64)
        for batch in self.batches(torch.arange(len(self)), 64):
            end = n + len(batch.indices)
            images[n:end], positions[n:end] = batch.images, batch.indices
            n = end
        positions = positions[:n]
        ids = [self.ids[i] for i in positions.tolist()]
        return ArraySplit(images[:n], self.labels[positions], self.skipped, ids)

    def fingerprint(self, classes: Sequence[str]) -> str:
        """Return the sha256 (hex) over class names and each file's label, path within its root and size.

        Contents are included when all files together are below 1 GiB. Corrupt images met so far are not.
        """
        held = [i for i in range(len(self)) if i not in self.corrupt]
        names, labels = [self.ids[i] for i in held], self.labels[held].tolist()
        sizes = [self.files.size(i) for i in held]
        digest = hashlib.sha256(json.dumps([list(classes), names, labels, sizes]).encode())
        if sum(sizes) < _HASHED_BYTES:
            for i in held:
                digest.update(self.files.content(i))
        return digest.hexdigest()

    def settled(
        self, classes: Sequence[str], memory_gb: float, count: int | None = None
    ) -> tuple[ArraySplit | FileSplit, str]:
        """Return this split, in memory if `count` images fit into `memory_gb` GiB, and its fingerprint.

        `count`: the images that are held at the same time; None: only its own.
        """
        channels, height, width = self.image_shape
        fits = (len(self) if count is None else count) * channels * height * width <= memory_gb * 2**30
        settled = self.load() if fits else self
        return settled, self.fingerprint(classes)  # after loading, which finds corrupt images


class _Reader:
    """Reads image files part by part. Workers, if any, stay for the next parts: starting them takes a while."""

    def __init__(self, files: ImageFiles, workers: int, pinned: bool) -> None:
        self._parts = _Parts()
        self._loader: DataLoader[Decoded] = DataLoader(
            files,
            batch_sampler=self._parts,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else it draws from the global one, which dropout depends on
        )

    def read(self, parts: Sequence[Tensor]) -> Iterator[Decoded]:
        self._parts.parts = parts
        yield from self._loader


class _Parts:
    """What a reader's workers are asked for next; set anew before each iteration."""

    parts: Sequence[Tensor] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return (part.tolist() for part in self.parts)


def _as_it_is(decoded: Any) -> Any:
    return decoded
