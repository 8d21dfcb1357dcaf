"""A split as it is shown in views: batches of augmented images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdistill.data.batch import Batch
from kdistill.data.splits import ArraySplit, Split
from kdistill.data.views import Views

#: so many bytes of small images are augmented at once; they fit the cache of a CPU
AT_ONCE_BYTES = 2**20
#: images in a CPU's memory are kept ready for their windows where that takes up to so many bytes
READY_BYTES = 2**28

#: a group: samples of several batches, and the sizes of these
Group = tuple[Batch, list[int]]
#: (positions, view) -> images of a split, as they are shown
Show = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, eq=False)
class Shown:
    """A split in `views`; `teacher_views` are what the teacher is shown instead, where that differs.

    Several batches of small images are augmented at once: what their many small operations cost is paid once.
    """

    split: Split
    views: Views
    teacher_views: Views | None = None

    def read(self, parts: Sequence[Tensor], view: int) -> Iterator[Batch]:
        """Yield one batch for each of `parts` (int64, positions), in its order; without its corrupt images."""
        groups = self._from_memory if isinstance(self.split, ArraySplit) else self._as_they_come
        for group, sizes in groups(parts, view):
            yield from group.cut(sizes)

    def _as_they_come(self, parts: Sequence[Tensor], view: int) -> Iterator[Group]:
        for batches in _groups(self.split.read(parts)):
            read, theirs = _joined(batches), None
            shown = read.images
            if len(read):  # else there is nothing to show, nor to draw for
                theirs = self.teacher_views(shown, read.indices, view) if self.teacher_views else None
                shown = self.views(shown, read.indices, view)
            yield Batch(shown, read.labels, read.indices, theirs), list(map(len, batches))

    def _from_memory(self, parts: Sequence[Tensor], view: int) -> Iterator[Group]:
        if not parts:
            return
        split, show, show_teacher = self._in_memory
        # all at once: a copy for each batch would wait for a GPU each time
        wanted = torch.cat(list(parts)).to(split.labels.device)
        sizes = list(map(len, parts))
        at_once = max(1, AT_ONCE_BYTES // max(1, split.images[0].nbytes * max(sizes)))
        groups = [sizes[start : start + at_once] for start in range(0, len(sizes), at_once)]
        lengths = list(map(sum, groups))
        labels = split.labels[wanted].split(lengths)
        for indices, known, group in zip(wanted.split(lengths), labels, groups, strict=True):
            theirs = show_teacher(indices, view) if show_teacher else None
            yield Batch(show(indices, view), known, indices, theirs), group

    @cached_property
    def _in_memory(self) -> tuple[ArraySplit, Show, Show | None]:
        split = self.split
        assert isinstance(split, ArraySplit)
        # on a CPU, where it was found to pay
        room = READY_BYTES if split.images.device.type == "cpu" else 0
        theirs = self.teacher_views.over(split.images, room) if self.teacher_views else None
        return split, self.views.over(split.images, room), theirs


def _groups(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Consecutive batches, together about `AT_ONCE_BYTES` of images; larger ones each by itself."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if sum(one.images.nbytes for one in group) + batch.images.nbytes > AT_ONCE_BYTES:
            yield group
            group = []
    if group:
        yield group


def _joined(batches: Sequence[Batch]) -> Batch:
    """The samples of several batches as one; a large batch by itself is not copied."""
    if len(batches) == 1:
        return batches[0]
    columns = [(batch.images, batch.labels, batch.indices) for batch in batches]
    images, labels, indices = (torch.cat(column) for column in zip(*columns, strict=True))
    return Batch(images, labels, indices)
