"""Losses between student and teacher logits, sample by sample, that need no labels.

Shapes: N samples, K classes. Every function takes `[N, K]` logits in any floating type, works in
float32 (float64 stays float64), lets no gradient into the teacher, and returns a scalar: the sum over
classes, mean over the samples, unless its docstring says otherwise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STANDARDISE_EPS = 1e-7


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, T: float, standardise: bool = False) -> Tensor:
    """T^2 * KL(softmax(teacher_logits / T) || softmax(student_logits / T)), mean over the samples.

    The gradient of the divergence shrinks as 1/T^2 when T grows, so T^2 keeps its size comparable for
    all T; for large T the loss tends to half the squared error between centred logits, divided by K.
    It is exactly zero when the logits are equal.

    Args:
        student_logits: `[N, K]`.
        teacher_logits: `[N, K]`; no gradient flows into them.
        T: temperature, > 0.
        standardise: compare z-scores instead of logits, see `standardised`.

    Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015,
    arXiv 1503.02531; with `standardise`: S. Sun, W. Ren, J. Li, R. Wang, X. Cao, "Logit Standardization
    in Knowledge Distillation", CVPR 2024, arXiv 2403.01427.
    """
    student, teacher = wide_pair(student_logits, teacher_logits, standardise)
    return divergence(F.log_softmax(teacher / T, dim=1), F.log_softmax(student / T, dim=1), T**2)


def reverse_kl_loss(student_logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    """T^2 * KL(softmax(student_logits / T) || softmax(teacher_logits / T)), mean over the samples.

    Mode seeking: it punishes a student that gives probability to classes the teacher rules out, and
    forgives one that leaves out some of the teacher's classes. For large T it tends to the same limit
    as `kd_loss`. `[N, K]` logits.

    Source: Y. Gu, L. Dong, F. Wei, M. Huang, "MiniLLM: Knowledge Distillation of Large Language Models",
    ICLR 2024, arXiv 2306.08543, which made this direction known; here on class probabilities.
    """
    student, teacher = wide_pair(student_logits, teacher_logits)
    return divergence(F.log_softmax(student / T, dim=1), F.log_softmax(teacher / T, dim=1), T**2)


def js_loss(student_logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    """T^2 * (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, mean over the samples.

    p and q are the teacher's and the student's softmax at T. Symmetric, at most T^2 ln 2; near equality a
    quarter of `kd_loss`, so its weight is to be four times as large for the same pull. `[N, K]` logits.

    Source: J. Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information
    Theory, 1991 (no arXiv id).
    """
    student, teacher = wide_pair(student_logits, teacher_logits)
    log_q, log_p = F.log_softmax(student / T, dim=1), F.log_softmax(teacher / T, dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return T**2 * (divergence(log_p, log_m) + divergence(log_q, log_m)) / 2


def soft_ce_loss(student_logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    """T^2 * cross entropy of softmax(student_logits / T) with softmax(teacher_logits / T), mean over samples.

    Its gradient is that of `kd_loss`; its value is larger by T^2 times the teacher's entropy, so it is not
    zero at equality. `[N, K]` logits.

    Source: G. Hinton, O. Vinyals, J. Dean, 2015, arXiv 1503.02531 (the form of its equation).
    """
    student, teacher = wide_pair(student_logits, teacher_logits)
    return T**2 * F.cross_entropy(student / T, F.softmax(teacher / T, dim=1))


def logit_mse_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1 / (2 K) * sum over classes of the squared difference of centred logits, mean over the samples.

    This is the limit of `kd_loss` for T -> infinity, hence on its scale; blind to a constant added to all
    logits of a sample, as softmax is. The cited papers' plain mean of (z_s - z_t)^2 is twice as large on
    centred logits. `[N, K]` logits.

    Source: J. Ba, R. Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv 1312.6184;
    T. Kim, J. Oh, N. Kim, S. Cho, S. Yun, IJCAI 2021, arXiv 2105.08919.
    """
    student, teacher = wide_pair(student_logits, teacher_logits)
    difference = student - teacher
    return (difference - difference.mean(dim=1, keepdim=True)).square().mean() / 2


def hard_label_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross entropy of the student with the class that the teacher finds likeliest, mean over the samples.

    DeiT's hard distillation, without its distillation token; ties go to one of the tied classes. `[N, K]`
    logits.

    Source: H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jegou, "Training data-efficient
    image transformers & distillation through attention", ICML 2021, arXiv 2012.12877.
    """
    student, teacher = wide_pair(student_logits, teacher_logits)
    return F.cross_entropy(student, teacher.argmax(dim=1))


def binary_kd_loss(student_logits: Tensor, teacher_logits: Tensor, T: float) -> Tensor:
    """T^2 * KL(Bernoulli(sigmoid(z_t / T)) || Bernoulli(sigmoid(z_s / T))), mean over samples AND classes.

    For multi-label tasks, where each class is a yes or no of its own. The mean over classes is the
    reduction of `binary_cross_entropy_with_logits`, whose weight it shares. `[N, K]` logits.

    Source: P. Yang, M. Xie, C. Zong, L. Feng, G. Niu, M. Sugiyama, S. Huang, "Multi-Label Knowledge
    Distillation", ICCV 2023, arXiv 2308.06453 (its logit part; T and the mean over classes are ours).
    """
    student, teacher = wide_pair(student_logits, teacher_logits)
    yes = F.kl_div(F.logsigmoid(student / T), F.logsigmoid(teacher / T), reduction="none", log_target=True)
    no = F.kl_div(F.logsigmoid(-student / T), F.logsigmoid(-teacher / T), reduction="none", log_target=True)
    return T**2 * (yes + no).mean()


def regression_mse_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Squared difference, mean over all elements: for networks whose `[N, K]` outputs are numbers.

    Source: J. Ba, R. Caruana, NeurIPS 2014, arXiv 1312.6184.
    """
    return F.mse_loss(*wide_pair(student_logits, teacher_logits))


def standardised(logits: Tensor) -> Tensor:
    """Z-scores of each sample: (z - mean) / (std + 1e-7), std with K - 1, as the authors have it; `[N, K]`.

    Only the shape of a sample's logits counts after it, not their size. Two classes leave nothing but the
    sign. All-equal logits give zeros, with gradients of the order 1 / eps: finite, but a head must not
    start at zero.

    Source: S. Sun, W. Ren, J. Li, R. Wang, X. Cao, CVPR 2024, arXiv 2403.01427.
    """
    wide_logits = wide(logits)
    centred = wide_logits - wide_logits.mean(dim=1, keepdim=True)
    # The mean of large equal logits is rounded. What is left over is the same for all classes, but no zero:
    # centring again keeps it out of the std, and the norm has a bounded gradient everywhere.
    centred = centred - centred.mean(dim=1, keepdim=True)
    std = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(logits.shape[1] - 1)
    return centred / (std + STANDARDISE_EPS)


def divergence(log_p: Tensor, log_q: Tensor, weight: float = 1.0) -> Tensor:
    """weight * KL(p || q) of log probabilities `[N, K]`: sum over classes, mean over samples (never over both)."""
    # one division for mean and weight: of a small network's step, an operation is a measurable part
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) / (len(log_q) / weight)


def wide(logits: Tensor) -> Tensor:
    """Half-precision logits lose the small differences that dark knowledge lives in: work in float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def wide_pair(
    student_logits: Tensor, teacher_logits: Tensor, standardise: bool = False
) -> tuple[Tensor, Tensor]:
    """Student and teacher logits to compare: wide, the teacher's without gradient, z-scores if asked for."""
    prepare = standardised if standardise else wide
    return prepare(student_logits), prepare(teacher_logits.detach())
