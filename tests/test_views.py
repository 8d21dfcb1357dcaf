"""Replayable augmentation: view v of sample i is a pure function of (seed, v, i)."""

import pytest
import torch
from torch import Tensor

from kdistill.data import views as module
from kdistill.data.geometry import Erase
from kdistill.data.views import _GOLDEN, ORDER, VIEWS, Views, Windows, _mix, random_bits


def images_of(n: int, channels: int = 1, height: int = 7, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def chi_square(cells: Tensor, count: int) -> float:
    """Distance of the frequencies of `count` kinds of cells from uniform."""
    expected = len(cells) / count
    return float(((cells.bincount(minlength=count) - expected) ** 2 / expected).sum())


def bound(count: int) -> float:
    """Five standard deviations above the mean of chi-square."""
    return (count - 1) + 5 * (2 * (count - 1)) ** 0.5


def test_mixing_function_is_splitmix64() -> None:
    """The published first outputs of splitmix64 with seed 0."""
    counters = torch.tensor([1, 2, 3]) * _GOLDEN
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % 2**64 for value in _mix(counters).tolist()] == published


def test_draws_are_pinned() -> None:
    """Stored soft targets rely on these values: a change of them needs a new format number."""
    down, right, flipped = Views(seed=0, crop=2, flip=True).draw(torch.arange(8), view=3)
    assert down.tolist() == [2, 2, 2, 2, 3, 3, 4, 1]
    assert right.tolist() == [0, 4, 0, 1, 3, 4, 3, 1]
    assert flipped.tolist() == [True, True, True, False, False, True, False, False]


def test_view_is_a_window_of_the_padded_image_then_flipped() -> None:
    """Pixel for pixel what a loop over samples would cut out, on images that are not square."""
    images, indices = images_of(64, channels=3), torch.arange(100, 164)
    views = Views(seed=1, crop=2, flip=True)
    out = views(images, indices, view=5)
    down, right, flipped = (draw.tolist() for draw in views.draw(indices, 5))
    assert out.dtype == torch.uint8
    assert out.shape == images.shape
    for i in range(64):
        padded = torch.zeros(3, 11, 13, dtype=torch.uint8)
        padded[:, 2:9, 2:11] = images[i]
        window = padded[:, down[i] : down[i] + 7, right[i] : right[i] + 9]
        assert torch.equal(out[i], window.flip(-1) if flipped[i] else window)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
def test_same_pixels_for_any_batch_size_and_order(batch_size: int) -> None:
    """Which samples share a batch, and in which order, changes no pixel."""
    images, views = images_of(200), Views(seed=3, crop=1, flip=True)
    whole = views(images, torch.arange(200), view=2)
    for order in (torch.arange(200), torch.arange(200).flip(0)):
        for indices in order.split(batch_size):
            assert torch.equal(views(images[indices], indices, view=2), whole[indices])


def test_memory_layout_does_not_matter() -> None:
    """Channels-last and strided images give the same pixels."""
    images, indices, views = images_of(16, channels=3), torch.arange(16), Views(seed=3, crop=2, flip=True)
    expected = views(images, indices, 0)
    assert torch.equal(views(images.contiguous(memory_format=torch.channels_last), indices, 0), expected)
    assert torch.equal(views(images.repeat_interleave(2, 0)[::2], indices, 0), expected)


