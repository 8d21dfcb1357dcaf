"""All views of samples at once: each image read once, each different window shown once, nothing else changed."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdistill import make_soft_targets, train_teacher
from kdistill.artifacts import Work
from kdistill.config.schema import Config
from kdistill.data import AllViews, Batch, Seen, Views
from kdistill.data.colour import Jitter
from kdistill.data.decoding import ImageFiles
from kdistill.data.geometry import Erase
from kdistill.data.splits import ArraySplit
from kdistill.shards import Shard
from kdistill.stages.answers import Pending, in_batches
from kdistill.stages.job import Job
from kdistill.stages.soft_targets import _generate
from tests.cases.teachers import write_images


def split_of(n: int, channels: int = 1, side: int = 5) -> ArraySplit:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(1, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)
    return ArraySplit(images, torch.arange(n))


@dataclass(frozen=True)
class Unreadable:
    """A split some of whose images cannot be decoded, and how often each of the others was read."""

    split: ArraySplit
    missing: frozenset[int]
    read_positions: list[int]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.split.image_shape

    def read(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        kept = [torch.tensor([i for i in part.tolist() if i not in self.missing]).long() for part in parts]
        for batch in self.split.read(kept):
            self.read_positions.extend(batch.indices.tolist())
            yield batch


CHANGES = [
    Views(seed=1, crop=1, flip=True),
    Views(seed=1, crop=2, flip=False),
    Views(seed=1, crop=0, flip=True),
    Views(seed=1, crop=0, flip=False),
    Views(seed=1, crop=1, flip=True, then=(Erase(2),)),
    Views(seed=1, crop=0, flip=False, then=(Jitter(brightness=0.4), Erase(1))),
]


@pytest.mark.parametrize("views", CHANGES, ids=lambda views: f"{views.crop}-{views.flip}-{len(views.then)}")
@pytest.mark.parametrize("missing", [(), (0, 4, 9), tuple(range(4))])
def test_each_view_shows_what_it_shows_alone(views: Views, missing: tuple[int, ...]) -> None:
    """Bit for bit, with images that cannot be decoded; and each image is read once."""
    split = split_of(10)
    source = Unreadable(split, frozenset(missing), [])
    parts = torch.arange(10).split(4)
    found = list(AllViews(source, views, 7).read(parts))

    there = [i for i in range(10) if i not in missing]
    assert source.read_positions == there
    assert [seen.part.tolist() for seen in found] == [part.tolist() for part in parts]
    assert torch.cat([seen.indices for seen in found]).tolist() == there
    for seen in found:
        for view, which in enumerate(seen.which):
            alone = views(split.images[seen.indices], seen.indices, view)
            assert torch.equal(seen.images[which], alone)


def test_nothing_is_shown_twice() -> None:
    """20 views of 3 images without symmetry: as many images as there are different ones, of a sample side by side."""
    split, views = split_of(3), Views(seed=0, crop=1, flip=True)
    (seen,) = AllViews(split, views, 20).read([torch.arange(3)])
    each = [
        torch.cat([views(split.images[i : i + 1], torch.tensor([i]), view) for view in range(20)])
        for i in range(3)
    ]
    counts = [len(images.unique(dim=0)) for images in each]

    assert len(seen) == len(seen.images.unique(dim=0)) == sum(counts) < 60
    for i, first in enumerate([0, counts[0], counts[0] + counts[1]]):
        assert seen.which[:, i].unique().tolist() == list(range(first, first + counts[i]))


def test_a_window_has_a_number_of_its_own() -> None:
    """Of crop 2 with flips, 50: as many pairs of offsets and flips as numbers, and cut back to the same pixels."""
    split, views = split_of(4, channels=3), Views(seed=5, crop=2, flip=True)
    indices = torch.arange(2000)
    down, right, flipped = views.draw(indices, 3)
    numbers = views.window(indices, 3)

    assert views.windows == 50
    assert numbers.unique().tolist() == list(range(50))
    drawn = torch.stack([down, right, flipped.long(), numbers], dim=1)
    assert len(drawn.unique(dim=0)) == 50
    rows = indices % 4
    shown = views.cut(split.images, rows, numbers)
    assert torch.equal(shown, views(split.images[rows], indices, 3))


@pytest.mark.parametrize(
    ("views", "count", "different"),
    [
        (Views(seed=0, crop=0, flip=False), 9, 1),
        (Views(seed=0, crop=0, flip=True), 2, 1.5),  # the second one is the other with probability 1/2
        (Views(seed=0, crop=1, flip=False), 1, 1),
        (Views(seed=0, crop=2, flip=True), 10, 50 * (1 - 0.98**10)),  # 9.146
        (CHANGES[4], 30, 30),
    ],
)
def test_how_many_differ(views: Views, count: int, different: float) -> None:
    """The mean over 3,000 samples is what is expected, to three standard errors or so."""
    shown = AllViews(split_of(3000, side=1), views, count)
    assert shown.different == pytest.approx(different)
    found = shown.read([torch.arange(3000)])
    assert sum(len(seen) for seen in found) / 3000 == pytest.approx(different, abs=0.05)


@pytest.mark.parametrize(
    ("shape", "views", "batch_size", "samples"),
    [
        ((1, 28, 28), 1, 128, 16 * 128),
        ((1, 28, 28), 10, 128, 223),  # 2,048 images; 9.146 of each
        ((3, 224, 224), 1, 128, 222),  # 2^25 numbers
        ((3, 224, 224), 30, 128, 9),  # 22.73 of each
        ((3, 2000, 2000), 1, 128, 128),  # one batch at least
        ((1, 28, 28), 100_000, 2, 1),  # one sample at least
    ],
)
def test_parts_by_hand(shape: tuple[int, int, int], views: int, batch_size: int, samples: int) -> None:
    """Sixteen batches of small images, fewer of large ones; crop 2 and flips."""
    split = ArraySplit(torch.empty(0, *shape, dtype=torch.uint8), torch.empty(0))
    assert AllViews(split, Views(seed=0, crop=2, flip=True), views).part_size(batch_size) == samples


# --- full batches, and back to samples ---


@pytest.mark.parametrize("sizes", [(), (0,), (1, 1, 1), (4, 4), (3, 0, 9, 1), (13,)])
def test_batches_are_full(sizes: tuple[int, ...]) -> None:
    """All rows in their order; only the last batch may be smaller."""
    rows = torch.arange(sum(sizes))
    batches = list(in_batches(rows.split(list(sizes)), 4))

    assert torch.equal(torch.cat([*batches, rows[:0]]), rows)
    assert [len(batch) for batch in batches[:-1]] == [4] * max(0, len(batches) - 1)


def shown(part: Sequence[int], counts: dict[int, int]) -> Seen:
    """Two views of the samples at `part`, of which those in `counts` are readable and show so many images."""
    which, first = [], 0
    for count in counts.values():
        which.append([first, first + count - 1])
        first += count
    images = torch.zeros(first, 1, 1, 1)
    return Seen(
        torch.tensor(part),
        torch.tensor(list(counts)).long(),
        images,
        torch.tensor(which).long().view(-1, 2).T,
    )


def finished(pending: Pending, at_once: bool = False) -> list[tuple[list[int], list[int], list[float]]]:
    return [
        (seen.part.tolist(), seen.indices.tolist(), logits.flatten().tolist())
        for seen, logits in pending.finished(at_once)
    ]


def test_parts_are_finished_when_all_is_answered() -> None:
    """Of two parts, the second with an image that cannot be decoded; the last answer ends the second."""
    pending = Pending()
    pending.asked.extend([shown([0, 1], {0: 2, 1: 1}), shown([2, 3], {3: 2})])
    pending.answered.append(torch.tensor([[0.0], [1.0]]))
    assert finished(pending) == []
    pending.answered.append(torch.tensor([[2.0], [3.0]]))
    assert finished(pending) == [([0, 1], [0, 1], [0, 1, 2])]
    pending.answered.append(torch.tensor([[4.0]]))
    assert finished(pending) == [([2, 3], [3], [3, 4])]
    assert finished(pending, at_once=True) == []


def test_a_part_without_a_readable_image_is_finished_unasked() -> None:
    pending = Pending()
    pending.asked.append(shown([0, 1], {}))
    assert finished(pending) == [([0, 1], [], [])]


def test_what_is_answered_of_a_part_is_not_kept_back_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples whose images are all answered, with those before them that cannot be decoded."""
    pending = Pending()
    pending.asked.append(shown([0, 1, 2, 3, 4], {1: 2, 2: 1, 4: 2}))
    pending.answered.append(torch.tensor([[0.0], [1.0]]))
    assert finished(pending) == []
    assert finished(pending, at_once=True) == [([0, 1], [1], [0, 1])]
    pending.answered.append(torch.tensor([[2.0], [3.0]]))
    monkeypatch.setattr("kdistill.stages.answers.PATIENCE_SECONDS", -1)
    assert finished(pending) == [([2, 3], [2], [2])]
    pending.answered.append(torch.tensor([[4.0]]))
    assert finished(pending) == [([4], [4], [3, 4])]


