"""Metrics of numbers: labels float `[N, K]`, standardised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def by_value(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of each value's variance that is explained (R2), float64 `[K]`; at most 1.

    A value that never varies counts 1 where it is met exactly and else 0.
    """
    labels = labels.double()
    left = (logits.double() - labels).square().sum(dim=0)
    whole = (labels - labels.mean(dim=0)).square().sum(dim=0)
    return torch.where(whole > 0, 1 - left / whole.where(whole > 0, 1), (left == 0).double())


def r2(logits: Tensor, labels: Tensor) -> float:
    """Mean of `by_value` over the values."""
    return by_value(logits, labels).mean().item()


def by_sample(logits: Tensor, labels: Tensor) -> Tensor:
    """Each sample's share of `r2`, float64 `[N]`: 1 less its squared error over the variance of the split's labels.

    Mean over the values; the mean over the samples is `r2`.
    """
    labels = labels.double()
    errors = (logits.double() - labels).square()
    variance = (labels - labels.mean(dim=0)).square().mean(dim=0)
    constant = by_value(logits, labels).expand_as(errors)
    return torch.where(variance > 0, 1 - errors / variance.where(variance > 0, 1), constant).mean(dim=1)


def rmse(logits: Tensor, labels: Tensor, unit: Sequence[float] | None = None) -> float:
    """Root mean squared error, mean over the values; `unit`: what 1 stands for, of each value. None: 1."""
    errors = (logits.double() - labels.double()).square().mean(dim=0).sqrt()
    return (errors * _units(errors, unit)).mean().item()


def summarise(
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
    return {
        "r2": r2(logits, labels),
        "rmse": rmse(logits, labels, target_std),
        "mae": (errors.abs().mean(dim=0) * _units(errors[0], target_std)).mean().item(),
        "nll": errors.square().mean().item(),
    }


def judge(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    T: float | None = None,
    target_std: Sequence[float] | None = None,
) -> dict[str, float]:
    """`summarise`, and `distance`: root mean squared difference to the teacher's values, in own units.

    T means nothing here.
    """
    values = summarise(logits, labels, target_std=target_std)
    if teacher_logits is not None:
        values["distance"] = rmse(logits, teacher_logits, target_std)
    return values


def _units(values: Tensor, unit: Sequence[float] | None) -> Tensor:
    return torch.ones_like(values) if unit is None else values.new_tensor(list(unit))
