"""A split in all of its views at once: each image is read once, and what several views repeat is shown once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdistill.data.splits import Split
from kdistill.data.views import Views

#: a part of the samples shows up to so many batches, of up to so many numbers, but one batch at least
PART_BATCHES, PART_NUMBERS = 16, 2**25


@dataclass(frozen=True, eq=False)
class Seen:
    """What all views of a part of the samples show: D different images.

    `part`: positions in the split, int64, ascending; `indices`: those of them whose images can be decoded, int64 `[n]`.
    `images`: `[D, C, H, W]`, those of a sample side by side. `which`: int64 `[V, n]`, the one among them that a view of
    a sample is. All but `images` are on the CPU.
    """

    part: Tensor
    indices: Tensor
    images: Tensor
    which: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def cut(self, count: int) -> tuple[Seen, Seen]:
        """Return the samples all of whose images are among the first `count`, fewer than all, and the others."""
        n = int((self.which.amax(0) < count).sum())
        shown, position = int(self.which[:, n].min()), int((self.part < self.indices[n]).sum())
        first = Seen(self.part[:position], self.indices[:n], self.images[:shown], self.which[:, :n])
        others = Seen(self.part[position:], self.indices[n:], self.images[shown:], self.which[:, n:] - shown)
        return first, others


@dataclass(frozen=True, eq=False)
class AllViews:
    """A split in its views number 0 to `count - 1`."""

    split: Split
    views: Views
    count: int

    @property
    def different(self) -> float:
        """How many different images the views of a sample are, on average."""
        return self.views.different(self.count)

    def part_size(self, batch_size: int) -> int:
        """How many samples to read at once where their images are used in batches of `batch_size`."""
        fitting = PART_NUMBERS // math.prod(self.split.image_shape)
        images = min(PART_BATCHES * batch_size, max(batch_size, fitting))
        return max(1, int(images / self.different))

    def read(self, parts: Sequence[Tensor]) -> Iterator[Seen]:
        """Yield what each of `parts` (positions as in `Seen`) shows, in its order."""
        for part, batch in zip(parts, self.split.read(parts), strict=True):
            # a GPU is not waited for unless an image is missing
            indices = part if len(batch) == len(part) else batch.indices.cpu()
            if not len(indices):
                yield Seen(part, indices, batch.images, torch.empty(self.count, 0, dtype=torch.int64))
            elif self.views.windows is None:
                yield self._each(part, indices, batch.images)
            else:
                yield self._different(part, indices, batch.images, self.views.windows)

    def _each(self, part: Tensor, indices: Tensor, images: Tensor) -> Seen:
        there = indices.to(images.device)
        shown = torch.stack([self.views(images, there, view) for view in range(self.count)], dim=1)
        which = torch.arange(self.count * len(indices)).view(-1, self.count).T
        return Seen(part, indices, shown.flatten(0, 1), which)

    def _different(self, part: Tensor, indices: Tensor, images: Tensor, windows: int) -> Seen:
        # on the CPU, since how many are different decides what is done next
        drawn = torch.stack([self.views.window(indices, view) for view in range(self.count)])
        keys, which = (torch.arange(len(indices)) * windows + drawn).unique(return_inverse=True)
        rows, numbers = (keys // windows).to(images.device), (keys % windows).to(images.device)
        return Seen(part, indices, self.views.cut(images, rows, numbers), which)
