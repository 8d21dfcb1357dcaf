"""Optimizers from their config, and the learning rate as a pure function of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import nn

from kdistill.config.optim import SGD, Constant, Cosine, MultiStep, Optim, Schedule

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def build_optimizer(model: nn.Module, config: Optim) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable weights; weight decay only on those with two or more axes.

    Biases and the scales of norms are not decayed: shrinking them does not regularise, it only
    fights the normalisation (Goyal et al. 2017, arXiv 1706.02677, section 5.3).
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    if isinstance(config, SGD):
        sgd = _without_compiler(torch.optim.SGD)
        return sgd(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return _without_compiler(torch.optim.AdamW)(groups, lr=config.lr, betas=config.betas)


@cache
def _without_compiler(kind: type[Kind]) -> type[Kind]:
    """The same optimizer, that does not import PyTorch's compiler.

    PyTorch wraps these methods for calls from compiled code, which kdistill never makes, and the wrappers import the
    compiler when they are first called: a second of each command that trains.
    """
    names = ("add_param_group", "zero_grad", "step", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])
    return type(kind.__name__, (kind,), methods)


def learning_rate(config: Optim, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step, counted from 0.

    The warm-up is linear and reaches `lr` at its last step; the schedule runs over the steps after it.
    """
    total = epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total)

    def at(step: int) -> float:
        if step < warmup:
            return config.lr * (step + 1) / warmup
        progress = (step - warmup) / max(1, total - warmup)
        return config.lr * schedule_factor(config.schedule, progress)

    return at


def schedule_factor(schedule: Schedule, progress: float) -> float:
    """Factor on the peak learning rate after `progress` (0 to 1) of the steps after the warm-up."""
    match schedule:
        case Constant():
            return 1.0
        case Cosine(final=final):
            return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
        case MultiStep(milestones=milestones, gamma=gamma):
            return gamma ** sum(progress >= milestone for milestone in milestones)
