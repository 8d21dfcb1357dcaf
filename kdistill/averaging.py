"""Arithmetic between logits and probabilities: several teachers as one, and probabilities as logits.

Shapes: N samples, K classes. Everything is worked out in float32 (float64 stays float64), with
log-softmax and log-sum-exp, so that no probability is rounded to zero on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.errors import ConfigError

#: probabilities below this count as this: the logarithm of zero is no logit
SMALLEST_PROBABILITY = 1e-7

AverageOf = Literal["probabilities", "logits"]


def log_of(probabilities: Tensor) -> Tensor:
    """Return logits `[N, K]` float32 whose softmax is `probabilities` `[N, K]`: their logarithms.

    What is below `SMALLEST_PROBABILITY` becomes its logarithm, -16.1, so that softmax gives the
    probabilities back up to K * 1e-7. Any other temperature is applied to these logits as to a network's.
    """
    return _wide(probabilities).clamp(min=SMALLEST_PROBABILITY).log().float()


def average(logits: Sequence[Tensor], weights: Sequence[float] | None, of: AverageOf, T: float) -> Tensor:
    """Return one teacher's logits `[N, K]` for those of several members, each `[N, K]`.

    `of="logits"`: the weighted mean sum_m w_m z_m; softmax of it is the normalised geometric mean of the
    members' probabilities, at every temperature.
    `of="probabilities"`: T * log(sum_m w_m softmax(z_m / T)), so that softmax(result / T) is the weighted
    (arithmetic) mean of the members' probabilities at `T`; only at this `T`.

    Args:
        logits: one tensor per member.
        weights: one positive number per member, normalised to sum 1; None for equal weights.
        of: what is averaged.
        T: the temperature of the loss, > 0.

    Raises ConfigError for no members, other numbers of weights, a weight that is not positive, and members
    of different shapes. Of one member the logits are returned as they are.

    Source: the mean of the members' probabilities as soft target is in G. Hinton, O. Vinyals, J. Dean,
    "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531, section 1: "an arithmetic or
    geometric mean of their individual predictive distributions".
    """
    shares = _normalised(weights, len(logits))
    shapes = {tuple(member.shape) for member in logits}
    if len(shapes) > 1:
        raise ConfigError(
            f"teachers with logits of shapes {' and '.join(str(s) for s in sorted(shapes))} cannot be averaged:"
            " all need the same classes"
        )
    if len(logits) == 1:
        return _wide(logits[0])
    if of == "logits":
        return torch.stack([share * _wide(z) for share, z in zip(shares, logits, strict=True)]).sum(0)
    return log_mixture(logits, shares, T)


def log_mixture(logits: Sequence[Tensor], weights: Sequence[float], T: float) -> Tensor:
    """Return T * log(sum_m w_m softmax(z_m / T)), `[N, K]`, of tensors `[N, K]`.

    `weights` are not negative and sum to 1; a member of weight 0 does not count.
    """
    parts = [
        F.log_softmax(_wide(z) / T, dim=1) + math.log(weight)
        for weight, z in zip(weights, logits, strict=True)
        if weight > 0
    ]
    return T * torch.stack(parts).logsumexp(0)


def _normalised(weights: Sequence[float] | None, members: int) -> list[float]:
    if members == 0:
        raise ConfigError("there is no teacher to average: name at least one")
    if weights is None:
        return [1 / members] * members
    if len(weights) != members:
        raise ConfigError(f"{len(weights)} weights for {members} teachers: expected one for each, or null")
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(
                f"weight {weight} of a teacher: expected a positive number; to leave a teacher out, take it"
                " out of the list"
            )
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _wide(logits: Tensor) -> Tensor:
    """Half precision loses small probabilities: work in float32."""
    return logits if logits.dtype == torch.float64 else logits.float()
