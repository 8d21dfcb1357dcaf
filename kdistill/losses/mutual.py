"""Deep mutual learning: students that teach each other, without a teacher.

Y. Zhang, T. Xiang, T. Hospedales, H. Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from kdistill.config.section import Ramp, at
from kdistill.losses.formula import Sample
from kdistill.losses.outputs import Outputs
from kdistill.losses.soft import kd_loss
from kdistill.tasks import CLASSIFICATION, Task


@dataclass(frozen=True)
class MutualObjective:
    """Sum over the peers of `alpha * CE(peer, labels) + beta * mean over the others of T^2 KL(other || peer)`.

    The other's logits are a target: no gradient flows into them. With two peers this is the published loss
    (alpha = beta = T = 1); both are updated in the same step, from the same batch.
    """

    alpha: float | Ramp
    beta: float | Ramp
    T: float | Ramp
    label_smoothing: float = 0.0
    task: Task = CLASSIFICATION

    @property
    def needs_teacher(self) -> bool:
        return False

    @property
    def student_layers(self) -> list[str]:
        return []

    def at(self, progress: float) -> MutualObjective:
        """The objective after the share `progress` of the training, in (0, 1]: all weights are numbers."""
        return replace(
            self, alpha=at(self.alpha, progress), beta=at(self.beta, progress), T=at(self.T, progress)
        )

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        return {"hard": at(self.alpha, 1), "soft": at(self.beta, 1)}

    def __call__(self, student: Outputs, batch: Sample, teacher: Outputs | None = None) -> dict[str, Tensor]:
        """Terms `hard` and `soft` from the peers' logits `[P, N, K]`."""
        peers = list(student.logits)
        hard = [self.task.hard_loss(logits, batch.labels, self.label_smoothing) for logits in peers]
        soft = [
            kd_loss(own, other, at(self.T, 1)) / (len(peers) - 1)
            for i, own in enumerate(peers)
            for j, other in enumerate(peers)
            if i != j
        ]
        return {"hard": torch.stack(hard).sum(), "soft": torch.stack(soft).sum()}
