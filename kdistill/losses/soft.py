"""Losses between student and teacher logits.

Shapes: N samples, K classes. Every function takes `[N, K]` logits in any floating type, works in
float32 (float64 stays float64), and returns a scalar.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    """T^2 * KL(softmax(teacher_logits / T) || softmax(student_logits / T)), mean over the samples.

    The gradient of the divergence shrinks as 1/T^2 when T grows, so T^2 keeps its size comparable for
    all T; for large T the loss tends to half the squared error between centred logits, divided by K.
    It is exactly zero when the logits are equal.

    Args:
        student_logits: `[N, K]`.
        teacher_logits: `[N, K]`; no gradient flows into them.
        T: temperature, > 0.

    Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015,
    arXiv 1503.02531.
    """
    log_student = F.log_softmax(_wide(student_logits) / T, dim=1)
    log_teacher = F.log_softmax(_wide(teacher_logits.detach()) / T, dim=1)
    return T**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _wide(logits: Tensor) -> Tensor:
    """Half-precision logits lose the small differences that dark knowledge lives in: work in float32."""
    return logits if logits.dtype == torch.float64 else logits.float()
