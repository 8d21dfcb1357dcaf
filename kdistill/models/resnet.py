"""ResNets for small images. This file needs torch and nothing else: a copy goes with every such student.

K. He et al., Deep residual learning for image recognition, 2015, arXiv 1512.03385: the nets of three stages of
section 4.2, and those of four stages of table 1 with a 3x3 stem that keeps the size, as is usual for CIFAR.
Where the shape changes, the shortcut is a 1x1 convolution with batch norm (option B), as is usual in distillation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

#: name -> (blocks of each stage, channels of the stem, channels of the first stage)
NAMES: dict[str, tuple[tuple[int, ...], int, int]] = {
    **{f"resnet{depth}": (((depth - 2) // 6,) * 3, 16, 16) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": ((1, 1, 1), 32, 64),
    "resnet32x4": ((5, 5, 5), 32, 64),
    "resnet18": ((2, 2, 2, 2), 64, 64),
    "resnet34": ((3, 4, 6, 3), 64, 64),
}


def build(
    name: str, params: Mapping[str, Any], *, classes: int, channels: int, image_size: tuple[int, int]
) -> ResNet:
    """Build a network by name; `params["width"]` is the first stage's channels, None for the published.

    The stem and the other stages scale with it. Any `image_size` fits.
    """
    blocks, stem, first = NAMES[name]
    width = params["width"] or first
    return ResNet(
        blocks=blocks,
        stem=max(1, width * stem // first),
        stages=tuple(width * 2**stage for stage in range(len(blocks))),
        classes=classes,
        channels=channels,
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `[N, C_in, H, W]` -> `[N, C_out, H / stride, W / stride]`."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        return F.relu(h + self.shortcut(x))


class ResNet(nn.Module):
    """`[N, C, H, W]` -> logits `[N, K]`; stages after the first halve height and width."""

    def __init__(
        self, blocks: tuple[int, ...], stem: int, stages: tuple[int, ...], classes: int, channels: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()
        )
        self.stages = nn.Sequential()
        c_in = stem
        for index, (count, c_out) in enumerate(zip(blocks, stages, strict=True)):
            stage = nn.Sequential()
            for block in range(count):
                stage.append(BasicBlock(c_in, c_out, stride=2 if index > 0 and block == 0 else 1))
                c_in = c_out
            self.stages.append(stage)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(c_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.stages(self.stem(images))))
        return logits
