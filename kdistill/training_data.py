"""What a network is trained on, batch by batch: a split in seeded order, each sample in its view of the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from kdistill import ranks
from kdistill.data import Batch, Mixing, Shown, Split, Views, sample_order, slices


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
        for step, batch in enumerate(self._shown.read(parts, view), start):
            if len(batch):
                yield ranks.share(self._mixed(batch, epoch, step)) if self.mixing else batch
            else:
                ranks.refuse_idle()

    @cached_property
    def _shown(self) -> Shown:
        return Shown(self.split, self.views, self.teacher_views)

    def _mixed(self, batch: Batch, epoch: int, step: int) -> Batch:
        assert self.mixing is not None
        mixed = self.mixing.mix(batch.images, batch.labels, epoch, step, self.classes)
        shown = batch.teacher_images
        if shown is not None:
            shown = self.mixing.mix(shown, batch.labels, epoch, step, self.classes).images
        others = batch.indices[mixed.partner]
        return Batch(mixed.images, mixed.labels, batch.indices, shown, others, mixed.lam)
