"""What a network gives for a batch: logits, and features where they were tapped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """`logits`: `[N, K]`; `features`: by tap name, maps `[N, C, H, W]`, tokens `[N, L, D]` or vectors `[N, D]`.

    `classes`: int64 `[S]`, the student's classes that a teacher's `logits` `[N, S]` are about; None: all.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    classes: Tensor | None = None
