"""Networks in the memory layout that convolutions are fastest in, and their gradients, too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdaptiveMean2d(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d(1)`, whose gradient has the layout of its input: same values, bit for bit.

    PyTorch's comes back in the other layout than channels last, and whatever it meets on a CPU, a ReLU's backward pass
    before all, then reads across memory.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, input: Tensor) -> Tensor:
        # exported and traced networks, which are in evaluation mode, have the plain pool
        if self.training and input.dim() == 4 and _is_channels_last(input):
            return input.permute(0, 2, 3, 1).mean((1, 2))[:, :, None, None]
        return super().forward(input)


def to_channels_last(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on a device, its convolutions' weights with channels last, its global pools as they suit that."""
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":  # the only kind that it was measured on
        for name, module in list(network.named_modules()):
            if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
                network.set_submodule(name, AdaptiveMean2d())
    return network


def _is_channels_last(maps: Tensor) -> bool:
    return maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
