"""Changes of where pixels are: resized windows, shears, shifts and rotations, erased squares. Integers alone.

All arithmetic on pixels and positions is of integers, so a result is the same on every device and in every batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.data.views import ERASE, FRACTION, RESIZED_CROP, random_fractions

#: windows that are tried before the largest one is taken, as torchvision does
_TRIES = 10
#: areas and shapes of windows come in so many steps, worked out once on the CPU
_STEPS = 1024
#: lengths and coefficients are in units of 2**-_UNIT
_UNIT = 16
#: weights of pixels are in units of 2**-_BITS, as in data.inputs
_BITS = 22


@dataclass(frozen=True)
class ResizedCrop:
    """A random window of the image, stretched to the image's size: Inception's augmentation.

    C. Szegedy et al., "Going Deeper with Convolutions", 2015, arXiv 1409.4842. As in torchvision's
    `RandomResizedCrop`: the share of the area is uniform in `scale`, the logarithm of width / height uniform in
    that of `ratio`; the first of ten windows that lie within the image is taken, or else the largest of a shape
    in `ratio`. Its place is uniform. Bilinear, to the pixel as Pillow resizes the window.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]

    def __call__(self, images: Tensor, indices: Tensor, seed: int, view: int) -> Tensor:
        """See `kdistill.data.views.Change`."""
        top, left, height, width = self.draw(indices, (images.shape[2], images.shape[3]), seed, view)
        return _stretched(2, _stretched(3, images, left, width), top, height)

    def draw(self, indices: Tensor, image_size: tuple[int, int], seed: int, view: int) -> tuple[Tensor, ...]:
        """Return the windows' top, left, height and width in pixels, int64 `[N]` each."""
        drawn = random_fractions(indices, 2 + 2 * _TRIES, RESIZED_CROP, seed, view)
        sides, shapes, inverse = _tables(self.scale, self.ratio, image_size, indices.device)
        side = sides[drawn[2::2] * _STEPS >> FRACTION]
        shape = drawn[3::2] * _STEPS >> FRACTION
        half = 1 << (2 * _UNIT - 1)
        # the last try is the one that always fits
        heights, widths = (
            F.pad((side * table[shape] + half) >> (2 * _UNIT), (0, 0, 0, 1), value=last)
            for table, last in zip((inverse, shapes), _largest(image_size, self.ratio), strict=True)
        )
        fits = (heights > 0) & (widths > 0) & (heights <= image_size[0]) & (widths <= image_size[1])
        first = fits.int().argmax(0, keepdim=True)
        height, width = (tries.gather(0, first).squeeze(0) for tries in (heights, widths))
        top = drawn[0] * (image_size[0] - height + 1) >> FRACTION
        left = drawn[1] * (image_size[1] - width + 1) >> FRACTION
        return top, left, height, width


@cache
def _tables(
    scale: tuple[float, float], ratio: tuple[float, float], image_size: tuple[int, int], device: torch.device
) -> tuple[Tensor, ...]:
    """Square roots of areas, of ratios, and of the ratios' inverses, by step: int64 `[_STEPS]`."""
    steps = [(step + 0.5) / _STEPS for step in range(_STEPS)]
    pixels = image_size[0] * image_size[1]
    low, high = map(math.log, ratio)
    sides = [math.sqrt(pixels * (scale[0] + (scale[1] - scale[0]) * step)) for step in steps]
    shapes = [math.exp((low + (high - low) * step) / 2) for step in steps]
    tables = (sides, shapes, [1 / shape for shape in shapes])
    return tuple(torch.tensor([round(v * 2**_UNIT) for v in table], device=device) for table in tables)


def _largest(image_size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int]:
    """Height and width of the largest window of a shape in `ratio`."""
    height, width = image_size
    return (
        max(1, min(height, round(width / ratio[0]))),
        max(1, min(width, round(height * ratio[1]))),
    )


