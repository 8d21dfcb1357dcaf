"""Replayable augmentation: view `v` of sample `i` is a pure function of `(seed, v, i)`.

A soft target that was stored for a view stays right only if the same view can be shown again later, so no
generator state is involved: each sample's random numbers are a hash of its own counters, in integers alone.
Batch size, order, worker count and device change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

# The constants of splitmix64, as signed numbers (Steele, Lea, Flood 2014: Fast splittable pseudorandom
# number generators).
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64

# First part of every key, so that what is drawn with one seed for several purposes has nothing in common.
VIEWS, ORDER, CUT = 1, 2, 3
RESIZED_CROP, RANDAUGMENT, JITTER, ERASE = 5, 6, 7, 8  # data.mixing has 4

# Random fractions are integers below 2**FRACTION: scaled to n values, they are uniform to n parts in 2**24.
FRACTION = 24


def random_bits(index: Tensor, *key: int) -> Tensor:
    """Return 64 random bits for each index, a pure function of `(key, index)`.

    `index` is int64 of any shape; the result has its shape and device. Each part of `key` is below 2**63.
    """
    return _mix(index * _GOLDEN + _state_of(*key))


@lru_cache(maxsize=1024)
def _state_of(*key: int) -> int:
    # the same for all steps of an epoch, and a dozen small operations to find
    state = torch.zeros((), dtype=torch.int64)
    for part in key:
        state = _mix(state + _GOLDEN + part)
    return int(state)


def random_fractions(index: Tensor, count: int, *key: int) -> Tensor:
    """Return `count` independent numbers for each index, int64 `[count, *index.shape]` in `0..2**24 - 1`.

    A pure function of `(key, index)`, whose first numbers do not depend on `count`.
    """
    start = random_bits(index, *key)
    counters = torch.arange(1, count + 1, device=index.device).view(-1, *[1] * index.ndim)
    return _shift_right(_mix(start + counters * _GOLDEN), 64 - FRACTION)


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finalizer: every input bit moves every output bit with probability near 1/2."""
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # `>>` on int64 copies the sign bit; a mixing function needs zeros there.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


class Change(Protocol):
    """A change of images that is drawn for each by itself: a pure function of `(seed, view, index)`."""

    def __call__(self, images: Tensor, indices: Tensor, seed: int, view: int) -> Tensor:
        """Return changed images, uint8 `[N, C, H, W]` as given, for the samples `indices`, int64 `[N]`."""
        ...


class Windows:
    """Images with room for all their windows: each, and its mirror image, is one piece of memory, copied at once.

    A piece goes from the window's first pixel to its last, with the ends of rows that do not belong to it: on CPU
    twice as fast as a position for every pixel.
    """

    def __init__(self, images: Tensor, crop: int, mirrored: bool) -> None:
        """`images`: `[n, C, H, W]`, which get `crop` black pixels on every side; `mirrored`: also the other way."""
        n, channels, height, width = images.shape
        self._crop, self._shape = crop, images.shape
        high, wide = height + 2 * crop, width + 2 * crop
        padded = images.new_zeros(1 + mirrored, n, channels, high, wide)
        inner = padded[..., crop : crop + height, crop : crop + width]
        inner[0] = images
        if mirrored:
            inner[1] = images.flip(3)
        self._wide, self._area = wide, high * wide
        self._length = (height - 1) * wide + width
        self._pieces = padded.as_strided((max(0, padded.numel() - self._length + 1), self._length), (1, 1))

    @staticmethod
    def bytes(images: Tensor, crop: int, mirrored: bool) -> int:
        """What they take of memory."""
        n, channels, height, width = images.shape
        return (
            (1 + mirrored) * n * channels * (height + 2 * crop) * (width + 2 * crop) * images.element_size()
        )

    def take(self, rows: Tensor, down: Tensor, right: Tensor, flipped: Tensor) -> Tensor:
        """Return windows `[N, C, H, W]` of the images at `rows`: offsets int64 `[N]`, whether flipped bool `[N]`."""
        n, channels, height, width = self._shape
        right = torch.where(flipped, 2 * self._crop - right, right)  # in the mirror image
        planes = (rows + n * flipped)[:, None] * channels + torch.arange(channels, device=rows.device)
        firsts = planes * self._area + (down * self._wide + right)[:, None]
        pieces = self._pieces.index_select(0, firsts.flatten())
        strides = (channels * self._length, self._length, self._wide, 1)
        return pieces.as_strided((len(rows), channels, height, width), strides).contiguous()


