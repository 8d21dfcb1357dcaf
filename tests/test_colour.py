"""Colours: values by hand, torchvision's results within two levels, jitter's factors and order."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from sklearn.datasets import load_sample_images
from torch import Tensor

from kdistill.data import colour
from kdistill.data.colour import ONE, Jitter


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Parts of two photographs, and noise: uint8 `[8, 3, 32, 32]`."""
    photographs = torch.from_numpy(np.array(load_sample_images().images)).permute(0, 3, 1, 2)
    parts = [photographs[:, :, row : row + 32, 300:332] for row in (50, 200, 350)]
    noise = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return torch.cat([*parts, noise.to(torch.uint8)])


def factors(value: float, count: int) -> Tensor:
    return torch.full((count,), round(value * ONE))


def distance(ours: Tensor, theirs: Tensor) -> int:
    """Levels between the two, at most."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    return int((ours.int() - theirs.int()).abs().max())


def pixel(*levels: int) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8).view(1, len(levels), 1, 1)


# --- operations ---


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.73, 1.0, 1.3, 1.9])
def test_blends_are_torchvision_s(name: str, factor: float, images: Tensor) -> None:
    """Colour and grey, within two levels: torchvision cuts off where rounding is to the nearest."""
    for batch in (images, images[:, :1].contiguous()):
        ours = getattr(colour, name)(batch, factors(factor, len(batch)))
        assert distance(ours, getattr(TF, f"adjust_{name}")(batch, factor)) <= 2
        if factor == 1.0:
            assert torch.equal(ours, batch)


@pytest.mark.parametrize("turn", [-0.5, -0.3, -0.1, 0.0, 0.1, 0.25, 0.5])
def test_hue_is_torchvision_s(turn: float, images: Tensor) -> None:
    """Within a level, and no turn leaves every pixel as it is; so does grey."""
    assert distance(colour.hue(images, factors(turn, 8)), TF.adjust_hue(images, turn)) <= 1
    grey = images[:, :1].contiguous()
    assert torch.equal(colour.hue(grey, factors(turn, 8)), grey)
    if turn == 0:
        assert torch.equal(colour.hue(images, factors(0, 8)), images)


def test_histograms_are_torchvision_s(images: Tensor) -> None:
    """Equalising, posterising and solarising to the pixel; stretching within a level. Flat channels stay."""
    flat = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    for batch in (images, images[:, :1].contiguous(), flat, images[:, :, :4, :4].contiguous()):
        assert torch.equal(colour.equalize(batch), TF.equalize(batch))
        assert distance(colour.autocontrast(batch), TF.autocontrast(batch)) <= 1
        for bits in (0, 4, 7, 8):
            assert torch.equal(colour.posterize(batch, bits), TF.posterize(batch, bits))
        for threshold in (0, 128, 255):
            assert torch.equal(colour.solarize(batch, threshold), TF.solarize(batch, threshold))


def test_values_by_hand() -> None:
    """Half and double; towards grey; a third of the circle turns red to green; the ends of a channel."""
    two = torch.tensor([[100, 51]], dtype=torch.uint8).view(1, 1, 1, 2)
    half = factors(0.5, 1)

    assert colour.brightness(two, half).flatten().tolist() == [50, 26]
    assert colour.brightness(two, factors(3, 1)).flatten().tolist() == [255, 153]
    assert colour.contrast(two, half).flatten().tolist() == [88, 64]  # their mean is 75.5, rounded 76
    assert colour.saturation(pixel(255, 0, 0), half).flatten().tolist() == [166, 38, 38]  # grey is 76
    assert colour.hue(pixel(255, 0, 0), factors(1 / 3, 1)).flatten().tolist() == [0, 255, 0]
    assert colour.autocontrast(two).flatten().tolist() == [255, 0]
    assert colour.solarize(two, 100).flatten().tolist() == [155, 51]
    assert colour.posterize(pixel(0b10110111), 3).flatten().tolist() == [0b10100000]


def test_sharpness_by_hand() -> None:
    """A point of 130 in black, smoothed: 5/13 of it; the border, and images without an inside, stay."""
    image = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    image[..., 1, 1] = 130

    assert colour.sharpness(image, factors(0, 1))[0, 0].tolist() == [[0, 0, 0], [0, 50, 0], [0, 0, 0]]
    assert torch.equal(colour.sharpness(image[..., :2], factors(0, 1)), image[..., :2])


def test_each_image_by_its_own_operation(images: Tensor) -> None:
    """Image by image the same as the operation alone, in the images' order; an empty batch is one."""
    operations = [colour.brightness, colour.saturation, colour.contrast]
    chosen, amounts = torch.tensor([2, 0, 0, 1, 2, 1, 0, 2]), torch.arange(8) * (ONE // 4)
    out = colour.each_by_its_own(images, chosen, operations, amounts)
    for i in range(8):
        assert torch.equal(out[[i]], operations[chosen[i]](images[[i]], amounts[[i]]))
    assert len(colour.each_by_its_own(images[:0], chosen[:0], operations, amounts[:0])) == 0


# --- jitter ---


def test_jitter_is_its_operations_in_the_drawn_order(images: Tensor) -> None:
    """By hand, image by image, from the drawn factors and order."""
    jitter, indices = Jitter(0.4, 0.3, 0.2, 0.1), torch.arange(30, 38)
    drawn, order = jitter.draw(indices, 5, 2)
    out = jitter(images, indices, 5, 2)
    operations = [colour.brightness, colour.contrast, colour.saturation, colour.hue]
    for i in range(8):
        image = images[[i]]
        for number in order[:, i].tolist():
            image = operations[number](image, drawn[number, [i]])
        assert torch.equal(out[[i]], image)
    assert len(order.T.unique(dim=0)) > 3


def test_factors_are_uniform_and_orders_too() -> None:
    """1 - x to 1 + x, and -x to x for the hue; all 24 orders are about as frequent."""
    drawn, order = Jitter(1.0, 0.4, 0.2, 0.5).draw(torch.arange(24_000), 0, 0)
    for values, centre, reach in zip(drawn / ONE, (1, 1, 1, 0), (1.0, 0.4, 0.2, 0.5), strict=True):
        quantiles = values.quantile(torch.linspace(0, 1, 5)).tolist()
        assert quantiles == pytest.approx(np.linspace(centre - reach, centre + reach, 5).tolist(), abs=0.02)
    counts = {tuple(p): 0 for p in permutations(range(4))}
    for column in order.T.tolist():
        counts[tuple(column)] += 1
    assert list(counts.values()) == pytest.approx([1000] * 24, abs=160)


def test_a_property_changes_no_draw_of_another() -> None:
    """Brightness with and without contrast and hue: the same factors, and the same order of the two that stay."""
    indices = torch.arange(500)
    every, order = Jitter(0.4, 0.4, 0.4, 0.4).draw(indices, 0, 0)
    some, their_order = Jitter(brightness=0.4, hue=0.4).draw(indices, 0, 0)

    assert torch.equal(some, every[[0, 3]])
    first = (order == 0).int().argmax(0) > (order == 3).int().argmax(0)  # hue comes before brightness
    assert torch.equal(first, their_order[0] == 1)
