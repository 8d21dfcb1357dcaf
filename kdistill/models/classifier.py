"""A network together with its normalisation: everything outside this package feeds it images as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdistill.models.build import build_network, normalisation

#: uint8 images [N, C, H, W] -> uint8 images of another size or number of channels
View = Callable[[Tensor], Tensor]


class Classifier(nn.Module):
    """Images `[N, C, H, W]` -> logits `[N, K]` = `net((images / 255 - mean) / std)`.

    uint8 images are divided by 255; floating-point ones are taken as they are, so that `mean` and `std` are in
    their own units. Both have one entry per input channel of `net`; a grey image (C = 1) is repeated for a
    network that takes three. They are no part of the state dict: that is `net`'s, under `net.`.
    `view`, where there is one, is what the network is shown of the data set's images: another size, or grey.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: Sequence[float], std: Sequence[float], view: View | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.view = view
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.view is not None:
            images = self.view(images)
        # broadcasting [N, 1, H, W] against [3, 1, 1] is what repeats a grey channel
        images = images.expand(-1, len(self.mean), -1, -1)
        if images.is_floating_point():
            pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        else:
            pixels = images.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)  # one copy is enough
        logits: Tensor = self.net(pixels)
        return logits

    def with_net(self, net: nn.Module) -> Classifier:
        """Another network behind the same view and normalisation, on the same device."""
        other = Classifier(net, self.mean.flatten().tolist(), self.std.flatten().tolist(), self.view)
        return other.to(self.mean.device)


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

    `mean` and `std` are the data's, per channel, for pixels in [0, 1], or in the units of floating-point images;
    published weights bring their own.
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
