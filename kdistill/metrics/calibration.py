"""Calibration: how far confidence is from accuracy, and the temperature that mends it.

Source: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

#: of logits and labels
Score = Callable[[Tensor, Tensor], float]
#: where the temperature is looked for, and in how many halvings of the range's logarithm: to 3e-7 of its value
T_MIN, T_MAX, HALVINGS = 0.01, 100.0, 25


def calibration_gap(confidence: Tensor, outcome: Tensor, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: mean gap between confidence and outcome over equal bins.

    `confidence`: `[M]` in [0, 1]; `outcome`: `[M]`, 1 where it came true and else 0.
    """
    gap = confidence - outcome.to(confidence.dtype)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins are (low, high], as published
    gaps = gap.new_zeros(bins).index_add_(0, bin_of, gap)
    return (gaps.abs().sum() / len(gap)).item()


def scaled_scores(
    logits: Tensor, labels: Tensor, T: float | None, nll: Score, ece: Score
) -> dict[str, float]:
    """`nll_scaled` and `ece_scaled`: a task's scores of the logits divided by T; nothing without a temperature."""
    if T is None:
        return {}
    scaled = logits.double() / T
    return {"nll_scaled": nll(scaled, labels), "ece_scaled": ece(scaled, labels)}


def class_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The T that makes the softmax of `logits / T` likeliest, for labels `[N]`; None as in `best_temperature`."""
    wide = logits.double()
    given = wide.gather(1, labels[:, None])

    def slope(scale: float) -> float:
        expected = ((scale * wide).softmax(dim=1) * wide).sum(dim=1, keepdim=True)
        return (expected - given).mean().item()

    return best_temperature(slope)


def binary_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The T that makes the sigmoids of `logits / T` likeliest, for labels `[N, K]`; None as in `best_temperature`."""
    wide = logits.double()
    return best_temperature(lambda scale: (((scale * wide).sigmoid() - labels) * wide).mean().item())


def best_temperature(slope: Callable[[float], float]) -> float | None:
    """The T at which the mean NLL of logits that are divided by it is least.

    `slope` is the NLL's derivative by 1 / T. The NLL is convex in 1 / T, so the derivative rises, and its zero is
    found by halving the range of log T. None where it has no zero within T_MIN and T_MAX: where all is right, NLL
    falls as T does; where nothing is better than chance, it falls as T grows.
    """
    if not slope(1 / T_MAX) < 0 < slope(1 / T_MIN):  # also where logits are nan
        return None
    low, high = math.log(T_MIN), math.log(T_MAX)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if slope(math.exp(-middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