@dataclass(frozen=True)
class Views:
    """Zero padding by `crop` pixels, a random window of the original size, a flip with probability 1/2.

    `crop=0` and `flip=False` leave the images alone. The changes in `then` follow, in their order.
    """

    seed: int
    crop: int
    flip: bool
    then: tuple[Change, ...] = ()

    def __call__(self, images: Tensor, indices: Tensor, view: int) -> Tensor:
        """Return view number `view` of `images`.

        `images`: uint8 `[N, C, H, W]`; `indices`: int64 `[N]`, the samples' positions in their split, on the
        same device. Returns uint8 `[N, C, H, W]`.
        """
        if self.crop or self.flip:
            rows = torch.arange(len(images), device=images.device)
            images = Windows(images, self.crop, self.flip).take(rows, *self.draw(indices, view))
        return self._changed(images, indices, view)

    def over(self, images: Tensor, room: int) -> Callable[[Tensor, int], Tensor]:
        """Return a function (positions, view) -> images in that view, of all the images of a split.

        Their windows are made once for all views, unless they take more than `room` bytes.
        """
        if not (self.crop or self.flip) or Windows.bytes(images, self.crop, self.flip) > room:
            return lambda indices, view: self(images.index_select(0, indices), indices, view)
        windows = Windows(images, self.crop, self.flip)
        return lambda indices, view: self._changed(
            windows.take(indices, *self.draw(indices, view)), indices, view
        )

    @property
    def windows(self) -> int | None:
        """How many different windows an image has, mirror images among them; None where views differ in more."""
        return None if self.then else (2 * self.crop + 1) ** 2 * (1 + self.flip)

    def different(self, count: int) -> float:
        """How many different images `count` views of one image are, on average."""
        # each one differs from all before it with the probability that those missed its window
        return sum((1 - 1 / self.windows) ** before for before in range(count)) if self.windows else count

    def window(self, indices: Tensor, view: int) -> Tensor:
        """Return the number of the window that each sample's view is, int64 `[N]` in `0..windows - 1`."""
        down, right, flipped = self.draw(indices, view)
        side = 2 * self.crop + 1
        return (flipped * side + down) * side + right

    def cut(self, images: Tensor, rows: Tensor, windows: Tensor) -> Tensor:
        """Return the windows of these numbers of the images at `rows`, both int64 `[N]`."""
        side = 2 * self.crop + 1
        down, right, flipped = windows // side % side, windows % side, windows >= side * side
        return Windows(images, self.crop, self.flip).take(rows, down, right, flipped)

    def draw(self, indices: Tensor, view: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the window's offsets down and right, int64 `[N]` in `0..2 * crop`, and flips, bool `[N]`."""
        bits = random_bits(indices, VIEWS, self.seed, view)
        # Separate bits of one hash are independent; 24 of them, scaled, are uniform to 1 in 10^5.
        down = ((bits & 0xFFFFFF) * (2 * self.crop + 1)) >> 24
        right = (((bits >> 24) & 0xFFFFFF) * (2 * self.crop + 1)) >> 24
        flipped = bits < 0 if self.flip else torch.zeros_like(bits, dtype=torch.bool)
        return down, right, flipped

    def _changed(self, images: Tensor, indices: Tensor, view: int) -> Tensor:
        for change in self.then:
            images = change(images, indices, self.seed, view)
        return images
