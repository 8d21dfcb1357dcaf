"""Wide residual networks. This file needs torch and nothing else: a copy goes with every such student.

S. Zagoruyko and N. Komodakis, Wide residual networks, 2016, arXiv 1605.07146: batch norm and ReLU come
before each convolution, and a shortcut that changes the shape starts after the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

#: name -> (depth 6n + 4, how many times as wide as the stem the first stage is)
NAMES: dict[str, tuple[int, int]] = {
    f"wrn_{depth}_{widen}": (depth, widen)
    for depth, widen in ((16, 1), (16, 2), (16, 4), (28, 10), (40, 1), (40, 2), (40, 4))
}


def build(
    name: str, params: Mapping[str, Any], *, classes: int, channels: int, image_size: tuple[int, int]
) -> WideResNet:
    """Build a network by name; `params["width"]` is the channels before widening, None for 16.

    Any `image_size` fits.
    """
    depth, widen = NAMES[name]
    stem = params["width"] or 16
    width = stem * widen
    return WideResNet(
        blocks=(depth - 4) // 6,
        stem=stem,
        stages=(width, 2 * width, 4 * width),
        classes=classes,
        channels=channels,
    )


class PreActBlock(nn.Module):
    """Pre-activated 3x3 convolutions: `[N, C_in, H, W]` -> `[N, C_out, H / stride, W / stride]`."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        h = F.relu(self.bn2(self.conv1(h)))
        out: Tensor = self.conv2(h) + skip
        return out


class WideResNet(nn.Module):
    """`[N, C, H, W]` -> logits `[N, K]`; stages after the first halve height and width."""

    def __init__(self, blocks: int, stem: int, stages: tuple[int, ...], classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        c_in = stem
        for index, c_out in enumerate(stages):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(PreActBlock(c_in, c_out, stride=2 if index > 0 and block == 0 else 1))
                c_in = c_out
            self.stages.append(stage)
        self.norm = nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(c_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.norm(self.stages(self.stem(images)))))
        return logits
