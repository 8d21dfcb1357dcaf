"""RandAugment: torchvision's operations at torchvision's strengths, drawn for each image by itself."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment as Theirs

from kdistill.data.randaugment import RandAugment

#: our operation -> torchvision's
NAMES = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "saturation": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Parts of two photographs, uint8 `[6, 3, 32, 28]`."""
    photographs = torch.from_numpy(np.array(load_sample_images().images)).permute(0, 3, 1, 2)
    return torch.cat([photographs[:, :, row : row + 32, 300:328] for row in (50, 200, 350)]).contiguous()


def theirs(name: str, magnitude: int, sign: int, images: Tensor) -> Tensor:
    """What torchvision does at a magnitude; the sign counts for operations that have one."""
    transform = Theirs(1, magnitude)
    values, signed = transform._AUGMENTATION_SPACE[NAMES[name]]
    levels = values(31, *images.shape[2:])
    level = 0.0 if levels is None else float(levels[magnitude]) * (1 if sign or not signed else -1)
    return transform._apply_image_or_video_transform(
        images, NAMES[name], level, InterpolationMode.NEAREST, transform._fill
    )


def test_the_fourteen_operations() -> None:
    """Those of torchvision, each once."""
    assert {NAMES[name] for name in RandAugment(1, 9).table(8, 8)} == set(Theirs._AUGMENTATION_SPACE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("magnitude", [0, 3, 9, 14, 30])
def test_operations_are_torchvision_s(name: str, magnitude: int, images: Tensor) -> None:
    """Colours within two levels; moves but for pixels whose source lies on a border between two."""
    operation = RandAugment(1, magnitude).table(32, 28)[name]
    for sign in (0, 1):
        ours, other = operation(images, torch.full((6,), sign)), theirs(name, magnitude, sign, images)
        if name in GEOMETRIC:
            assert float((ours != other).float().mean()) < 0.01
        else:
            assert int((ours.int() - other.int()).abs().max()) <= 2


def test_images_are_changed_by_what_was_drawn_for_them(images: Tensor) -> None:
    """Two operations one after the other, image by image."""
    change, indices = RandAugment(2, 9), torch.arange(6)
    out = change(images, indices, 1, 2)
    table = list(change.table(32, 28).values())
    chosen, signs = change.draw(indices, 1, 2)
    for i in range(6):
        image = images[[i]]
        for step in range(2):
            image = table[chosen[step, i]](image, signs[step, [i]])
        assert torch.equal(out[[i]], image)


def test_draws_are_uniform_and_nested() -> None:
    """All pairs of operation and sign are about as frequent; a second operation leaves the first as it was."""
    chosen, signs = RandAugment(2, 9).draw(torch.arange(28_000), 0, 0)
    once, sign = RandAugment(1, 9).draw(torch.arange(28_000), 0, 0)
    for step in range(2):
        counts = (chosen[step] * 2 + signs[step]).bincount(minlength=28)
        assert counts.tolist() == pytest.approx([1000] * 28, abs=160)
    assert torch.equal(chosen[:1], once)
    assert torch.equal(signs[:1], sign)
    assert (chosen[0] * 14 + chosen[1]).bincount(minlength=196).min() > 80


def test_grey_images_have_no_saturation(images: Tensor) -> None:
    """The operation is there, so that draws do not depend on the channels, and does nothing."""
    grey = images[:, :1].contiguous()
    assert torch.equal(RandAugment(1, 30).table(32, 28)["saturation"](grey, torch.ones(6).long()), grey)
    assert RandAugment(3, 9)(grey, torch.arange(6), 0, 0).shape == grey.shape
