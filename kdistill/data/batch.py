"""Batches: what is read of a split at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Together:
    """Batches that were read together: positions of all their samples, int64 `[n]`, and their sizes."""

    indices: Tensor
    sizes: list[int]


@dataclass(frozen=True)
class Batch:
    """Part of a split.

    `images`: `[N, C, H, W]`, uint8 for pixels, floating for other inputs; `labels`: int64 `[N]`, -1 without a
    label, or float `[N, D]` for the other tasks; `indices`: positions in the split, int64 `[N]`.
    `teacher_images`: what the teacher is shown, None for the same. `mixed_with`: positions of the images that
    these were mixed with, int64 `[N]`, and `share`: the images' own share. `together`: the batches that it was read
    with, of which it is number `place`; None if it was read alone, or is only a part of what was read.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    teacher_images: Tensor | None = None
    mixed_with: Tensor | None = None
    share: float = 1.0
    together: Together | None = None
    place: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: slice) -> Batch:
        teacher_images = None if self.teacher_images is None else self.teacher_images[rows]
        mixed_with = None if self.mixed_with is None else self.mixed_with[rows]
        shown = self.images[rows], self.labels[rows], self.indices[rows]
        return Batch(*shown, teacher_images, mixed_with, self.share)

    def chunks(self, count: int) -> Iterator[Batch]:
        """Cut into `count` consecutive parts, as alike as possible."""
        if count == 1:
            yield self
            return
        size = -(-len(self) // count)
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def cut(self, sizes: Sequence[int]) -> Iterator[Batch]:
        """Cut what was read together into batches of these sizes; of images that are not mixed."""
        if len(sizes) == 1:
            yield self
            return
        together = Together(self.indices, list(sizes))
        images, labels, indices = (t.split(together.sizes) for t in (self.images, self.labels, self.indices))
        shown = (
            [None] * len(sizes) if self.teacher_images is None else self.teacher_images.split(together.sizes)
        )
        for place, (own, known, at, theirs) in enumerate(zip(images, labels, indices, shown, strict=True)):
            yield Batch(own, known, at, theirs, together=together, place=place)
