"""SimKD's student as it is used. This file needs torch and nothing else: a copy goes with every such student."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class ReusedHead(nn.Module):
    """`[N, C, H, W]` -> logits `[N, K]`: the teacher's head on a map of the student, projected and pooled.

    Args:
        net: the student's network; what comes after `layer` runs too, and is not used.
        layer: what of `net` is projected: a map, a vector, or a square number of tokens; the output of the module
            of this name, or for `X@in` the input of X.
        projector: `[N, C_s, H, W]` -> `[N, C_t, H', W']`.
        head: the teacher's linear layer, `C_t` -> K; it is frozen, and part of the state dict.

    Source: D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, "Knowledge Distillation with the Reused
    Teacher Classifier", CVPR 2022, arXiv 2203.14001.
    """

    def __init__(self, net: nn.Module, layer: str, projector: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.net = net
        self.layer = layer
        self.projector = projector
        self.head = head.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        seen: list[Any] = []
        module = self.net.get_submodule(self.layer.removesuffix("@in"))
        register = (
            module.register_forward_pre_hook if self.layer.endswith("@in") else module.register_forward_hook
        )
        # The hook lives for one call: copies of this module (weight averaging) never share one. A list is closed
        # over and not an attribute, so that no activation outlives the call.
        hook = register(lambda *call: seen.append(call[-1]))
        try:
            self.net(images)
        finally:
            hook.remove()
        output = seen[-1]
        features = output if isinstance(output, Tensor) else output[0]
        pooled = F.adaptive_avg_pool2d(self.projector(as_map(features)), 1).flatten(1)
        logits: Tensor = self.head(pooled)
        return logits


def as_map(features: Tensor) -> Tensor:
    """A map as it is; a vector `[N, D]` as one pixel; tokens `[N, L, D]` as a square, a class token left out."""
    if features.ndim == 2:
        return features[:, :, None, None]
    if features.ndim == 3:
        side = math.isqrt(features.shape[1])
        return features[:, features.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))
    return features