def test_global_random_state_is_neither_used_nor_moved() -> None:
    """Views do not depend on manual_seed, and do not disturb what does."""
    images, indices, views = images_of(8), torch.arange(8), Views(seed=0, crop=2, flip=True)
    torch.manual_seed(1)
    first, state = views(images, indices, 0), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(views(images, indices, 0), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_augmentation_leaves_images_alone() -> None:
    """crop=0 and flip=false: the images themselves."""
    images = images_of(4)
    assert torch.equal(Views(seed=0, crop=0, flip=False)(images, torch.arange(4), 1), images)


def test_flip_alone_keeps_or_mirrors() -> None:
    """Without a crop each image is itself or its mirror image, and both occur."""
    images = images_of(50)
    out = Views(seed=0, crop=0, flip=True)(images, torch.arange(50), 0)
    kept = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(-1)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert 10 < int(kept.sum()) < 40


def test_crop_alone_never_flips() -> None:
    """A row that rises stays rising."""
    images = torch.arange(1, 10, dtype=torch.uint8).expand(50, 1, 7, 9)
    out = Views(seed=0, crop=1, flip=False)(images, torch.arange(50), 0)
    middle = out[:, :, 3, 1:8].int()
    assert bool((middle.diff(dim=-1) == 1).all())


@pytest.mark.parametrize("crop", [1, 2, 4])
def test_offsets_and_flips_are_uniform_and_independent(crop: int) -> None:
    """All (down, right, flip) combinations are equally frequent over 50,000 samples."""
    width = 2 * crop + 1
    down, right, flipped = Views(seed=7, crop=crop, flip=True).draw(torch.arange(50_000), view=0)
    assert (int(down.min()), int(down.max())) == (0, 2 * crop)
    assert (int(right.min()), int(right.max())) == (0, 2 * crop)
    cells = (down * width + right) * 2 + flipped
    assert chi_square(cells, width * width * 2) < bound(width * width * 2)


@pytest.mark.parametrize(
    ("other_seed", "other_view", "shift"),
    [(7, 1, 0), (8, 0, 0), (0, 7, 0), (7, 0, 1)],
    ids=["next view", "next seed", "seed and view swapped", "next sample"],
)
def test_neighbouring_draws_are_independent(other_seed: int, other_view: int, shift: int) -> None:
    """A sample's draw says nothing about its draw in another view or seed, nor about the next sample's."""
    indices = torch.arange(50_000)
    down, right, flipped = Views(seed=7, crop=1, flip=True).draw(indices, view=0)
    here = (down * 3 + right) * 2 + flipped
    down, right, flipped = Views(seed=other_seed, crop=1, flip=True).draw(indices + shift, view=other_view)
    there = (down * 3 + right) * 2 + flipped
    assert chi_square(here * 18 + there, 18 * 18) < bound(18 * 18)


def test_streams_of_one_seed_differ() -> None:
    """Views and sample orders of the same seed share no random numbers, and their bits are uncorrelated."""
    views, orders = (random_bits(torch.arange(10_000), stream, 5, 0) for stream in (VIEWS, ORDER))
    assert not bool((views == orders).any())
    agreeing = sum(int((((views ^ orders) >> bit) & 1 == 0).sum()) for bit in range(64))
    # 640,000 coin flips have a standard deviation of 400.
    assert abs(agreeing - 320_000) < 2_000


@pytest.mark.parametrize(("crop", "flip"), [(0, False), (2, False), (0, True), (3, True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("ready", [True, False], ids=["ready", "too large"])
def test_images_made_ready_give_the_same_pixels(
    crop: int, flip: bool, dtype: torch.dtype, ready: bool
) -> None:
    """Views over a whole split are those of the images at any positions, also repeated ones, in any order."""
    images = images_of(30, channels=3).to(dtype)
    views = Views(seed=3, crop=crop, flip=flip, then=(Erase(3),))
    show = views.over(images, room=Windows.bytes(images, crop, flip) - (not ready))
    positions = torch.tensor([29, 3, 3, 0, 17])

    for view in (0, 4):
        shown = show(positions, view)
        assert torch.equal(shown, views(images[positions], positions, view))
        assert shown.is_contiguous()
    assert show(positions[:0], 0).shape == (0, 3, 7, 9)


def test_images_that_are_too_large_are_not_made_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the very byte that their windows take: twice the padded images where they are flipped."""
    made: list[int] = []

    class Counted(Windows):
        def __init__(self, images: Tensor, crop: int, mirrored: bool) -> None:
            super().__init__(images, crop, mirrored)
            made.append(len(images))

    monkeypatch.setattr(module, "Windows", Counted)
    images, few = images_of(10, height=8, width=8), torch.arange(4)
    for flip, needed in ((False, 10 * 100), (True, 2 * 10 * 100)):
        views = Views(seed=0, crop=1, flip=flip)
        assert Windows.bytes(images, 1, flip) == needed
        views.over(images, needed - 1)(few, 0)
        ready = views.over(images, needed)
        ready(few, 0), ready(few, 1)
    assert made == [4, 10, 4, 10]
