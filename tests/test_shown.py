"""Batches of augmented images: read one by one, shown several at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kdistill.data import Batch, Shown, Split, Views, shown, views
from kdistill.data.splits import ArraySplit, batches_of, slices
from kdistill.training_data import TrainingData

IMAGES = torch.randint(0, 256, (11, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
VIEWS = Views(seed=1, crop=2, flip=True)


@dataclass(frozen=True)
class Streamed:
    """Reads its images as files are read, batch by batch; those in `broken` cannot be decoded."""

    held: ArraySplit
    broken: tuple[int, ...] = ()
    skipped: int = 0

    @property
    def labels(self) -> Tensor:
        return self.held.labels

    @property
    def ids(self) -> Sequence[str]:
        return self.held.ids

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.held.image_shape

    def __len__(self) -> int:
        return len(self.held)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        return batches_of(self, slices(order, batch_size))

    def read(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        for part in parts:
            readable = part[~torch.isin(part, torch.tensor(self.broken))]
            yield Batch(self.held.images[readable], self.held.labels[readable], readable)

    def to(self, device: torch.device) -> "Streamed":
        return self


HELD = ArraySplit(IMAGES, torch.arange(11))
SPLITS = [HELD, Streamed(HELD)]


@pytest.mark.parametrize(
    ("split", "room"),
    [(HELD, 2**28), (HELD, 0), (SPLITS[1], 0)],
    ids=["ready", "in memory", "streamed"],
)
def test_batches_shown_together_are_those_shown_alone(
    split: Split, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small batches are augmented in groups: in any group, also beside one without samples, nothing differs."""
    monkeypatch.setattr("kdistill.data.shown.READY_BYTES", room)
    parts = [*torch.arange(11).flip(0).split(4), torch.arange(0)]
    reader = Shown(split, VIEWS, Views(seed=2, crop=1, flip=True))

    together = list(reader.read(parts, 3))
    alone = [next(reader.read([part], 3)) for part in parts]
    assert [batch.indices.tolist() for batch in together] == [part.tolist() for part in parts]
    for one, other in zip(together, alone, strict=True):
        at = one.indices
        assert torch.equal(one.images, VIEWS(IMAGES[at], at, 3))
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, at)
        if len(one):
            assert one.teacher_images is not None
            assert torch.equal(one.teacher_images, Views(seed=2, crop=1, flip=True)(IMAGES[at], at, 3))


@pytest.mark.parametrize("split", SPLITS, ids=["in memory", "streamed"])
def test_batches_know_what_they_were_read_with(split: Split) -> None:
    """All batches of a group name the same samples, and their place among them; a batch alone, or its part, none."""
    first, second, third = Shown(split, VIEWS).read(torch.arange(10).split(4), 0)

    assert first.together is second.together is third.together is not None
    assert first.together.indices.tolist() == list(range(10))
    assert first.together.sizes == [4, 4, 2]
    assert [batch.place for batch in (first, second, third)] == [0, 1, 2]
    assert first[1:].together is None
    assert next(Shown(split, VIEWS).read([torch.arange(4)], 0)).together is None


def test_what_cannot_be_decoded_is_left_out_of_its_batch() -> None:
    """The others keep their views; a batch of which nothing is left is there, and empty."""
    split = Streamed(HELD, broken=(1, 4, 5))
    batches = list(Shown(split, VIEWS).read(torch.arange(8).split(2), 0))

    assert [batch.indices.tolist() for batch in batches] == [[0], [2, 3], [], [6, 7]]
    assert torch.equal(batches[1].images, VIEWS(IMAGES[2:4], torch.arange(2, 4), 0))
    (alone,) = Shown(split, VIEWS).read([torch.tensor([4, 5])], 0)
    assert len(alone) == 0


@pytest.mark.parametrize("split", SPLITS, ids=["in memory", "streamed"])
def test_nothing_is_read_of_no_parts(split: Split) -> None:
    """As on the last of many starts of a run that was cut off behind an epoch's last step."""
    assert list(Shown(split, VIEWS).read([], 0)) == []


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
def test_batches_are_shown_in_groups_of_some_size(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit `AT_ONCE_BYTES`; a larger batch by itself; none waits for more than its group."""
    monkeypatch.setattr(shown, "AT_ONCE_BYTES", 2 * 4 * 64)
    seen: list[int] = []

    class Counted(Views):
        def draw(self, indices: Tensor, view: int) -> tuple[Tensor, Tensor, Tensor]:
            seen.append(len(indices))
            return super().draw(indices, view)

    held = ArraySplit(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.zeros(40))
    reader = Shown(Streamed(held) if streamed else held, Counted(0, 1, True))
    assert len(next(reader.read(torch.arange(20).split(4), 0))) == 4
    assert seen == [8]
    list(reader.read(torch.arange(20).split(4), 0))
    list(reader.read(torch.arange(40).split(20), 0))
    assert seen == [8, 8, 8, 4, 20, 20]


def test_only_what_is_asked_for_is_made_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of all images are made for training, on its first batch; not beyond the room."""
    made: list[int] = []

    class Counted(views.Windows):
        def __init__(self, images: Tensor, crop: int, mirrored: bool) -> None:
            super().__init__(images, crop, mirrored)
            made.append(len(images))

    monkeypatch.setattr(views, "Windows", Counted)
    training = TrainingData(HELD, VIEWS, order_seed=0)
    assert made == []
    list(training.batches(0, 4)), list(training.batches(1, 4))
    assert made == [11]
    monkeypatch.setattr(shown, "READY_BYTES", 2 * 11 * 12 * 12 - 1)
    list(TrainingData(HELD, VIEWS, order_seed=0).batches(0, 4))
    assert made == [11, 8]  # a group of two batches by itself
