"""What a network is shown: grey and resized, pixel for pixel as Pillow does it."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from kdistill.data.inputs import InputView
from kdistill.errors import ConfigError

FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")


def photographs() -> Tensor:
    """Two photographs, cut to uint8 `[2, 3, 320, 320]`."""
    return torch.stack(
        [torch.from_numpy(np.array(image[60:380, 100:420])) for image in load_sample_images().images]
    ).permute(0, 3, 1, 2)


def pillow(images: Tensor, size: int) -> Tensor:
    def resize(image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        return np.array(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, -1)

    return torch.stack([torch.from_numpy(resize(i.permute(1, 2, 0).numpy())) for i in images]).permute(
        0, 3, 1, 2
    )


def test_nothing_to_do_is_the_same_tensor() -> None:
    """No copy: also for grey images made grey, and for the size that they have."""
    images = photographs()
    assert InputView(None, False)(images) is images
    assert InputView(320, False)(images) is images
    assert InputView(None, True)(images[:, :1].contiguous()).shape == (2, 1, 320, 320)
    grey = images[:, :1].contiguous()
    assert InputView(320, True)(grey) is grey


def test_luma_by_hand() -> None:
    """0.299 R + 0.587 G + 0.114 B: 76, 150 and 29 for the pure colours; white and black stay."""
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255] * 3, [0] * 3], dtype=torch.uint8)
    grey = InputView(None, True)(colours.view(5, 3, 1, 1))

    assert grey.dtype == torch.uint8
    assert grey.shape == (5, 1, 1, 1)
    assert grey.flatten().tolist() == [76, 150, 29, 255, 0]


def test_grey_is_exactly_pillow_s() -> None:
    """Every pixel of two photographs, and 50,000 random colours."""
    random = torch.randint(0, 256, (1, 3, 250, 200), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    for images in (photographs(), random):
        for image, grey in zip(images, InputView(None, True)(images), strict=True):
            expected = np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
            assert np.array_equal(grey[0].numpy(), expected)


@pytest.mark.parametrize("size", [1, 32, 64, 97, 224, 319, 400, 640])
def test_resizing_photographs_is_exactly_pillow_s(size: int) -> None:
    """Smaller, slightly smaller, larger: every pixel."""
    images = photographs()
    assert torch.equal(InputView(size, False)(images), pillow(images, size))


def test_resizing_images_that_are_not_square() -> None:
    """Each axis by itself."""
    images = photographs()[:, :, :50, :171]
    assert torch.equal(InputView(64, False)(images), pillow(images, 64))


@pytest.mark.skipif(not FASHION.exists(), reason="Fashion-MNIST is not installed")
@pytest.mark.parametrize("size", [14, 20, 32, 56])
def test_resizing_fashion_mnist_is_exactly_pillow_s(size: int) -> None:
    """Grey images of clothes."""
    pixels = gzip.decompress(FASHION.read_bytes())[16:]
    images = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(-1, 1, 28, 28)[:200].copy())
    assert torch.equal(InputView(size, False)(images), pillow(images, size))


def test_resizing_is_torch_s_antialiased_interpolation() -> None:
    """An independent implementation in floating point agrees within one grey level (it rounds once, not twice)."""
    images = photographs()
    for size in (97, 640):
        expected = F.interpolate(images.double(), (size, size), mode="bilinear", antialias=True)
        assert (InputView(size, False)(images) - expected).abs().max() <= 1.01


def test_resizing_by_hand() -> None:
    """A constant stays; a step in the middle of a row, halved: weights 3/7, 3/7, 1/7. Halves go up."""
    constant = torch.full((1, 1, 8, 8), 137, dtype=torch.uint8)
    assert (InputView(3, False)(constant) == 137).all()
    step = torch.tensor([0, 0, 70, 70], dtype=torch.uint8).expand(1, 1, 4, 4)
    # left: (3 * 0 + 3 * 0 + 1 * 70) / 7 = 10; right: (1 * 0 + 3 * 70 + 3 * 70) / 7 = 60
    assert InputView(2, False)(step)[0, 0].tolist() == [[10, 60], [10, 60]]
    halves = torch.tensor([0, 1], dtype=torch.uint8).expand(1, 1, 2, 2)
    assert InputView(1, False)(halves).item() == 1  # 0.5


@pytest.mark.parametrize("view", [InputView(24, False), InputView(24, True), InputView(60, True)])
def test_pixels_do_not_depend_on_the_batch(view: InputView) -> None:
    """Alone, in other company, in another memory layout: the same pixels."""
    images = torch.randint(0, 256, (33, 3, 40, 48), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    whole = view(images)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))

    for size in (1, 7, 16):
        parts = torch.cat([view(images[part]) for part in order.split(size)])
        assert torch.equal(parts, whole[order])
    assert torch.equal(view(images.contiguous(memory_format=torch.channels_last)), whole)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [None, 20])
def test_shape_tells_what_comes_out(channels: int, grey: bool, size: int | None) -> None:
    """Before any image is there: channels and (height, width)."""
    view = InputView(size, grey)
    images = torch.zeros(2, channels, 12, 16, dtype=torch.uint8)
    out_channels, image_size = view.shape(channels, (12, 16))

    assert view(images).shape == (2, out_channels, *image_size)
    assert image_size == ((12, 16) if size is None else (20, 20))
    assert out_channels == (1 if grey else channels)


@pytest.mark.parametrize("view", [InputView(16, False), InputView(None, True), InputView(1, True)])
def test_numbers_are_no_images(view: InputView) -> None:
    """Rows of floats cannot be resized or made grey; the message names the settings."""
    numbers = torch.rand(4, 10, 1, 1)
    with pytest.raises(ConfigError) as error:
        view(numbers)
    assert str(error.value) == (
        "input.size and input.grey are for images, but this data set's inputs are numbers; leave out both"
    )
    assert InputView(None, False)(numbers) is numbers


def test_no_grey_of_four_channels() -> None:
    """What is red, green and blue of them is unknown."""
    with pytest.raises(ConfigError) as error:
        InputView(None, True).shape(4, (8, 8))
    assert str(error.value) == (
        "grey=true: expected images of 3 channels (red, green, blue) or 1, got 4; set grey=false"
    )
    assert InputView(None, False).shape(4, (8, 8)) == (4, (8, 8))
