"""A multi-layer perceptron. This file needs torch and nothing else: a copy goes with every such student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

NAMES = ("mlp",)


def build(
    name: str, params: Mapping[str, Any], *, classes: int, channels: int, image_size: tuple[int, int]
) -> MLP:
    """Build the network: `params["hidden"]` has the units of each layer, `params["dropout"]` is in [0, 1)."""
    height, width = image_size
    return MLP(channels * height * width, params["hidden"], params["dropout"], classes)


class MLP(nn.Module):
    """`[N, C, H, W]` -> logits `[N, K]`."""

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float, classes: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.stages = nn.Sequential()
        for units in hidden:
            linear = nn.Linear(inputs, units)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            self.stages.append(nn.Sequential(linear, nn.ReLU(), nn.Dropout(dropout)))
            inputs = units
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.flatten(images)))
        return logits
