"""Changes of colours, one amount for each image: brightness, contrast, saturation, hue, and those of RandAugment.

Each is what torchvision's function of that name does, but worked out in integers and rounded, so that a result is
the same on every device and in every batch; torchvision cuts off, so the two differ by up to two levels of 255.
`images` are uint8 `[N, C, H, W]` of one channel (grey) or three (red, green, blue), as is the result. A `factor`,
int64 `[N]`, is in units of 1 / ONE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdistill.data.inputs import luma
from kdistill.data.views import FRACTION, JITTER, random_fractions

ONE = 1 << 16

#: what an image becomes by a whole number of its own, int64 `[N]`
Operation = Callable[[Tensor, Tensor], Tensor]


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: factor 0 is black, 1 the image."""
    return _blend(images, images.new_zeros(1, 1, 1, 1), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean of the image's grey, rounded as Pillow does."""
    grey = _grey(images).flatten(1)
    mean = (2 * grey.sum(1) + grey.shape[1]) // (2 * grey.shape[1])
    return _blend(images, mean.view(-1, 1, 1, 1), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's grey; grey images stay."""
    return images if images.shape[1] == 1 else _blend(images, luma(images), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the border stays, as images of 2 pixels do."""
    height, width = images.shape[2:]
    if min(height, width) <= 2:
        return images
    pixels = images.int()
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    inner = pixels[:, :, 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = _blend(inner, (2 * total + 13) // 26, factor)
    return result


def hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by a share of the whole circle, of either sign; grey images stay.

    In HSV a hue is a place on a ring of six sectors. A turn moves it along; the largest and the smallest of red,
    green and blue stay as they are, and the sector says which is which.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().unbind(1)
    low, high = images.amin(1).int(), images.amax(1).int()
    span = high - low
    # where the largest is red, green or blue: how far the hue is ahead of that colour, in sectors of ONE
    is_red, is_green = high == red, high == green
    ahead = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    start = torch.where(is_red, 0, torch.where(is_green, 2 * ONE, 4 * ONE))
    place = torch.div(ahead * ONE, span.clamp(min=1), rounding_mode="floor").add_(start)
    place = place.add_(6 * factor.int().view(-1, 1, 1)).remainder_(6 * ONE)
    change = (span * (place & (ONE - 1))).add_(ONE // 2).bitwise_right_shift_(16)
    rising, falling = low + change, high - change
    levels = torch.stack([high, falling, low, rising], dim=1)
    # of red, green, blue in each sector: 0 the largest, 1 falling, 2 the smallest, 3 rising
    order = torch.tensor([[0, 1, 2, 2, 3, 0], [3, 0, 0, 1, 2, 2], [2, 2, 3, 0, 0, 1]], device=images.device)
    return levels.gather(1, order[:, (place >> 16).long()].transpose(0, 1)).to(torch.uint8)


def posterize(images: Tensor, bits: int) -> Tensor:
    """Keep the highest `bits` bits, 0 to 8, of each level."""
    return images & (0xFF << (8 - bits) & 0xFF)


def solarize(images: Tensor, threshold: int) -> Tensor:
    """Invert levels of at least `threshold`."""
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to 0..255; one of a single level stays."""
    low, high = (ends.int() for ends in (images.amin((2, 3), True), images.amax((2, 3), True)))
    span = high - low
    stretched = (images.int() - low) * 255 // span.clamp(min=1)
    return torch.where(span > 0, stretched, images.int()).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Equalise each channel's histogram, by Pillow's formula; one of too few pixels or a single level stays."""
    levels = images.flatten(2).long()
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    below = counts.cumsum(2) - counts
    of_highest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - of_highest) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(2, levels), levels).to(torch.uint8).view(images.shape)


def each_by_its_own(
    images: Tensor, chosen: Tensor, operations: Sequence[Operation], numbers: Tensor
) -> Tensor:
    """Apply to each image the operation chosen for it, int64 `[N]`, with its number, int64 `[N]`.

    The images are sorted by operation, so that each operation runs once, on all images that chose it.
    """
    order = chosen.argsort()
    counts = chosen.bincount(minlength=len(operations)).tolist()
    parts = zip(operations, images[order].split(counts), numbers[order].split(counts), strict=True)
    return torch.cat([operation(part, number) for operation, part, number in parts])[order.argsort()]


@dataclass(frozen=True)
class Jitter:
    """Random brightness, contrast, saturation and hue, one after another in an order drawn for each image.

    As torchvision's `ColorJitter` has it: factors are uniform in 1 - x to 1 + x, and the hue turns by a share of
    the circle uniform in -hue to hue. None leaves a property alone, and changes no draw of the others.
    """

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None

    def __call__(self, images: Tensor, indices: Tensor, seed: int, view: int) -> Tensor:
        """See `kdistill.data.views.Change`."""
        factors, order = self.draw(indices, seed, view)
        operations = [
            operation
            for operation, reach in zip((brightness, contrast, saturation, hue), self._reaches, strict=True)
            if reach is not None
        ]
        for chosen in order:
            images = each_by_its_own(images, chosen, operations, factors.gather(0, chosen[None]).squeeze(0))
        return images

    def draw(self, indices: Tensor, seed: int, view: int) -> tuple[Tensor, Tensor]:
        """Return factors of the properties in use, int64 `[properties, N]`, and their order, of the same shape."""
        drawn = random_fractions(indices, 8, JITTER, seed, view).view(4, 2, -1)
        factors, turns = [], []
        for (fraction, turn), reach, centre in zip(drawn, self._reaches, (ONE, ONE, ONE, 0), strict=True):
            if reach is not None:
                whole = round(reach * ONE)
                factors.append(centre - whole + (fraction * (2 * whole + 1) >> FRACTION))
                turns.append(turn)
        return torch.stack(factors), torch.stack(turns).argsort(dim=0, stable=True)

    @property
    def _reaches(self) -> tuple[float | None, ...]:
        return self.brightness, self.contrast, self.saturation, self.hue


def _grey(images: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else luma(images)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """`other` at factor 0, the image at ONE, beyond it above; rounded, and kept within 0..255."""
    other = other.int()
    # in place: for small images, fresh memory costs more than the arithmetic
    blended = (images.int() - other).mul_(factor.int().view(-1, 1, 1, 1))
    return blended.add_((other << 16) + 0x8000).bitwise_right_shift_(16).clamp_(0, 255).byte()
