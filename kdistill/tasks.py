"""What is learnt: one of several classes, several classes at once, or numbers. Loss, scores and their order.

N samples; K classes, or values to predict. Labels that are not known are left out of the loss, and so does a
batch without any known label give a loss of 0 with gradients of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.errors import ConfigError, did_you_mean
from kdistill.metrics import calibration, classification, multilabel, regression


class Column(NamedTuple):
    """A score in a table: its key in a summary, its heading, and how a value is written."""

    key: str
    heading: str
    text: Callable[[float], str]

    def value(self, scores: Mapping[str, float]) -> str:
        """The score with its name and unit: `top-1 92.31 %`."""
        name, _, unit = self.heading.partition(" ")
        return f"{name} {self.text(scores[self.key])} {unit}".rstrip()


class HardLoss(Protocol):
    """(logits `[N, K]`, labels, label_smoothing) -> scalar, in float32 (float64 stays float64)."""

    def __call__(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor: ...


class Summarise(Protocol):
    """(logits `[N, K]`, labels, all of them known, teacher's logits) -> scores by name, always with `nll`."""

    def __call__(
        self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> dict[str, float]: ...


class Judge(Protocol):
    """(logits `[N, K]`, labels, all of them known, teacher's logits, temperature) -> all scores by name.

    They are those of `Summarise` and more; with a temperature also `nll_scaled` and `ece_scaled`.
    """

    def __call__(
        self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, T: float | None = None
    ) -> dict[str, float]: ...


@dataclass(frozen=True)
class Task:
    """What the labels are, and what follows from it.

    `headline` is the score that a result is known by; `columns` are what tables show. `nll` is a loss-like
    score that every task has. `summarise` gives the few scores that training looks at, `judge` all of them.
    `by_class`: (logits, labels) -> a score of each class, `[K]`, nan where it has no sample. `confusion`: counts.
    `temperature`: (logits, labels) -> the T that makes the labels likeliest; None where there is none.
    """

    name: str
    headline: str
    columns: tuple[Column, ...]
    hard_loss: HardLoss
    summarise: Summarise
    judge: Judge
    by_class: Callable[[Tensor, Tensor], Tensor]
    confusion: Callable[[Tensor, Tensor], Tensor] | None = None
    temperature: Callable[[Tensor, Tensor], float | None] | None = None

    def rank(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """What orders results, larger is better: the headline, and where it is equal the smaller `nll`."""
        return scores[self.headline], -scores["nll"]

    def line(self, scores: Mapping[str, float]) -> str:
        """The headline and the loss-like score for a log: `top-1 92.31 %  NLL 0.2345`, `R2 0.4180  MSE 0.5501`."""
        return "  ".join(
            column.value(scores) for column in self.columns if column.key in (self.headline, "nll")
        )


# --- losses ---


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy with the labels, mean over the samples.

    `labels`: classes, int64 `[N]`; or distributions, float `[N, K]`. A distribution that was mixed with an unlabelled
    sample sums to less than 1, and weighs as much less; a row of zeros is an unlabelled sample, and left out. Label
    smoothing spreads its share of a row's sum evenly over the classes.
    """
    wide = _wide(logits)
    if not labels.is_floating_point():
        return F.cross_entropy(wide, labels, label_smoothing=label_smoothing)
    mass = labels.sum(dim=1, keepdim=True)
    target = (1 - label_smoothing) * labels + label_smoothing * mass / labels.shape[1]
    return -(target * F.log_softmax(wide, dim=1)).sum() / (mass > 0).sum().clamp(min=1)


def labelled_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """`cross_entropy` where some samples have no label: class -1. They are left out of the mean; zero if none has one.

    Apart, since counting the labels takes as long as a small network's cross entropy itself.
    """
    if labels.is_floating_point():
        return cross_entropy(logits, labels, label_smoothing)
    smoothing, wide = label_smoothing, _wide(logits)
    total = F.cross_entropy(wide, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def binary_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross entropy of each class's sigmoid, mean over all known labels of samples and classes.

    `labels`: `[N, K]` in [0, 1]; negative or nan where not known. Label smoothing moves them towards 1/2.
    """
    wide = _wide(logits)
    known = labels >= 0
    target = torch.where(known, (1 - label_smoothing) * labels + label_smoothing / 2, 0).to(wide.dtype)
    losses = F.binary_cross_entropy_with_logits(wide, target, weight=known.to(wide.dtype), reduction="sum")
    return losses / known.sum().clamp(min=1)


def squared_error(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Squared error, mean over all known values of `labels` `[N, K]`, which are nan where not known.

    Raises ConfigError for label smoothing: there are no classes to spread it over.
    """
    if label_smoothing:
        raise ConfigError(
            f"label_smoothing={label_smoothing:g} means nothing for regression: set label_smoothing=0"
        )
    wide = _wide(logits)
    known = ~labels.isnan()
    target = torch.where(known, labels.to(wide.dtype), wide.detach())
    return F.mse_loss(wide, target, reduction="sum") / known.sum().clamp(min=1)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


# --- the tasks ---


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"  # what diverged is no column of digits


def _digits(value: float) -> str:
    return f"{value:.4g}"


_CALIBRATION = (
    Column("brier", "Brier", _number),
    Column("ece", "ECE %", _percent),
    Column("ece_scaled", "at T %", _percent),
    Column("temperature", "T", lambda value: f"{value:.2f}"),
)
_TEACHER = (Column("agreement", "agree %", _percent), Column("kl", "KL", _number))

CLASSIFICATION = Task(
    name="classification",
    headline="top1",
    columns=(
        Column("top1", "top-1 %", _percent),
        Column("top5", "top-5 %", _percent),
        Column("nll", "NLL", _number),
        *_CALIBRATION,
        *_TEACHER,
    ),
    hard_loss=cross_entropy,
    summarise=classification.summarise,
    judge=classification.judge,
    by_class=classification.by_class,
    confusion=classification.confusion_matrix,
    temperature=calibration.class_temperature,
)
MULTILABEL = Task(
    name="multilabel",
    headline="map",
    columns=(
        Column("map", "mAP %", _percent),
        Column("f1", "F1 %", _percent),
        Column("exact", "exact %", _percent),
        Column("nll", "BCE", _number),
        *_CALIBRATION,
        *_TEACHER,
    ),
    hard_loss=binary_cross_entropy,
    summarise=multilabel.summarise,
    judge=multilabel.judge,
    by_class=multilabel.by_class,
    confusion=multilabel.confusion_matrices,
    temperature=calibration.binary_temperature,
)
REGRESSION = Task(
    name="regression",
    headline="r2",
    columns=(
        Column("r2", "R2", _number),
        Column("rmse", "RMSE", _digits),
        Column("mae", "MAE", _digits),
        Column("nll", "MSE", _number),
        Column("distance", "to teacher", _digits),
    ),
    hard_loss=squared_error,
    summarise=regression.summarise,
    judge=regression.judge,
    by_class=regression.by_value,
)
TASKS = {task.name: task for task in (CLASSIFICATION, MULTILABEL, REGRESSION)}


def task_of(name: str, target_std: Sequence[float] | None = None, all_labelled: bool = True) -> Task:
    """The task of this name; `target_std` (`Data.target_std`) gives RMSE and MAE in the values' own units.

    `all_labelled` says that no training sample lacks its class.
    Raises ConfigError for a name that there is not.
    """
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}.{did_you_mean(name, TASKS)} There are {', '.join(TASKS)}")
    if name == REGRESSION.name and target_std is not None:
        return replace(
            REGRESSION,
            summarise=partial(regression.summarise, target_std=target_std),
            judge=partial(regression.judge, target_std=target_std),
        )
    if name == CLASSIFICATION.name and not all_labelled:
        return replace(CLASSIFICATION, hard_loss=labelled_cross_entropy)
    return TASKS[name]
