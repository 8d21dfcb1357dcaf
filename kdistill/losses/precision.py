"""Half precision in, float32 inside: what every loss between features does with its tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

from kdistill.losses.soft import wide

P = ParamSpec("P")
Loss = Callable[Concatenate[Tensor, Tensor, P], Tensor]


def full_precision(loss: Loss[P]) -> Loss[P]:
    """Give `loss(student, teacher, ...)` wide tensors and no gradient to the teacher.

    Autocast is off inside: it would do the matrix products of float32 tensors in half precision again.
    """

    @wraps(loss)
    def precise(student: Tensor, teacher: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            return loss(wide(student), wide(teacher.detach()), *args, **kwargs)

    return precise
