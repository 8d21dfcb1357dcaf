"""The one formula: loss = alpha * CE(student, labels) + beta * soft(student, teacher)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from kdistill.config.schema import CELoss, KDLoss
from kdistill.losses.soft import kd_loss

#: (student_logits [N, K], teacher_logits [N, K]) -> scalar
SoftLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """What a student is trained on; calling it returns the weighted terms, which add up to the loss.

    `alpha` weighs the cross entropy with the labels (hard term), `beta` the soft loss. A term of
    weight zero is not computed: with `beta=0` no teacher is asked.
    """

    alpha: float = 1.0
    beta: float = 0.0
    label_smoothing: float = 0.0
    soft: SoftLoss | None = None

    @property
    def needs_teacher(self) -> bool:
        return self.beta > 0

    def __call__(
        self, student_logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted terms by name (`hard`, `soft`) from `[N, K]` logits and `[N]` labels."""
        terms: dict[str, Tensor] = {}
        if self.alpha > 0:
            hard = F.cross_entropy(student_logits.float(), labels, label_smoothing=self.label_smoothing)
            terms["hard"] = self.alpha * hard
        if self.beta > 0:
            assert self.soft is not None
            assert teacher_logits is not None
            terms["soft"] = self.beta * self.soft(student_logits, teacher_logits)
        return terms


def build_objective(loss: KDLoss | CELoss, label_smoothing: float) -> Objective:
    """The objective that a checked `loss` section describes."""
    if isinstance(loss, CELoss):
        return Objective(label_smoothing=label_smoothing)
    return Objective(
        alpha=loss.alpha,
        beta=loss.soft_weight,
        label_smoothing=label_smoothing,
        soft=partial(kd_loss, T=loss.T),
    )