def _stretched(axis: int, images: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Take the `length` pixels from `start` of each image along an axis, int64 `[N]`, to the axis's whole length."""
    size = images.shape[axis]
    start, length = start[:, None], length[:, None]
    # The new pixels' centres, from the centre of the window's first pixel, in units of 1 / (2 size) pixels.
    centres = (2 * torch.arange(size, device=images.device) + 1) * length - size
    centres = torch.minimum(centres.clamp(min=0), 2 * size * (length - 1))
    before = centres // (2 * size)
    after = torch.minimum(before + 1, length - 1)
    share = (((centres - before * 2 * size) << _BITS) + size) // (2 * size)
    view = (-1, 1, 1, size) if axis == 3 else (-1, 1, size, 1)
    # in place: for small images, fresh memory costs more than the arithmetic
    near = images.gather(axis, (start + before).view(view).expand(images.shape)).int()
    far = images.gather(axis, (start + after).view(view).expand(images.shape)).int()
    far.sub_(near).mul_(share.int().view(view))
    return near.bitwise_left_shift_(_BITS).add_(far).add_(1 << (_BITS - 1)).bitwise_right_shift_(_BITS).byte()


@dataclass(frozen=True)
class Move:
    """An affine map from each pixel of the result to its source, both as offsets from the image's centre.

    Source x = `xx` x + `xy` y + `x`, source y = `yx` x + `yy` y + `y`, in pixels.
    """

    xx: float = 1.0
    xy: float = 0.0
    x: float = 0.0
    yx: float = 0.0
    yy: float = 1.0
    y: float = 0.0


def rotation(degrees: float) -> Move:
    """Counter-clockwise around the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return Move(xx=cos, xy=-sin, yx=sin, yy=cos)


def moved(images: Tensor, moves: tuple[Move, ...], chosen: Tensor) -> Tensor:
    """Move each image by the one of `moves` that is chosen for it, int64 `[N]`: nearest pixels, black outside.

    `images`: uint8 `[N, C, H, W]`, as the result.
    """
    n, channels, height, width = images.shape
    source = _sources(moves, height, width, images.device)[chosen]
    source = source.view(n, 1, height * width).expand(n, channels, height * width)
    return F.pad(images.flatten(2), (0, 1)).gather(2, source).view(images.shape)


@cache
def _sources(moves: tuple[Move, ...], height: int, width: int, device: torch.device) -> Tensor:
    """Position of each pixel's source in the image, row by row, int64 `[moves, H * W]`; H * W outside."""
    across = 2 * torch.arange(width) + 1 - width  # twice the offset from the centre
    down = (2 * torch.arange(height) + 1 - height)[:, None]
    positions = []
    for move in moves:
        xx, xy, x, yx, yy, y = (
            round(value * 2**_UNIT) for value in (move.xx, move.xy, 2 * move.x, move.yx, move.yy, 2 * move.y)
        )
        column = (xx * across + xy * down + x + (width << _UNIT)) >> (_UNIT + 1)
        row = (yx * across + yy * down + y + (height << _UNIT)) >> (_UNIT + 1)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        positions.append(torch.where(inside, row * width + column, height * width).flatten())
    return torch.stack(positions).to(device)


@dataclass(frozen=True)
class Erase:
    """Cutout: a black square of `size` pixels in each image, around a uniform pixel, cut at the border.

    T. DeVries, G. W. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
    arXiv 1708.04552. Random erasing (arXiv 1708.04896) draws size, shape and whether to erase at all besides.
    """

    size: int

    def __call__(self, images: Tensor, indices: Tensor, seed: int, view: int) -> Tensor:
        """See `kdistill.data.views.Change`."""
        drawn = random_fractions(indices, 2, ERASE, seed, view)
        down, across = (
            _within(drawn[axis] * length >> FRACTION, self.size, length)
            for axis, length in enumerate(images.shape[2:])
        )
        return images.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0)


def _within(centre: Tensor, size: int, length: int) -> Tensor:
    """Whether each of `length` pixels lies within `size` pixels around a centre: bool `[N, length]`."""
    offset = torch.arange(length, device=centre.device) - centre[:, None] + size // 2
    return (offset >= 0) & (offset < size)
