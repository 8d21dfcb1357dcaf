"""Losses that treat the labelled class (target) and the other classes apart: DKD and NKD.

Shapes: N samples, K >= 2 classes; `[N, K]` logits, `[N]` labels from 0 to K - 1. With two classes there is
only one other class, its share is always 1, and the non-target parts are zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.losses.soft import divergence, wide_pair


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    T: float,
    tckd_weight: float,
    nckd_weight: float,
    standardise: bool = False,
) -> Tensor:
    """T^2 * (tckd_weight * TCKD + nckd_weight * NCKD), each mean over the samples.

    TCKD is the divergence between (p[y], 1 - p[y]) of teacher and student, NCKD that between their
    softmaxes over the other classes, all at T. KD is TCKD + (1 - p_t[y]) * NCKD: there a confident teacher
    silences what it knows about the other classes, here `nckd_weight` is the same for all samples.
    It is zero when the logits are equal.

    The published weights count on a warm-up: the whole loss rises linearly from 0 in the first 20 epochs.

    Args:
        student_logits: `[N, K]`.
        teacher_logits: `[N, K]`; no gradient flows into them.
        labels: `[N]`, 0 to K - 1.
        T: temperature, > 0.
        tckd_weight: alpha of the paper.
        nckd_weight: beta of the paper.
        standardise: compare z-scores instead of logits, see `soft.standardised`.

    Source: B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge Distillation", CVPR 2022,
    arXiv 2203.08679.
    """
    student, teacher = wide_pair(student_logits, teacher_logits, standardise)
    student, teacher = student / T, teacher / T
    target = divergence(_label_or_rest(teacher, labels), _label_or_rest(student, labels))
    others = divergence(
        F.log_softmax(without_target(teacher, labels), dim=1),
        F.log_softmax(without_target(student, labels), dim=1),
    )
    return T**2 * (tckd_weight * target + nckd_weight * others)


def nkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float, non_target_weight: float
) -> Tensor:
    """-p_t[y] log p_s[y] - non_target_weight * T^2 * sum over others of N(p_t) log N(p_s), mean over samples.

    N is the softmax over the classes other than the label, at T; the first term is at T = 1, as in the
    authors' code. Both are cross entropies, so the value is not zero when the logits are equal, and the
    first goes on to raise the labelled class beyond the teacher's confidence.

    Args:
        student_logits: `[N, K]`.
        teacher_logits: `[N, K]`; no gradient flows into them.
        labels: `[N]`, 0 to K - 1.
        T: temperature of the non-target part, > 0.
        non_target_weight: gamma of the paper.

    Source: Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li, "From Knowledge Distillation to
    Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels",
    ICCV 2023, arXiv 2303.13005.
    """
    student, teacher = wide_pair(student_logits, teacher_logits)
    at_label = labels.unsqueeze(1)
    confidence = F.softmax(teacher, dim=1).gather(1, at_label)
    target = -(confidence * F.log_softmax(student, dim=1).gather(1, at_label)).mean()
    others = F.cross_entropy(
        without_target(student, labels) / T, F.softmax(without_target(teacher, labels) / T, dim=1)
    )
    return target + non_target_weight * T**2 * others


def without_target(logits: Tensor, labels: Tensor) -> Tensor:
    """`[N, K - 1]`: the logits of the classes other than the label, in order.

    Left out rather than masked: a large negative mask fails for larger logits, and -inf gives
    0 * (-inf + inf) in the divergence.
    """
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, others + (others >= labels.unsqueeze(1)))


def _label_or_rest(scaled: Tensor, labels: Tensor) -> Tensor:
    """`[N, 2]`: log probability of the label and of all other classes together."""
    log_p = F.log_softmax(scaled, dim=1)
    target = log_p.gather(1, labels.unsqueeze(1))
    # not log(1 - p[y]), which is -inf where p[y] rounds to 1
    others = without_target(log_p, labels).logsumexp(dim=1, keepdim=True)
    return torch.cat([target, others], dim=1)
