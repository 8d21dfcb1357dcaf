"""What a teacher says of all views of samples, asked in full batches and about nothing twice."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from kdistill import ranks
from kdistill.data import AllViews, Seen, slices
from kdistill.stages.job import Job
from kdistill.teachers import Live

#: so long no answers are kept back until all of a part are there
PATIENCE_SECONDS = 5


def answers(
    job: Job, signal: Live, samples: Tensor, stop: object = False
) -> Iterator[list[tuple[Seen, Tensor]]]:
    """Ask about all views of `samples` (positions in the transfer set, int64), until any rank is to `stop`.

    Yields after each batch what is finished with it: samples as they were seen, and the logits `[D, K]` of their D
    different images, on the CPU.
    """
    size, device = job.config.soft_targets.batch_size, job.engine.device
    shown = AllViews(job.transfer_set.to(device), job.teacher_views, job.identity.teacher_views)
    pending = Pending()

    def images() -> Iterator[Tensor]:
        for seen in shown.read(slices(samples, shown.part_size(size))):
            pending.asked.append(seen)
            yield seen.images

    def results() -> Iterator[tuple[Tensor, ...]]:
        nothing = job.first_images(1)[:0] if signal.together else None
        for batch in ranks.in_step(in_batches(images(), size), stop):
            if batch is not None:
                yield (signal.logits(batch),)
            elif nothing is not None:
                yield (signal.logits(nothing),)  # as the others ask about theirs
            else:
                yield ()

    for result in job.engine.fetched(results()):
        pending.answered.extend(result)
        yield list(pending.finished())
    if rest := list(pending.finished(at_once=True)):
        yield rest


class Pending:
    """Samples that were asked about, in their order, and the answers so far."""

    def __init__(self) -> None:
        self.asked: deque[Seen] = deque()
        self.answered: list[Tensor] = []
        self._clock = time.monotonic()

    def finished(self, at_once: bool = False) -> Iterator[tuple[Seen, Tensor]]:
        """Take out the parts that are answered; of one that takes long, or `at_once`, the samples that are."""
        count = sum(map(len, self.answered))
        while self.asked and len(self.asked[0]) <= count:
            seen = self.asked.popleft()
            count -= len(seen)
            yield seen, self._take(len(seen))
        if count and (at_once or time.monotonic() - self._clock > PATIENCE_SECONDS):
            seen, self.asked[0] = self.asked[0].cut(count)
            yield seen, self._take(len(seen))

    def _take(self, count: int) -> Tensor:
        self._clock = time.monotonic()
        rows = torch.cat(self.answered) if self.answered else torch.empty(0, 0)
        self.answered = [rows[count:]]
        return rows[:count]


def in_batches(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The rows of all pieces, `size` at a time; the last may be fewer."""
    kept: list[Tensor] = []
    for piece in pieces:
        kept.append(piece)
        if sum(map(len, kept)) > size:
            *full, rest = torch.cat(kept).split(size)
            yield from full
            kept = [rest]
    if kept:
        yield torch.cat(kept)
