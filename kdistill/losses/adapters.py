"""What makes features of two networks comparable: one shape for all kinds, and modules between widths and sizes.

Features are maps `[N, C, H, W]`, tokens `[N, L, D]` or vectors `[N, D]`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdistill.errors import ConfigError

#: largest kernel that shrinks a map by sliding inside it; a larger difference is pooled away
LARGEST_KERNEL = 5
#: smallest variance that VID can reach
SMALLEST_VARIANCE = 1e-5


def as_map(features: Tensor) -> Tensor:
    """Features as a map `[N, C, H, W]`: a vector has one pixel, a square number of tokens makes a square.

    A class token, which stands first where one more than a square is there, is left out.

    Raises ConfigError for another number of tokens, or of axes.
    """
    match features.shape:
        case (_, _, _, _):
            return features
        case (_, _):
            return features[:, :, None, None]
        case (_, tokens, _):
            for extra in (0, 1):
                side = math.isqrt(tokens - extra)
                if side and side**2 == tokens - extra:
                    return features[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    raise ConfigError(
        f"features of shape {list(features.shape)} make no map [N, C, H, W]: expected a map, a vector,"
        " or a square number of tokens with or without a class token; choose other layers"
    )


def as_vector(features: Tensor) -> Tensor:
    """Features as a vector `[N, D]`: the mean over pixels or tokens. Raises ConfigError for other shapes."""
    match features.dim():
        case 2:
            return features
        case 3:
            return features.mean(1)
        case 4:
            return features.mean((2, 3))
    raise ConfigError(
        f"features of shape {list(features.shape)} make no vector [N, D]: expected a map, tokens or a vector;"
        " choose other layers"
    )


class ConvRegressor(nn.Module):
    """The student's map `[N, C_s, H_s, W_s]` at the teacher's shape: convolution, batch norm, ReLU (FitNets).

    Maps twice as large are halved by a 3 x 3 convolution of stride 2, maps half as large are doubled by a
    transposed 4 x 4 one, slightly larger maps shrink inside a kernel up to 5 x 5; others are averaged down or
    interpolated up, then a 1 x 1 convolution adapts the channels. `nonnegative`: the teacher's map is, so a ReLU comes
    last, as published; the output would otherwise never reach the teacher's negative values.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size, nonnegative: bool) -> None:
        super().__init__()
        (c_in, height, width), (c_out, *size) = student[1:], teacher[1:]
        self.size = (size[0], size[1])
        kernel = (1 + height - size[0], 1 + width - size[1])
        self.resize = False
        self.conv: nn.Module
        if (height, width) == (2 * size[0], 2 * size[1]):
            self.conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False)
        elif (2 * height, 2 * width) == self.size:
            self.conv = nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=False)
        elif min(kernel) >= 1 and max(kernel) <= LARGEST_KERNEL:
            self.conv = nn.Conv2d(c_in, c_out, kernel, bias=False)
        else:
            self.resize = True
            self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.norm = nn.BatchNorm2d(c_out)
        self.activation = nn.ReLU() if nonnegative else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        if self.resize:
            maps = _resized(maps, self.size)
        adapted: Tensor = self.activation(self.norm(self.conv(maps)))
        return adapted


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average down along the axes that are too long, then interpolate up along those too short."""
    height, width = maps.shape[2:]
    maps = F.adaptive_avg_pool2d(maps, (min(height, size[0]), min(width, size[1])))
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


class GaussianRegressor(nn.Module):
    """VID's guess at the teacher's map: a mean from three 1 x 1 convolutions, and one variance per channel."""

    def __init__(self, c_in: int, c_out: int, initial_variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(c_in, c_out, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 1, bias=False),
        )
        above = max(initial_variance - SMALLEST_VARIANCE, SMALLEST_VARIANCE)
        self.raw_variance = nn.Parameter(torch.full((c_out,), above + math.log(-math.expm1(-above))))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, C_s, H, W]` -> mean `[N, C_t, H, W]`, variance `[C_t]`."""
        return self.mean(maps), F.softplus(self.raw_variance) + SMALLEST_VARIANCE


class ABF(nn.Module):
    """ReviewKD's attention-based fusion of a level with what came from the deeper level.

    Two gates per pixel, each in (0, 1), say how much of either goes into the sum. `fuse=False`: the deepest level.
    """

    def __init__(self, c_in: int, c_mid: int, c_out: int, fuse: bool) -> None:
        super().__init__()
        reduce = nn.Conv2d(c_in, c_mid, 1, bias=False)
        expand = nn.Conv2d(c_mid, c_out, 3, padding=1, bias=False)
        for conv in (reduce, expand):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.reduce = nn.Sequential(reduce, nn.BatchNorm2d(c_mid))
        self.gates = nn.Sequential(nn.Conv2d(2 * c_mid, 2, 1), nn.Sigmoid()) if fuse else None
        self.expand = nn.Sequential(expand, nn.BatchNorm2d(c_out))

    def forward(self, maps: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """The level's output `[N, C_out, *size]`, and what goes to the next level, `[N, C_mid, *size]`.

        `maps`: `[N, C_in, H, W]`; `deeper`: what the deeper level gave, `[N, C_mid, h, w]`.
        """
        fused: Tensor = self.reduce(maps)
        if self.gates is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            gates = self.gates(torch.cat([fused, deeper], dim=1))
            fused = fused * gates[:, :1] + deeper * gates[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.expand(fused), fused
