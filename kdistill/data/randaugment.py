"""RandAugment: some of fourteen operations, drawn for each image, all of one magnitude."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kdistill.data import colour
from kdistill.data.geometry import Move, moved, rotation
from kdistill.data.views import FRACTION, RANDAUGMENT, random_fractions

#: operations to draw from
OPERATIONS = 14
#: magnitudes go from 0 to this
HIGHEST = 30


@dataclass(frozen=True)
class RandAugment:
    """`operations` of the fourteen one after another, each drawn with replacement; `magnitude` is 0 to 30.

    E. D. Cubuk, B. Zoph, J. Shlens, Q. V. Le, "RandAugment: Practical automated data augmentation with a reduced
    search space", 2019, arXiv 1909.13719. Operations, ranges and nearest-pixel moves are those of torchvision's
    `RandAugment`; what a move uncovers is black. Saturation leaves grey images alone.
    """

    operations: int
    magnitude: int

    def __call__(self, images: Tensor, indices: Tensor, seed: int, view: int) -> Tensor:
        """See `kdistill.data.views.Change`."""
        table = list(self.table(images.shape[2], images.shape[3]).values())
        for chosen, sign in zip(*self.draw(indices, seed, view), strict=True):
            images = colour.each_by_its_own(images, chosen, table, sign)
        return images

    def draw(self, indices: Tensor, seed: int, view: int) -> tuple[Tensor, Tensor]:
        """Return the operations' numbers, int64 `[operations, N]`, and their signs: 0 for minus, 1 for plus."""
        drawn = random_fractions(indices, 2 * self.operations, RANDAUGMENT, seed, view)
        return drawn[::2] * OPERATIONS >> FRACTION, drawn[1::2] >> (FRACTION - 1)

    def table(self, height: int, width: int) -> dict[str, colour.Operation]:
        """What each operation does to images of a size, given their signs; in the order of their numbers."""
        level = self.magnitude / HIGHEST
        shear, degrees = 0.3 * level, 30 * level
        threshold = -(-255 * (HIGHEST - self.magnitude) // HIGHEST)
        right, down = (int(150 / 331 * length * level) for length in (width, height))
        return {
            "identity": lambda images, sign: images,
            # around the upper left corner, as in AutoAugment
            "shear_x": _signed(lambda s: Move(xy=s * shear, x=s * shear * height / 2)),
            "shear_y": _signed(lambda s: Move(yx=s * shear, y=s * shear * width / 2)),
            "translate_x": _signed(lambda s: Move(x=-s * right)),
            "translate_y": _signed(lambda s: Move(y=-s * down)),
            "rotate": _signed(lambda s: rotation(s * degrees)),
            "brightness": self._blended(colour.brightness),
            "saturation": self._blended(colour.saturation),
            "contrast": self._blended(colour.contrast),
            "sharpness": self._blended(colour.sharpness),
            "posterize": lambda images, sign: colour.posterize(images, 8 - round(4 * level)),
            "solarize": lambda images, sign: colour.solarize(images, threshold),
            "autocontrast": lambda images, sign: colour.autocontrast(images),
            "equalize": lambda images, sign: colour.equalize(images),
        }

    def _blended(self, operation: colour.Operation) -> colour.Operation:
        change = round(0.9 * self.magnitude / HIGHEST * colour.ONE)
        return lambda images, sign: operation(images, colour.ONE + (2 * sign - 1) * change)


def _signed(move: Callable[[int], Move]) -> colour.Operation:
    moves = (move(-1), move(1))
    return lambda images, sign: moved(images, moves, sign)
