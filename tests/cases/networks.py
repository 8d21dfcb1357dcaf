"""Networks that nobody has trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kdistill.models import Classifier, build_classifier


def untrained(
    name: str, params: Mapping[str, Any], classes: Sequence[str], channels: int, size: tuple[int, int]
) -> Classifier:
    """Random weights, the same each time, for images of `channels` x `size`."""
    torch.manual_seed(0)
    return build_classifier(
        name,
        params,
        classes=len(classes),
        channels=channels,
        image_size=size,
        mean=[0.4] * channels,
        std=[0.3] * channels,
    )
