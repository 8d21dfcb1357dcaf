"""Losses with a teacher made up from the label: the controls that tell distillation from regularisation.

A student that gains no more from a real teacher than from these has not learned what the teacher knows.
Shapes: N samples, K classes; `[N, K]` logits, `[N]` labels from 0 to K - 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdistill.losses.soft import divergence, wide


def smoothed_ce_loss(student_logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross entropy with (1 - smoothing) on the label plus smoothing / K on every class, mean over samples.

    The convention of PyTorch and timm. Others (Tf-KD's code) give smoothing / (K - 1) to the wrong classes
    and none to the label: to get the same loss here, use K / (K - 1) times their value.

    Args:
        student_logits: `[N, K]`.
        labels: `[N]`, 0 to K - 1.
        smoothing: 0 (plain cross entropy) to 1.

    Source: C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception Architecture
    for Computer Vision", CVPR 2016, arXiv 1512.00567.
    """
    return F.cross_entropy(wide(student_logits), labels, label_smoothing=smoothing)


def teacher_free_loss(student_logits: Tensor, labels: Tensor, T: float, confidence: float) -> Tensor:
    """KL(softmax(u / T) || softmax(student_logits)), mean over samples; u is a made-up teacher (Tf-KD_reg).

    u gives `confidence` to the label and (1 - confidence) / (K - 1) to each other class. As in the authors'
    code for CIFAR-100, to which the published weights belong, u itself, not its logarithm, is divided by T
    and put through softmax, the student stays at T = 1, and there is no T^2. (The paper's equation 9
    softens the student too.) At the published T of 10 to 40 the target is close to uniform: the label's
    share is at most exp(1 / T) times that of another class.

    Weights: the authors' (1 - a) * CE + a * multiplier * KLDivLoss takes the mean over samples AND classes,
    this is the sum over classes: alpha = 1 - a, beta = a * multiplier / K. ResNet-18 on CIFAR-100
    (a = 0.1, multiplier = 100, T = 20) is alpha = 0.9, beta = 0.1.

    Args:
        student_logits: `[N, K]`, K >= 2.
        labels: `[N]`, 0 to K - 1.
        T: temperature of the made-up teacher, > 0; published 10 to 40.
        confidence: of the made-up teacher in the label, 1 / K to 1; published 0.99.

    Source: L. Yuan, F. Tay, G. Li, T. Wang, J. Feng, "Revisiting Knowledge Distillation via Label Smoothing
    Regularization", CVPR 2020, arXiv 1909.11723.
    """
    student = wide(student_logits)
    classes = student.shape[1]
    label = F.one_hot(labels, classes).to(student.dtype)
    made_up = confidence * label + (1 - confidence) / (classes - 1) * (1 - label)
    return divergence(F.log_softmax(made_up / T, dim=1), F.log_softmax(student, dim=1))
