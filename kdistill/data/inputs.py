"""What a network is shown of the data set's images: another size, or grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kdistill.errors import ConfigError

#: ITU-R BT.601 luma of red, green and blue, in 1/65536; they sum to 65536
_LUMA = (19595, 38470, 7471)
#: weights of pixels are integers, in units of 2**-_BITS: 255 of them fit 31 bits
_BITS = 22


@dataclass(frozen=True)
class InputView:
    """Makes colour images grey, and resizes them to `size` x `size` pixels; None and False leave them alone.

    Grey is what Pillow's `convert("L")` gives, ITU-R BT.601 luma; resizing is its bilinear filter with
    antialiasing. Both are worked out in integers, so that an image's pixels are the same on every device and in
    every batch, and those that Pillow gives.
    """

    size: int | None
    grey: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Return uint8 `[N, C', size, size]` of uint8 images `[N, C, H, W]`; `images` itself if nothing is to do.

        Raises ConfigError for inputs that are no images but numbers, float `[N, D, 1, 1]`.
        """
        if images.is_floating_point() and (self.size is not None or self.grey):
            raise ConfigError(
                "input.size and input.grey are for images, but this data set's inputs are numbers;"
                " leave out both"
            )
        channels, image_size = self.shape(images.shape[1], (images.shape[2], images.shape[3]))
        if channels != images.shape[1]:
            images = luma(images)
        if image_size != tuple(images.shape[2:]):
            images = _resized(images, image_size)
        return images

    def shape(self, channels: int, image_size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """Return channels and (height, width) after this view; ConfigError if there is no grey of so many."""
        if self.grey and channels not in (1, 3):
            raise ConfigError(
                f"grey=true: expected images of 3 channels (red, green, blue) or 1, got {channels};"
                " set grey=false"
            )
        return (
            1 if self.grey else channels,
            image_size if self.size is None else (self.size, self.size),
        )

    def of_channels(self, values: Sequence[float]) -> tuple[float, ...]:
        """Means, or standard deviations, of each channel after this view, by those before.

        The standard deviation of grey is that of channels which go up and down together, its largest.
        """
        if not (self.grey and len(values) == 3):
            return tuple(values)
        return (sum(share * value for share, value in zip(_LUMA, values, strict=True)) / 65536,)


def luma(images: Tensor) -> Tensor:
    """Grey of colour images: uint8 `[N, 1, H, W]` of `[N, 3, H, W]`, to the pixel what Pillow gives."""
    red, green, blue = images.to(torch.int32).unbind(1)
    weighted = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    # adding half before cutting off rounds, as Pillow does
    return ((weighted + 0x8000) >> 16).to(torch.uint8).unsqueeze(1)


def _resized(images: Tensor, image_size: tuple[int, int]) -> Tensor:
    # Along the rows first, rounded, then down the columns, as Pillow does: two rounded passes, not one.
    return _along(2, _along(3, images, image_size[1]), image_size[0])


def _along(axis: int, images: Tensor, size: int) -> Tensor:
    """Resize one axis to `size` pixels, in integers: the same on every device."""
    length = images.shape[axis]
    if length == size:
        return images
    first, weights = _triangles(length, size, images.device)
    total = torch.full((), 1 << (_BITS - 1), dtype=torch.int32, device=images.device)  # half: rounds
    for tap in range(weights.shape[1]):
        # beyond the border weights are zero, whichever pixel they meet
        pixels = images.index_select(axis, (first + tap).clamp(max=length - 1))
        total = total + pixels * (weights[:, tap] if axis == 3 else weights[:, tap, None])
    return (total >> _BITS).to(torch.uint8)


@cache
def _triangles(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First source pixel, int64 `[size]`, and weights, int32 `[size, taps]`, of each new pixel.

    The weights fall linearly from the new pixel's centre to one pixel away, of the coarser of the two grids.
    """
    scale = length / size
    reach = max(scale, 1.0)
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    first = (centre - reach + 0.5).clamp(min=0).long()
    end = (centre + reach + 0.5).clamp(max=length).long()
    source = first[:, None] + torch.arange(int((end - first).max()))
    weights = (1 - (source + 0.5 - centre[:, None]).abs() / reach).clamp(min=0) * (source < end[:, None])
    shares = weights / weights.sum(1, keepdim=True)
    return first.to(device), (shares * 2**_BITS + 0.5).to(device, torch.int32)
