"""Metrics of a classifier's logits on a whole split: pure functions.

Shapes: N samples, K classes; logits `[N, K]`, labels `[N]`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of the samples whose largest logit is the label's, in [0, 1]."""
    return (logits.argmax(dim=1) == labels).double().mean().item()


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return F.cross_entropy(logits.double(), labels).item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: mean gap between confidence and accuracy over equal bins.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    correct = (predicted == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are (low, high], as published
    gaps = (confidence - correct).new_zeros(bins).index_add_(0, bin_of, confidence - correct)
    return (gaps.abs().sum() / len(labels)).item()


def agreement(logits: Tensor, teacher_logits: Tensor) -> float:
    """Share of the samples where student and teacher name the same class, in [0, 1]."""
    return (logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).double().mean().item()


def summarise(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """All of the above by name: `top1`, `nll`, `ece`, and `agreement` where there is a teacher."""
    values = {
        "top1": top1(logits, labels),
        "nll": nll(logits, labels),
        "ece": calibration_error(logits, labels),
    }
    if teacher_logits is not None:
        values["agreement"] = agreement(logits, teacher_logits)
    return values
