"""A network together with its normalisation: everything outside this package feeds it uint8 images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdistill.models.build import build_network, normalisation


class Classifier(nn.Module):
    """uint8 images `[N, C, H, W]` -> logits `[N, K]` = `net((images / 255 - mean) / std)`.

    `mean` and `std` have one entry per input channel of `net`; a grey image (C = 1) is repeated for a
    network that takes three. They are no part of the state dict: that is `net`'s, under `net.`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # broadcasting [N, 1, H, W] against [3, 1, 1] is what repeats a grey channel
        logits: Tensor = self.net((images.to(self.mean.dtype) / 255 - self.mean) / self.std)
        return logits


def build_classifier(
    name: str,
    params: Mapping[str, Any],
    *,
    classes: int,
    channels: int,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    weights: str | None = None,
    load: bool = True,
) -> Classifier:
    """Build a network with its normalisation; see `build_network` for the arguments and errors.

    `mean` and `std` are the data's, per channel, for pixels in [0, 1]; published weights bring their own.
    `load=False` leaves the weights random for a state that is loaded next, with the structure and the
    normalisation that `weights` means: nothing is downloaded or read.
    """
    net = build_network(
        name,
        params,
        classes=classes,
        channels=channels,
        image_size=image_size,
        weights=weights if load else None,
    )
    return Classifier(net, *normalisation(name, weights, channels, mean, std))
