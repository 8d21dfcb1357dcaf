"""What a network is trained on, batch by batch: a split in seeded order, each sample in its view of the epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from kdistill import ranks
from kdistill.data import Batch, Mixing, Split, Views, sample_order, slices

#: so many bytes of small images are augmented at once; they fit the cache of a CPU
AT_ONCE_BYTES = 2**20


@dataclass(frozen=True)
class TrainingData:
    """A split in seeded order, augmented: epoch `e` shows view `e % distinct_views` of every sample.

    `first_epoch` is where the counting starts, so that fine-tuning goes on with new orders and views.
    `teacher_views` is what the teacher is shown instead, and `mixing` mixes the images of each batch.
    """

    split: Split
    views: Views
    order_seed: int
    distinct_views: int | None = None
    first_epoch: int = 0
    teacher_views: Views | None = None
    mixing: Mixing | None = None
    classes: int = 0

    def view(self, epoch: int) -> int:
        number = self.first_epoch + epoch
        return number if self.distinct_views is None else number % self.distinct_views

    def batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Augmented batches of an epoch from step `start`; what does not fill a batch waits for another epoch."""
        order = sample_order(len(self.split), self.order_seed, self.first_epoch + epoch)
        whole = len(order) // batch_size * batch_size
        view = self.view(epoch)
        parts = slices(order[start * batch_size : whole], batch_size)
        if self.mixing is None:  # else a partner may be in another rank's share
            parts = [ranks.share(part) for part in parts]
        shown = show(self.split.read(parts), view, self.views, self.teacher_views)
        for step, batch in enumerate(shown, start):
            if len(batch):
                yield ranks.share(self._mixed(batch, epoch, step)) if self.mixing else batch
            else:
                ranks.refuse_idle()

    def _mixed(self, batch: Batch, epoch: int, step: int) -> Batch:
        assert self.mixing is not None
        mixed = self.mixing.mix(batch.images, batch.labels, epoch, step, self.classes)
        shown = batch.teacher_images
        if shown is not None:
            shown = self.mixing.mix(shown, batch.labels, epoch, step, self.classes).images
        others = batch.indices[mixed.partner]
        return Batch(mixed.images, mixed.labels, batch.indices, shown, others, mixed.lam)


def show(
    batches: Iterable[Batch], view: int, views: Views, teacher_views: Views | None = None
) -> Iterator[Batch]:
    """The batches with their images as they are shown in a view, and what the teacher is shown if that differs.

    Several batches of small images are augmented at once: what their many small operations cost is paid once.
    """
    for group in _groups(batches):
        if not any(map(len, group)):
            yield from group  # there is nothing to show, nor to draw for
            continue
        images, indices = (torch.cat([getattr(b, name) for b in group]) for name in ("images", "indices"))
        shown = views(images, indices, view)
        to_teacher = teacher_views(images, indices, view) if teacher_views else None
        done = 0
        for batch in group:
            rows = slice(done, done := done + len(batch))
            theirs = None if to_teacher is None else to_teacher[rows]
            yield Batch(shown[rows], batch.labels, batch.indices, theirs)


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
