"""Metrics of one of several classes: labels int64 `[N]`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.metrics.calibration import calibration_gap, scaled_scores


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of the samples whose largest logit is the label's, in [0, 1]."""
    return by_sample(logits, labels).mean().item()


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of the samples whose label is among the k largest logits, in [0, 1]."""
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1).double().mean().item()


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return F.cross_entropy(logits.double(), labels).item()


def brier(logits: Tensor, labels: Tensor) -> float:
    """Squared distance of the probabilities from the label's one-hot vector, mean over samples, in [0, 2].

    Source: G. W. Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950.
    """
    gaps = logits.double().softmax(dim=1)
    gaps[torch.arange(len(labels)), labels] -= 1
    return gaps.square().sum(dim=1).mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the likeliest class, in [0, 1]; see `calibration_gap`."""
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    return calibration_gap(confidence, predicted == labels, bins)


def agreement(logits: Tensor, teacher_logits: Tensor) -> float:
    """Share of the samples where student and teacher name the same class, in [0, 1]."""
    return (logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).double().mean().item()


def divergence(logits: Tensor, teacher_logits: Tensor) -> float:
    """Mean KL(teacher || student) of the probabilities at T = 1, in nats."""
    student, teacher = (z.double().log_softmax(dim=1) for z in (logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True).item()


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts, int64 `[K, K]`: row the label, column the class that was named."""
    classes = logits.shape[1]
    return (
        (labels * classes + logits.argmax(dim=1)).bincount(minlength=classes * classes).view(classes, classes)
    )


def by_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy on the samples of each class, float64 `[K]`; nan for a class without any."""
    counts = confusion_matrix(logits, labels)
    return counts.diagonal().double() / counts.sum(dim=1)


def by_sample(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest logit is the label's and else 0, float64 `[N]`; the mean is `top1`."""
    return (logits.argmax(dim=1) == labels).double()


def summarise(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """By name: `top1`, `nll`, `ece`, and `agreement` where there is a teacher."""
    values = {
        "top1": top1(logits, labels),
        "nll": nll(logits, labels),
        "ece": calibration_error(logits, labels),
    }
    if teacher_logits is not None:
        values["agreement"] = agreement(logits, teacher_logits)
    return values


def judge(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, T: float | None = None
) -> dict[str, float]:
    """`summarise`, and `top5` (of more than 5 classes), `brier`, `kl` to the teacher.

    With a temperature, `nll_scaled` and `ece_scaled` of the logits divided by it.
    """
    values = summarise(logits, labels, teacher_logits)
    values["brier"] = brier(logits, labels)
    if logits.shape[1] > 5:
        values["top5"] = top_k(logits, labels, 5)
    values |= scaled_scores(logits, labels, T, nll, calibration_error)
    if teacher_logits is not None:
        values["kl"] = divergence(logits, teacher_logits)
    return values
