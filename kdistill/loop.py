"""The one training loop, for teacher, student and fine-tuning, and the one inference loop.

The order of samples is a function of (seed, epoch) and the pixels of (seed, view, sample), so a run can be
taken up at any step; what a checkpoint must hold is listed in `State.state_dict`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdistill import fsdp, ranks
from kdistill.config.schema import Training
from kdistill.config.section import Ramp, at
from kdistill.data import Batch, Split
from kdistill.engine import Engine
from kdistill.errors import Diverged, Interrupted
from kdistill.features import observe
from kdistill.losses import Outputs, Sample
from kdistill.records import Progress
from kdistill.state import Fitted, State
from kdistill.stopping import StopRequest, stop_requests
from kdistill.tasks import Task
from kdistill.teachers import TeacherSignal
from kdistill.training_data import TrainingData

log = logging.getLogger("kdistill")


class Checkpoint(Protocol):
    """Where a run's state is kept; `kdistill.artifacts.Work` is one."""

    def load_checkpoint(self) -> dict[str, Any] | None: ...
    def save_checkpoint(self, state: dict[str, Any]) -> None: ...
    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> None: ...


class Goal(Protocol):
    """What a network is trained on; `kdistill.losses.Objective` is the one for a student and its teacher."""

    @property
    def T(self) -> float | Ramp: ...
    @property
    def needs_teacher(self) -> bool: ...
    @property
    def student_layers(self) -> Sequence[str]: ...
    @property
    def task(self) -> Task: ...
    @property
    def weights(self) -> Mapping[str, float]: ...

    def at(self, progress: float) -> Goal: ...
    def __call__(
        self, student: Outputs, batch: Sample, teacher: Outputs | None = None
    ) -> dict[str, Tensor]: ...


