"""Losses: pure functions of named tensors, and the formula that adds them up."""

from kdistill.losses.formula import Objective, build_objective
from kdistill.losses.soft import kd_loss

__all__ = ["Objective", "build_objective", "kd_loss"]
