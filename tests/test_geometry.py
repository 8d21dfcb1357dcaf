"""Windows, moves and squares: values by hand, Pillow's and torchvision's results, and where they are drawn."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from kdistill.data.geometry import Erase, Move, ResizedCrop, _stretched, moved, rotation

SIZES = (24, 20)


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Parts of two photographs, uint8 `[20, 3, 24, 20]`."""
    images = torch.from_numpy(np.array(load_sample_images().images)).permute(0, 3, 1, 2)
    return torch.cat([images[:, :, row : row + 24, 200:220] for row in range(0, 400, 40)]).contiguous()


def whole(value: int, count: int) -> Tensor:
    return torch.full((count,), value)


# --- resized crop ---


def test_stretching_by_hand() -> None:
    """Pixels 0, 100 to four: at -1/4, 1/4, 3/4, 5/4 of the way; one pixel alone fills the row."""
    row = torch.tensor([[7, 0, 100, 9]], dtype=torch.uint8).view(1, 1, 1, 4).expand(2, 1, 1, 4)
    stretched = _stretched(3, row, torch.tensor([1, 3]), torch.tensor([2, 1]))

    assert stretched[0].flatten().tolist() == [0, 25, 75, 100]
    assert stretched[1].flatten().tolist() == [9, 9, 9, 9]
    assert stretched.dtype == torch.uint8


def test_resized_crops_are_pillow_s(photographs: Tensor) -> None:
    """Each image's window, cut out and resized by Pillow: the same pixels; torchvision's differ by one level."""
    change, indices = ResizedCrop((0.1, 1.0), (0.5, 2.0)), torch.arange(20)
    out = change(photographs, indices, seed=3, view=1)
    windows = torch.stack(change.draw(indices, SIZES, 3, 1)).T.tolist()
    for image, result, (top, left, height, width) in zip(photographs, out, windows, strict=True):
        window = image.permute(1, 2, 0).numpy()[top : top + height, left : left + width]
        resized = Image.fromarray(window).resize((20, 24), Image.Resampling.BILINEAR)
        assert np.array_equal(result.permute(1, 2, 0).numpy(), np.array(resized))
        other = TF.resized_crop(image, top, left, height, width, list(SIZES))
        assert int((result.int() - other.int()).abs().max()) <= 1


def test_the_whole_image_stays(photographs: Tensor) -> None:
    """A share of 1 in the image's own shape is the image."""
    assert torch.equal(
        ResizedCrop((1, 1), (20 / 24, 20 / 24))(photographs, torch.arange(20), 0, 0), photographs
    )


def test_windows_are_pinned() -> None:
    """Stored soft targets rely on these values: a change of them needs a new format number."""
    drawn = ResizedCrop((0.25, 1.0), (0.75, 4 / 3)).draw(torch.arange(4), (28, 28), seed=0, view=3)

    assert torch.stack(drawn).tolist() == [[1, 5, 4, 1], [7, 2, 0, 2], [20, 17, 19, 27], [21, 19, 16, 25]]


def test_shares_and_shapes_are_uniform() -> None:
    """Areas lie in the range, evenly; shapes too, on the scale of logarithms, and wide ones are as frequent as high."""
    scale, ratio = (0.1, 0.4), (0.5, 2.0)
    _, _, height, width = ResizedCrop(scale, ratio).draw(torch.arange(20_000), (200, 200), seed=1, view=0)
    shares = height * width / 200**2
    shapes = (width / height).log() / np.log(2)

    for values, (low, high) in ((shares, scale), (shapes, (-1, 1))):
        quantiles = values.quantile(torch.linspace(0, 1, 5))
        assert quantiles.tolist() == pytest.approx(np.linspace(low, high, 5).tolist(), abs=0.02)


def test_places_are_uniform_within_the_image() -> None:
    """Every offset from 0 to the last possible one, each about as often."""
    top, left, height, width = ResizedCrop((0.25, 0.25), (1, 1)).draw(torch.arange(9_000), (4, 4), 0, 0)

    assert set(height.tolist()) == set(width.tolist()) == {2}
    assert (top * 3 + left).bincount(minlength=9).tolist() == pytest.approx([1000] * 9, abs=150)


def test_a_window_that_never_fits_is_the_largest_one() -> None:
    """The whole area twice as wide as high does not fit a square: half of it is taken, over its whole width."""
    top, left, height, width = ResizedCrop((1, 1), (2, 2)).draw(torch.arange(50), (8, 8), 0, 0)

    assert set(height.tolist()) == {4}
    assert set(width.tolist()) == {8}
    assert set(left.tolist()) == {0}
    assert int(top.min()) >= 0
    assert int(top.max()) <= 4


# --- moves ---


def test_moves_by_hand() -> None:
    """A shift by one pixel, a quarter turn counter-clockwise, and the image itself; black comes in."""
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(3, 1, 2, 2)
    out = moved(image, (Move(), Move(x=1), rotation(90)), torch.tensor([0, 1, 2]))

    assert out.flatten(1).tolist() == [[1, 2, 3, 4], [2, 0, 4, 0], [2, 4, 1, 3]]


def test_rotation_is_torchvision_s(photographs: Tensor) -> None:
    """But for the few pixels whose source lies on a border between two."""
    for degrees in (-30, -9, 17):
        out = moved(photographs, (rotation(degrees),), whole(0, 20))
        assert float((out != TF.rotate(photographs, degrees)).float().mean()) < 0.005


# --- erased squares ---


def test_erased_square_by_hand() -> None:
    """Black around the drawn centre, and nothing else; at the border a part of the square is left."""
    images = torch.full((64, 2, 5, 6), 9, dtype=torch.uint8)
    out = Erase(3)(images, torch.arange(64), seed=0, view=0)
    for image in out:
        black = image == 0
        rows, columns = black[0].any(1).nonzero().flatten(), black[0].any(0).nonzero().flatten()
        box = torch.zeros(5, 6, dtype=torch.bool)
        box[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = True
        assert torch.equal(black, box.expand(2, 5, 6))
        assert 2 <= len(rows) <= 3
        assert 2 <= len(columns) <= 3
    assert set(out.unique().tolist()) == {0, 9}


def test_centres_are_uniform() -> None:
    """A square of one pixel hits each of twelve about as often."""
    out = Erase(1)(torch.ones(12_000, 1, 3, 4, dtype=torch.uint8), torch.arange(12_000), 0, 0)

    assert (out == 0).flatten(1).sum(1).unique().tolist() == [1]
    assert (out == 0).sum(0).flatten().tolist() == pytest.approx([1000] * 12, abs=150)
