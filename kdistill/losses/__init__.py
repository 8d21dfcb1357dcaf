"""Losses: pure functions of named tensors, terms on features, and the formula that adds them up."""

from kdistill.losses.formula import FeaturePart, Objective, Sample, SoftLoss, build_objective
from kdistill.losses.mutual import MutualObjective
from kdistill.losses.outputs import Outputs
from kdistill.losses.soft import kd_loss

__all__ = [
    "FeaturePart",
    "MutualObjective",
    "Objective",
    "Outputs",
    "Sample",
    "SoftLoss",
    "build_objective",
    "kd_loss",
]
