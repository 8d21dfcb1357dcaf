"""The one formula: loss = alpha * CE(student, labels) + beta * soft(student, teacher) + weighted feature terms.

`CE` stands for the task's hard loss. Weights and `T` may change from epoch to epoch; `Objective.at` gives
the objective of one epoch, in which they are numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor, nn

from kdistill import plugins
from kdistill.config.losses import LabelSmoothingLoss, LogitLoss, Loss, OwnLoss
from kdistill.config.section import Ramp, at, largest
from kdistill.losses import controls, correlation, decoupled, matching, soft
from kdistill.losses.outputs import Outputs
from kdistill.tasks import CLASSIFICATION, Task

#: kind -> function of `student_logits`, and of those of `teacher_logits`, `labels`, `T` and parameters that it names
LOGIT_LOSSES: dict[str, Callable[..., Tensor]] = {
    "kd": soft.kd_loss,
    "reverse_kl": soft.reverse_kl_loss,
    "js": soft.js_loss,
    "soft_ce": soft.soft_ce_loss,
    "logit_mse": soft.logit_mse_loss,
    "hard_label": soft.hard_label_loss,
    "dkd": decoupled.dkd_loss,
    "nkd": decoupled.nkd_loss,
    "dist": correlation.dist_loss,
    "mlkd": correlation.mlkd_loss,
    "ttm": matching.ttm_loss,
    "wttm": matching.wttm_loss,
    "ofa": matching.ofa_loss,
    "teacher_free": controls.teacher_free_loss,
}
#: task -> kind -> the same idea where classes do not exclude each other, or where there are none
OTHER_TASKS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "multilabel": {"kd": soft.binary_kd_loss},
    "regression": {"kd": soft.regression_mse_loss},
}


class Sample(Protocol):
    """What the losses read of a batch; `kdistill.data.Batch` is one."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def indices(self) -> Tensor: ...


@dataclass(frozen=True)
class SoftLoss:
    """A loss on logits with its parameters bound."""

    function: Callable[..., Tensor]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def names(self) -> set[str]:
        return set(inspect.signature(self.function).parameters)

    def __call__(
        self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, T: float
    ) -> Tensor:
        given = {"teacher_logits": teacher_logits, "labels": labels, "T": T}
        known = {name: value for name, value in given.items() if name in self.names}
        return self.function(student_logits, **known, **self.parameters)


@dataclass(frozen=True)
class FeaturePart:
    """A term on the features of pairs of layers (student's, teacher's), with its weight."""

    name: str
    weight: float | Ramp
    term: nn.Module
    pairs: tuple[tuple[str, str], ...]

    def __call__(self, student: Outputs, teacher: Outputs, batch: Sample) -> Tensor:
        # float32 whatever the networks' precision: relations between samples drown in bfloat16's rounding
        theirs = [teacher.features[name].float() for _, name in self.pairs]
        own = [student.features[name].float() for name, _ in self.pairs]
        value: Tensor = self.term(own, theirs, batch.labels, batch.indices)
        return value


@dataclass(frozen=True)
class Objective:
    """What a network is trained on: calling it returns the loss's terms, which `weights` weighs.

    `alpha` weighs the task's hard loss with the labels, `beta` the loss on logits. A term of weight zero is not
    computed: with `beta=0` and no features no teacher is asked.
    """

    task: Task = CLASSIFICATION
    alpha: float | Ramp = 1.0
    label_smoothing: float = 0.0
    beta: float | Ramp = 0.0
    soft: SoftLoss | None = None
    T: float | Ramp = 1.0
    features: tuple[FeaturePart, ...] = ()

    @property
    def needs_teacher(self) -> bool:
        on_logits = self.soft is not None and "teacher_logits" in self.soft.names and largest(self.beta) > 0
        return on_logits or any(largest(part.weight) > 0 for part in self.features)

    @property
    def student_layers(self) -> list[str]:
        return [own for part in self.features for own, _ in part.pairs]

    @property
    def teacher_layers(self) -> list[str]:
        return [theirs for part in self.features for _, theirs in part.pairs]

    def at(self, progress: float) -> Objective:
        """The objective after the share `progress` of the training, in (0, 1]: all weights are numbers."""
        return replace(
            self,
            alpha=at(self.alpha, progress),
            beta=at(self.beta, progress),
            T=at(self.T, progress),
            features=tuple(replace(part, weight=at(part.weight, progress)) for part in self.features),
        )

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weight of each term that is computed: `hard`, `soft`, and each feature term's own name."""
        weights = {"hard": self.alpha, "soft": self.beta if self.soft else 0.0}
        weights |= {part.name: part.weight for part in self.features}
        present = {name: at(weight, 1) for name, weight in weights.items()}
        return {name: weight for name, weight in present.items() if weight > 0} or {"hard": 0.0}

    def __call__(self, student: Outputs, batch: Sample, teacher: Outputs | None = None) -> dict[str, Tensor]:
        """The terms that have a weight, by name, in the order of `weights`."""
        terms: dict[str, Tensor] = {}
        if "hard" in self.weights:
            terms["hard"] = self.task.hard_loss(student.logits, batch.labels, self.label_smoothing)
        if "soft" in self.weights:
            terms["soft"] = self._soft(student, batch, teacher)
        for part in self.features:
            if part.name in self.weights:
                assert teacher is not None
                terms[part.name] = part(student, teacher, batch)
        return terms

    def _soft(self, student: Outputs, batch: Sample, teacher: Outputs | None) -> Tensor:
        assert self.soft is not None
        own = student.logits
        if teacher is not None and teacher.classes is not None:
            own = own[:, teacher.classes]  # the teacher says nothing about the other classes
        return self.soft(own, teacher.logits if teacher else None, batch.labels, at(self.T, 1))


def build_objective(
    loss: Loss,
    label_smoothing: float = 0.0,
    task: Task = CLASSIFICATION,
    features: tuple[FeaturePart, ...] = (),
) -> Objective:
    """The objective that a checked `loss` section describes, with its feature terms already built."""
    if isinstance(loss, LabelSmoothingLoss):
        label_smoothing = loss.smoothing
    objective = Objective(task=task, alpha=loss.alpha, label_smoothing=label_smoothing, features=features)
    if not isinstance(loss, LogitLoss):
        return objective
    return replace(objective, beta=loss.soft_weight, soft=soft_loss(loss, task), T=getattr(loss, "T", 1.0))


def soft_loss(loss: LogitLoss, task: Task = CLASSIFICATION) -> SoftLoss:
    """The function on logits that a `loss` section names, with its parameters."""
    if isinstance(loss, OwnLoss):
        return SoftLoss(plugins.find(loss.name).function, loss.params)
    function = OTHER_TASKS.get(task.name, LOGIT_LOSSES)[loss.kind]
    own = {name: value for name, value in loss.parameters.items() if name != "T"}
    names = inspect.signature(function).parameters
    return SoftLoss(function, {name: value for name, value in own.items() if name in names})
