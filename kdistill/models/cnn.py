"""A small CNN. This file needs torch and nothing else: a copy goes with every such student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

NAMES = ("cnn",)


def build(
    name: str, params: Mapping[str, Any], *, classes: int, channels: int, image_size: tuple[int, int]
) -> CNN:
    """Build the network; `params["channels"]` has one entry per convolution. Any `image_size` fits."""
    return CNN(params["channels"], classes=classes, channels=channels)


class CNN(nn.Module):
    """`[N, C, H, W]` -> logits `[N, K]`; every stage halves height and width."""

    def __init__(self, stages: Sequence[int], classes: int, channels: int) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        c_in = channels
        for c_out in stages:
            conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.stages.append(nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU()))
            c_in = c_out
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(c_in, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.stages(images)))
        return logits
