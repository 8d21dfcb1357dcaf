"""Losses that transform the teacher's probabilities before the student matches them: TTM, WTTM, OFA.

Shapes: N samples, K classes; `[N, K]` logits. None has the T^2 of KD: the student is not softened (OFA: at
T = 1, its default), so their gradients do not shrink, and their published weights count on that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.losses.soft import divergence, wide_pair


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, power: float) -> Tensor:
    """KL(p_t^power renormalised || softmax(student_logits)), mean over the samples, no T^2.

    p_t^power renormalised is softmax(power * teacher_logits): the teacher at temperature 1 / power, the
    student at 1. Next to KD this adds a Renyi entropy of the student, which keeps it from overconfidence.
    It is zero when student_logits = power * teacher_logits.

    Args:
        student_logits: `[N, K]`.
        teacher_logits: `[N, K]`; no gradient flows into them.
        power: gamma of the paper, > 0, published values below 1.

    Source: K. Zheng, E. Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024,
    arXiv 2402.11148.
    """
    student, teacher = wide_pair(student_logits, teacher_logits)
    return divergence(F.log_softmax(power * teacher, dim=1), F.log_softmax(student, dim=1))


def wttm_loss(student_logits: Tensor, teacher_logits: Tensor, power: float) -> Tensor:
    """`ttm_loss` with each sample weighted by sum over classes of p_t^power; mean over the samples.

    The weight is 1 where one class has all of the teacher's probability and K^(1 - power) where all have the
    same: samples on which the teacher is soft count more. It is not normalised, and large for small powers (40
    for p_t = 0.99 on one of 100 classes at power 0.1), so TTM's `beta` does not carry over.

    Args:
        student_logits: `[N, K]`.
        teacher_logits: `[N, K]`; no gradient flows into them.
        power: gamma of the paper, > 0, published values below 1.

    Source: K. Zheng, E. Yang, ICLR 2024, arXiv 2402.11148.
    """
    student, teacher = wide_pair(student_logits, teacher_logits)
    weight = (power * F.log_softmax(teacher, dim=1)).logsumexp(dim=1).exp()
    per_sample = F.kl_div(
        F.log_softmax(student, dim=1),
        F.log_softmax(power * teacher, dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)
    return (weight * per_sample).mean()


def ofa_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, power: float, T: float = 1.0
) -> Tensor:
    """-sum over classes of ((p_t + 1_y)^power - 1_y) * log p_s, mean over the samples, no T^2.

    1_y is 1 for the labelled class, else 0. `power` > 1 strengthens the label, the more the surer the teacher
    is of it, and weakens the other classes: what another architecture believes about them may be no help.
    With `power` = 1 this is the soft cross entropy. As in the authors' code, to which the published weights
    belong, all classes are raised to `power`. The value is not zero when the logits are equal.

    Args:
        student_logits: `[N, K]`.
        teacher_logits: `[N, K]`; no gradient flows into them.
        labels: `[N]`, 0 to K - 1.
        power: gamma of the paper, > 0.
        T: temperature of both, > 0.

    Source: Z. Hao, J. Guo, K. Han, Y. Tang, H. Hu, Y. Wang, C. Xu, "One-for-All: Bridge the Gap Between
    Heterogeneous Architectures in Knowledge Distillation", NeurIPS 2023, arXiv 2310.19444 (its loss; its
    heads on intermediate features are not part of this function).
    """
    student, teacher = wide_pair(student_logits, teacher_logits)
    log_p = F.log_softmax(teacher / T, dim=1)
    is_target = F.one_hot(labels, log_p.shape[1]).bool()
    # (1 + p)^power - 1 without losing small p
    target = torch.expm1(power * log_p.exp().log1p())
    weights = torch.where(is_target, target, (power * log_p).exp())
    return -(weights * F.log_softmax(student / T, dim=1)).sum(dim=1).mean()