def fit(
    network: nn.Module,
    data: TrainingData,
    validation: Split,
    objective: Goal,
    settings: Training,
    engine: Engine,
    *,
    signal: TeacherSignal | None = None,
    checkpoint: Checkpoint | None = None,
    judge_start: bool = False,
    title: str = "training",
    checkpoint_seconds: float = 300,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Fitted:
    """Train `network` in place and leave the kept state in it.

    Resumes from `checkpoint` when it holds a state, and saves one after every epoch, every
    `checkpoint_seconds` within an epoch, and when a stop is asked for. With `judge_start`, the starting
    state is a candidate for `keep: best`: fine-tuning never ends worse on validation than it began.
    `on_epoch` is given the row of metrics of every epoch that is trained, after its state is saved, and before them
    those of a run that is gone on with; what it raises ends the training.

    Raises:
        Diverged: the loss is not finite. On a CPU the optimizer has not moved on it; elsewhere it is found some steps
            later, and no state that has moved on it is saved.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    state = State(network, len(data.split), settings, engine, objective.task)
    step: nn.Module = Step(network, engine)
    step = fsdp.lead(step, engine.device) if engine.shard else ranks.wrap(step)
    saved = checkpoint.load_checkpoint() if checkpoint else None
    if saved is not None:
        state.load_state_dict(saved)
        log.info(
            "%s: going on at epoch %d of %d, step %d", title, state.epoch + 1, settings.epochs, state.step
        )
        for row in state.history:
            on_epoch(row)
    elif judge_start or not settings.epochs:
        state.consider(_validated(state, validation))

    ranks.own_randomness()
    with stop_requests() as stop, Progress(title, state.total_steps, state.steps_done) as bar:
        while not state.finished:
            saver = _Saver(state, checkpoint, checkpoint_seconds, stop)
            images_per_second = _train_epoch(state, step, data, objective, signal, bar, saver)
            row = state.end_epoch(_validated(state, validation), images_per_second)
            if checkpoint:
                checkpoint.write_lines("metrics.jsonl", state.history)
            saver.save()
            _report(row, state, title)
            on_epoch(row)
            saver.stop_if_asked()
    return state.result()


class Step(nn.Module):
    """A network with what it is trained on, so that `forward` gives all that is learnt from."""

    def __init__(self, network: nn.Module, engine: Engine) -> None:
        super().__init__()
        self.network, self.engine = network, engine

    def forward(self, batch: Batch, objective: Goal, teacher: Outputs | None) -> dict[str, Tensor]:
        """Each term of the loss on a batch, before its weight."""
        with self.engine.autocast():
            student = observe(self.network, batch.images, objective.student_layers)
        return objective(student, batch, teacher)


def _train_epoch(
    state: State,
    step: nn.Module,
    data: TrainingData,
    objective: Goal,
    signal: TeacherSignal | None,
    bar: Progress,
    saver: _Saver,
) -> float:
    """Take the epoch's steps that are left; returns their images per second."""
    started, first = time.perf_counter(), state.step
    state.network.train()
    view = data.view(state.epoch)
    objective = objective.at((state.epoch + 1) / state.settings.epochs)
    for batch in data.batches(state.epoch, state.batch_size, start=state.step):
        train_step(state, step, batch, view, objective, signal)
        seen = len(batch) * ranks.size()
        bar.advance(seen, lambda: f"{state.where}  loss {state.mean_terms()['loss']:.4f}")
        saver.after_step()
    seconds = max(1e-9, time.perf_counter() - started)
    return (state.step - first) * state.batch_size / seconds


def train_step(
    state: State,
    step: nn.Module,
    batch: Batch,
    view: int,
    objective: Goal,
    signal: TeacherSignal | None,
) -> None:
    """One step of the optimizer on a batch, recorded in `state`; `step` is a `Step`. Raises `Diverged`.

    Gradients are accumulated over parts of the batch, to save memory.
    """
    state.set_learning_rate()
    parts = list(batch.chunks(state.settings.optim.accumulate))
    seen: list[tuple[float, list[Tensor]]] = []  # of each part its share and the loss's terms
    for part in parts:
        share = len(part) / len(batch) * ranks.weight(state.batch_size)
        teacher = signal(part, view, at(objective.T, 1)) if signal and objective.needs_teacher else None
        with ranks.only_adding(step, last=part is parts[-1]):
            terms = step(part, objective, teacher)
            # a sum, not terms whose gradients are their weights: to check those, PyTorch imports SymPy
            pairs = zip(terms.values(), objective.weights.values(), strict=True)
            loss = reduce(torch.add, [share * weight * term for term, weight in pairs])
            state.scaler.scale(loss).backward()
        seen.append((share, [term.detach() for term in terms.values()]))
    state.tally.add(state.step, objective.weights, seen)
    if state.looks_at_loss:
        _check_finite(state)
    state.optimizer_step()


def _check_finite(state: State) -> None:
    """Raise `Diverged` where the loss of a step since the last look is not finite."""
    broken = state.tally.look().broken
    if broken is None:
        return
    values = ", ".join(f"{name}={value:g}" for name, value in broken.terms.items())
    unmoved = "the weights have" if broken.step == state.step else "what is saved has"
    raise Diverged(
        f"the loss is not finite at {state.place(broken.step)} (terms: {values}); {unmoved} not moved on it."
        f" A smaller optim.lr (now {state.settings.optim.lr:g}), optim.clip_norm=1 or device.precision=fp32 may help"
    )


def _validated(state: State, validation: Split) -> dict[str, float]:
    """Validation metrics of the state as it is; a step that broke the weights shows here at the latest."""
    ranks.align(state.averaged)
    found = predict(state.averaged, validation, state.settings.batch_size, state.engine)
    scores = state.task.summarise(*found)
    if not math.isfinite(scores["nll"]):
        raise Diverged(
            f"the validation loss is not finite after {state.where}."
            f" A smaller optim.lr (now {state.settings.optim.lr:g}) or optim.clip_norm=1 may help"
        )
    return scores


def _report(row: dict[str, Any], state: State, title: str) -> None:
    scores = {name.removeprefix("validation_"): value for name, value in row.items()}
    log.info(
        "%s epoch %d/%d  loss %.4f%s  val %s  %s images/s  lr %.3g",
        *(title, row["epoch"], state.settings.epochs, row["loss"], _terms(row), state.task.line(scores)),
        *(f"{row['images_per_second']:,.0f}", row["lr"]),
    )


def _terms(row: dict[str, Any]) -> str:
    """What the loss is made of, where a feature term is a part: its weight may drown the others."""
    names = list(row)
    terms = names[
        names.index("loss") + 1 : next(i for i, n in enumerate(names) if n.startswith("validation_"))
    ]
    if set(terms) <= {"hard", "soft"}:
        return ""
    return f" ({', '.join(f'{name} {row[name]:.3g}' for name in terms)})"


def predict(network: nn.Module, split: Split, batch_size: int, engine: Engine) -> tuple[Tensor, Tensor]:
    """Logits `[N, K]` (float32) and labels `[N]` of a whole split, in its order, on the CPU."""
    logits, indices = predict_rows(network, split, batch_size, engine)
    return logits, split.labels.cpu()[indices]


@torch.no_grad()  # what is gathered of sharded networks in inference mode would not do for training
def predict_rows(network: nn.Module, split: Split, batch_size: int, engine: Engine) -> tuple[Tensor, Tensor]:
    """Logits `[N, K]` (float32) of a whole split and the samples' positions, int64 `[N]`, in order, on the CPU.

    Samples that cannot be decoded are left out. Each rank predicts its share of the batches, and all get all of it.
    """
    was_training = network.training
    network.eval()
    batch_size = min(batch_size, max(1, len(split) // ranks.size()))  # no rank is left without a batch
    mine = torch.cat(ranks.share(torch.arange(len(split)).split(batch_size)))
    count = ranks.most(-(-len(mine) // batch_size)) if engine.shard else 0

    def answers() -> Iterator[tuple[Tensor, Tensor]]:
        asked = 0
        for asked, batch in enumerate(split.batches(mine, batch_size), 1):  # noqa: B007
            with engine.autocast():
                logits = network(batch.images).float()
            yield logits, batch.indices
        for _ in range(count - asked):
            network(batch.images[:1])  # the others have a batch more, and run a network that is shared out

    logits, indices = zip(*engine.fetched(answers()), strict=True)
    network.train(was_training)
    return ranks.gather(torch.cat(logits)), ranks.gather(torch.cat(indices))


@dataclass
class _Saver:
    """Saves the state within an epoch: from time to time, and when a stop is asked for."""

    state: State
    checkpoint: Checkpoint | None
    every_seconds: float
    stop: StopRequest
    _last: float = field(default_factory=time.monotonic)

    def after_step(self) -> None:
        due = time.monotonic() - self._last > self.every_seconds
        wish = ranks.most(2 if self.stop else int(due))  # all save together: they gather what is sharded
        if wish:
            self.save()
        self._stop_if(wish == 2)

    def save(self) -> None:
        _check_finite(self.state)
        if self.checkpoint:
            self.checkpoint.save_checkpoint(self.state.state_dict())
        self._last = time.monotonic()

    def stop_if_asked(self) -> None:
        self._stop_if(ranks.agree(bool(self.stop)))

    def _stop_if(self, asked: bool) -> None:
        if asked:
            raise Interrupted(
                f"stopped at {self.state.where}; the state is saved: give the same command again to go on"
            )
