"""Where teacher logits come from. The loss and the loop see only a `TeacherSignal`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdistill import ranks
from kdistill.averaging import AverageOf, average, log_mixture
from kdistill.classes import ClassMap
from kdistill.data import Batch, Together
from kdistill.engine import Engine
from kdistill.estimators import estimator_logits, estimator_values
from kdistill.features import observe
from kdistill.losses.outputs import Outputs
from kdistill.stored import Reader

#: (augmented batch, its view, T of the loss) -> what the teacher says of it: logits [N, K] in float32 on the
#: batch's device, without gradient
TeacherSignal = Callable[[Batch, int, float], Outputs]


class Live(ABC):
    """A teacher that is asked in every step."""

    together = False
    """Whether all ranks must ask equally often, be it about no image: each holds a part of the teacher."""

    @abstractmethod
    def outputs(self, images: Tensor) -> Outputs:
        """Logits `[N, K]`, and features where layers are tapped, of images `[N, C, H, W]`."""

    def logits(self, images: Tensor) -> Tensor:
        return self.outputs(images).logits

    def __call__(self, batch: Batch, view: int, T: float) -> Outputs:
        return self.outputs(batch.images if batch.teacher_images is None else batch.teacher_images)


class LiveTeacher(Live):
    """Runs a network. Its weights and batch-norm statistics stay as they are.

    The network always sees batches of exactly `batch_size` samples, the last one padded: the rounding of
    a sample's logits depends on the size of the batch (by about 1e-7), but neither on its place in it nor
    on its company. So a sample's logits are the same bits whichever batch it comes in, stored or live.
    `layers` names the submodules whose features are wanted besides.
    """

    def __init__(
        self,
        network: nn.Module,
        batch_size: int,
        engine: Engine,
        *,
        layers: Sequence[str] = (),
    ) -> None:
        self._network = network.eval().requires_grad_(False)
        self._batch_size = batch_size
        self._engine = engine
        self.together = engine.shard
        self._layers = list(layers)

    @torch.no_grad()
    def outputs(self, images: Tensor) -> Outputs:
        batches = list(images.split(self._batch_size))
        if self.together:  # a batch of nothing is padded like any other
            batches += [images[:0]] * (ranks.most(len(batches)) - len(batches))
        parts = [self._padded(batch) for batch in batches]
        features = {name: torch.cat([part.features[name] for part in parts]) for name in self._layers}
        return Outputs(torch.cat([part.logits for part in parts]).float(), features)

    def _padded(self, images: Tensor) -> Outputs:
        missing = self._batch_size - len(images)
        if missing:
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        with self._engine.autocast():
            found = observe(self._network, images, self._layers)
        count = self._batch_size - missing
        return Outputs(found.logits[:count], {name: value[:count] for name, value in found.features.items()})


class EstimatorTeacher(Live):
    """Asks a scikit-learn estimator: a classifier's log-probabilities, a regressor's values.

    `shown` is what it sees of the images: a function of images (`kdistill.data.InputView`).
    """

    def __init__(
        self, estimator: Any, classes: int, shown: Callable[[Tensor], Tensor], task: str = "classification"
    ) -> None:
        self._estimator, self._classes, self._shown, self._task = estimator, classes, shown, task

    def outputs(self, images: Tensor) -> Outputs:
        shown = self._shown(images).cpu()
        if self._task == "regression":
            values = estimator_values(self._estimator, shown)
        else:
            values = estimator_logits(self._estimator, shown, self._classes)
        return Outputs(values.to(images.device))


class RescaledTeacher(Live):
    """A live teacher of values in other units: `factor * values + offset`, each `[D]`, are in the student's."""

    def __init__(self, teacher: Live, factor: Tensor, offset: Tensor) -> None:
        self._teacher, self._factor, self._offset = teacher, factor, offset
        self.together = teacher.together

    def outputs(self, images: Tensor) -> Outputs:
        outputs = self._teacher.outputs(images)
        return replace(outputs, logits=outputs.logits * self._factor + self._offset)


def _mixed_values(values: Sequence[Tensor], shares: Sequence[float], T: float) -> Tensor:
    """The mean of values `[N, D]` by their shares."""
    return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0)


def _mixed_sigmoids(logits: Sequence[Tensor], shares: Sequence[float], T: float) -> Tensor:
    """Logits `[N, K]` whose sigmoid at T is the mean of the sigmoids at T by their shares."""
    yes, no = (
        torch.stack(
            [F.logsigmoid(sign * z / T) + math.log(w) for z, w in zip(logits, shares, strict=True) if w]
        )
        for sign in (1, -1)
    )
    return T * (yes.logsumexp(0) - no.logsumexp(0))


#: task -> what stands for the teacher's answer about two images that were mixed: (answers, shares, T) -> answer
MIXTURES: dict[str, Callable[[Sequence[Tensor], Sequence[float], float], Tensor]] = {
    "classification": log_mixture,
    "multilabel": _mixed_sigmoids,
    "regression": _mixed_values,
}


class StoredTeacher:
    """Reads a teacher's logits from disk.

    For a mixed image it gives the mean of the answers (probabilities at T) about the two that it was mixed from,
    by their shares: an approximation of what the teacher would say of the mixed image itself. `mixture` is one of
    `MIXTURES`.
    """

    def __init__(
        self,
        stored: Reader,
        mixture: Callable[[Sequence[Tensor], Sequence[float], float], Tensor] = log_mixture,
    ) -> None:
        self._stored, self._mixture = stored, mixture
        self._ahead: tuple[Together | None, int, Sequence[Tensor]] = None, 0, ()

    def __call__(self, batch: Batch, view: int, T: float) -> Outputs:
        logits = self._logits(batch, view)
        if batch.mixed_with is not None:
            others = self._stored.logits(view, batch.mixed_with)
            logits = self._mixture([logits, others], [batch.share, 1 - batch.share], T)
        return Outputs(logits)

    def _logits(self, batch: Batch, view: int) -> Tensor:
        """Logits `[N, K]` of a batch, looked up for all batches that were read together at once."""
        together = batch.together
        if together is None:
            return self._stored.logits(view, batch.indices)
        if self._ahead[0] is not together or self._ahead[1] != view:
            answers = self._stored.logits(view, together.indices).split(together.sizes)
            self._ahead = together, view, answers
        return self._ahead[2][batch.place]


class MappedTeacher:
    """Brings a teacher's classes to the student's."""

    def __init__(self, signal: TeacherSignal, classes: ClassMap) -> None:
        self._signal, self._classes = signal, classes
        self._shared = None if classes.is_full else classes.shared

    def __call__(self, batch: Batch, view: int, T: float) -> Outputs:
        outputs = self._signal(batch, view, T)
        if self._shared is not None:
            self._shared = self._shared.to(outputs.logits.device)  # moves once
        return Outputs(self._classes.apply(outputs.logits, T), outputs.features, self._shared)


class AveragedTeachers:
    """An ensemble: the weighted mean of its members' probabilities at T, or of their logits.

    All members speak about the same classes.
    """

    def __init__(
        self, members: Sequence[TeacherSignal], weights: Sequence[float] | None, of: AverageOf
    ) -> None:
        self._members, self._weights, self._of = list(members), weights, of

    def __call__(self, batch: Batch, view: int, T: float) -> Outputs:
        outputs = [member(batch, view, T) for member in self._members]
        logits = average([o.logits for o in outputs], self._weights, self._of, T)
        return Outputs(logits, classes=outputs[0].classes)
