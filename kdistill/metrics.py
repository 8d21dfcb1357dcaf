"""Metrics of a network's logits on a whole split: pure functions.

Shapes: N samples, K classes or values; logits `[N, K]`; labels int64 `[N]` of classes, float `[N, K]` in {0, 1}
of several labels, float `[N, K]` of standardised values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# --- one of several classes ---


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
    """By name: `top1`, `nll`, `ece`, and `agreement` where there is a teacher."""
    values = {
        "top1": top1(logits, labels),
        "nll": nll(logits, labels),
        "ece": calibration_error(logits, labels),
    }
    if teacher_logits is not None:
        values["agreement"] = agreement(logits, teacher_logits)
    return values


# --- several classes at once ---


def average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Area under precision over recall, as a sum of steps, in [0, 1]; samples of equal score are one step.

    `scores`: `[N]`; `relevant`: bool `[N]`, at least one of them true.
    """
    order = scores.argsort(descending=True)
    ranked, hits = scores[order], relevant[order].double().cumsum(0)
    step_ends = torch.cat([ranked[1:] != ranked[:-1], ranked.new_ones(1, dtype=torch.bool)])
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
    recall = hits[step_ends] / hits[-1]
    return (precision[step_ends] * recall.diff(prepend=recall.new_zeros(1))).sum().item()


def mean_average_precision(logits: Tensor, labels: Tensor) -> float:
    """Mean of the average precision over the classes that some sample has; 0 when there is none."""
    relevant = labels > 0.5
    occurring = relevant.any(dim=0).nonzero().flatten().tolist()
    values = [average_precision(logits[:, k], relevant[:, k]) for k in occurring]
    return sum(values) / max(1, len(values))


def micro_f1(logits: Tensor, labels: Tensor) -> float:
    """F1 of all decisions together, at probability 1/2, in [0, 1]; 0 when nothing is there or found."""
    found, relevant = logits > 0, labels > 0.5
    hits = (found & relevant).sum().item()
    return 2 * hits / max(1, (found.sum() + relevant.sum()).item())


def exact_match(logits: Tensor, labels: Tensor) -> float:
    """Share of the samples with all classes right, at probability 1/2, in [0, 1]."""
    return ((logits > 0) == (labels > 0.5)).all(dim=1).double().mean().item()


def summarise_multilabel(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None
) -> dict[str, float]:
    """`map`, `f1`, `exact`, `nll` (binary cross entropy, mean over samples and classes), `agreement`.

    `agreement`, where there is a teacher: share of the samples with the same set of classes.
    """
    values = {
        "map": mean_average_precision(logits, labels),
        "f1": micro_f1(logits, labels),
        "exact": exact_match(logits, labels),
        "nll": F.binary_cross_entropy_with_logits(logits.double(), labels.double()).item(),
    }
    if teacher_logits is not None:
        values["agreement"] = exact_match(logits, (teacher_logits > 0).double())
    return values


# --- values ---


def r2(logits: Tensor, labels: Tensor) -> float:
    """Share of the labels' variance that is explained, mean over the values; at most 1.

    A value that never varies counts 1 where it is met exactly and else 0.
    """
    labels = labels.double()
    left = (logits.double() - labels).square().sum(dim=0)
    whole = (labels - labels.mean(dim=0)).square().sum(dim=0)
    shares = torch.where(whole > 0, 1 - left / whole.where(whole > 0, 1), (left == 0).double())
    return shares.mean().item()


def summarise_regression(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    target_std: Sequence[float] | None = None,
) -> dict[str, float]:
    """`r2`, `rmse`, `mae`, `nll` (mean squared error of standardised values).

    `rmse` and `mae` are in the values' own units, given `target_std`, the unit of each standardised value;
    means over the values. The teacher plays no part.
    """
    errors = logits.double() - labels.double()
    unit = errors.new_ones(errors.shape[1]) if target_std is None else errors.new_tensor(list(target_std))
    return {
        "r2": r2(logits, labels),
        "rmse": (errors.square().mean(dim=0).sqrt() * unit).mean().item(),
        "mae": (errors.abs().mean(dim=0) * unit).mean().item(),
        "nll": errors.square().mean().item(),
    }
