"""Losses that compare how predictions relate to each other within a batch: DIST and MLKD.

Shapes: N samples, K classes; `[N, K]` logits. They couple the samples of a batch: a batch computed in parts
(accumulated gradients, several devices) is not the same loss, and published weights belong to a batch size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.losses.soft import kd_loss, wide_pair

PEARSON_EPS = 1e-8


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, T: float, inter_weight: float, intra_weight: float
) -> Tensor:
    """T^2 * (inter_weight * (1 - rho of rows) + intra_weight * (1 - rho of columns)).

    rho is Pearson's correlation between the student's and the teacher's softmax at T: of each sample's
    row, mean over samples (relations between classes), and of each class's column, mean over classes
    (relations between samples). It asks for less than equality, which suits teachers much stronger than
    the student. With two classes a row's correlation is only a sign.

    As in the authors' code, 1e-8 is added to the product of the norms: at equality the loss is zero but for
    rows and columns that hardly vary, whose correlation counts as 0.

    Args:
        student_logits: `[N, K]`, N >= 2.
        teacher_logits: `[N, K]`; no gradient flows into them.
        T: temperature, > 0.
        inter_weight: beta of the paper.
        intra_weight: gamma of the paper.

    Raises:
        ConfigError: a batch of one sample, whose columns have no correlation.

    Source: T. Huang, S. You, F. Wang, C. Qian, C. Xu, "Knowledge Distillation from A Stronger Teacher",
    NeurIPS 2022, arXiv 2205.10536.
    """
    if len(student_logits) < 2:
        raise ConfigError(
            "dist: expected batches of at least 2 samples (it correlates samples), got 1; "
            "choose a batch size that leaves no last batch of 1"
        )
    student, teacher = wide_pair(student_logits, teacher_logits)
    p_student, p_teacher = F.softmax(student / T, dim=1), F.softmax(teacher / T, dim=1)
    inter = 1 - _pearson(p_student, p_teacher).mean()
    intra = 1 - _pearson(p_student.T, p_teacher.T).mean()
    return T**2 * (inter_weight * inter + intra_weight * intra)


def mlkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperatures: Sequence[float],
    class_weight: float,
    batch_weight: float,
    instance_weight: float,
) -> Tensor:
    """Mean over temperatures of instance_weight * KD + batch_weight * batch + class_weight * class.

    With P the `[N, K]` softmax at a temperature T: KD is `kd_loss` (T^2 * KL, mean over samples), batch is
    ||P_s P_s' - P_t P_t'||^2 / N over the `[N, N]` Gram matrices of samples, class is
    ||P_s' P_s - P_t' P_t||^2 / K over the `[K, K]` Gram matrices of classes; squared Frobenius norms, no T^2
    in the last two. The class matrix is a sum over the batch, so its term grows as N^2: published weights
    belong to batches of 64. It is zero when the logits are equal; a batch of one is fine.

    Conventions: the paper's losses on one view. The authors add temperatures up instead of taking their
    mean (their weights times the number of temperatures are ours), and use a weakly and a strongly augmented
    view; their code also scales terms by the share of uncertain samples and classes and leaves the strong
    view's batch and class terms out, which is not in the paper.

    Args:
        student_logits: `[N, K]`.
        teacher_logits: `[N, K]`; no gradient flows into them.
        temperatures: all > 0, at least one; published: 2, 3, 4, 5, 6.
        class_weight: of the relations between classes.
        batch_weight: of the relations between samples.
        instance_weight: of the sample by sample divergence.

    Raises:
        ConfigError: no temperatures.

    Source: Y. Jin, J. Wang, D. Lin, "Multi-Level Logit Distillation", CVPR 2023 (no arXiv id).
    """
    if not temperatures:
        raise ConfigError("mlkd: expected at least one temperature, got none; for example [2, 3, 4, 5, 6]")
    student, teacher = wide_pair(student_logits, teacher_logits)
    terms = []
    for T in temperatures:
        p_student, p_teacher = F.softmax(student / T, dim=1), F.softmax(teacher / T, dim=1)
        instance = kd_loss(student, teacher, T)
        batch = _gram_difference(p_student, p_teacher)
        classes = _gram_difference(p_student.T, p_teacher.T)
        terms.append(instance_weight * instance + batch_weight * batch + class_weight * classes)
    return torch.stack(terms).mean()


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """`[rows]`: correlation between each row of a and the same row of b."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(dim=1) / (norms + PEARSON_EPS)


def _gram_difference(a: Tensor, b: Tensor) -> Tensor:
    """||a a' - b b'||^2 / rows, squared Frobenius norm."""
    return (a @ a.T - b @ b.T).square().sum() / len(a)