# --- soft targets of image files ---


@pytest.mark.parametrize("words", ["", "dataset.augment.erase=2"])
def test_files_are_decoded_once_for_all_views(
    images: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """As often for five views as for one; the same file as of images in memory."""
    root = write_images(tmp_path / "data", {"cat": 60, "dog": 160})
    decoded: Counter[int] = Counter()
    real = ImageFiles.decoded

    def counting(self: ImageFiles, index: int) -> Tensor:
        decoded[index] += 1
        return real(self, index)

    common = [*words.split(), "teacher.epochs=0", "soft_targets.dtype=float32"]
    train_teacher(images(root, *common))
    monkeypatch.setattr(ImageFiles, "decoded", counting)
    counts = []
    for views in (2, 1, 5):  # the first one measures the data as well
        decoded.clear()
        config = images(root, *common, f"soft_targets.views={views}", "device.memory_gb=0")
        from_files = make_soft_targets(config)
        counts.append(decoded.copy())
    assert counts[1] == counts[2]
    assert len(counts[1]) == 29

    in_memory = make_soft_targets(images(root, *common, "soft_targets.views=5", "force=true"))
    assert in_memory.digest == from_files.digest


def test_a_file_that_cannot_be_decoded_is_done_with(images: Callable[..., Config], tmp_path: Path) -> None:
    """Its rows stay empty, all others are written, and a run that goes on does not look at it again."""
    root = write_images(tmp_path / "data", {"cat": 60, "dog": 160})
    words = ("teacher.epochs=0", "device.memory_gb=0", "dataset.on_error=skip", "soft_targets.views=3")
    job = Job.open(images(root, *words))
    broken = root / job.transfer_set.ids[5]
    broken.write_bytes(broken.read_bytes()[:40])
    train_teacher(images(root, *words))
    job = Job.open(images(root, *words))
    work = Work(tmp_path / "made")
    work.folder.mkdir()
    _generate(job, job.require_teacher(), work)

    samples = len(job.transfer_set)
    at = list(job.transfer_set.ids).index(str(broken.relative_to(root)))
    empty = (np.load(work.folder / "logits.npy") == 0).all(axis=2)
    assert np.argwhere(empty).tolist() == [[view, at] for view in range(3)]
    assert len(Shard.cut(work.shared, samples).mine) == 0
