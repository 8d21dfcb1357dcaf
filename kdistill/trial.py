"""What training will take, from a few of its own steps: seconds, memory, the size of its checkpoint."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from kdistill.config.schema import Training
from kdistill.data import Split
from kdistill.data.splits import ArraySplit
from kdistill.engine import Engine
from kdistill.files import state_bytes
from kdistill.loop import Goal, Step, predict, train_step
from kdistill.resources import peak_memory, reset_peak_memory, synchronize
from kdistill.state import State
from kdistill.teachers import TeacherSignal
from kdistill.training_data import TrainingData

#: at least so many steps are measured after the first, and more until so many seconds are over
STEPS, SECONDS = 2, 1.0


@dataclass(frozen=True)
class Cost:
    """What a stage takes. `seconds` is None where that cannot be known without doing it all."""

    seconds: float | None = None
    steps: int = 0
    """Steps of the optimizer, or batches that the teacher is asked about."""
    step_seconds: float = 0.0
    batch_size: int = 0
    memory: int = 0
    """Bytes in use at its peak, as `kdistill.resources.peak_memory` counts them."""
    kept: int = 0
    """Bytes on disk that stay."""
    judged: int = 0
    """Bytes on disk of what it says of the test split."""
    checkpoint: int = 0
    """Bytes of the state that a stopped run goes on from, gone when the stage is over."""
    asking_seconds: float = 0.0
    """The part of a step that goes into asking live teachers."""
    out_of_memory: bool = False
    """The device has too little memory for a step."""


def pace(steps: Iterator[object], device: torch.device) -> tuple[float, float]:
    """Seconds of the first of endless `steps`, which warms up, and the mean of those after it."""
    started = time.perf_counter()
    next(steps)
    synchronize(device)
    begun = time.perf_counter()
    for count, _ in enumerate(steps, 1):
        synchronize(device)
        elapsed = time.perf_counter() - begun
        if count >= STEPS and elapsed > SECONDS:
            break
    return begun - started, elapsed / count


def try_fit(
    network: nn.Module,
    data: TrainingData,
    validation: Split,
    objective: Goal,
    settings: Training,
    engine: Engine,
    *,
    signal: TeacherSignal | None = None,
    judge_start: bool = False,
) -> Cost:
    """What `kdistill.loop.fit` takes with the same arguments; trains `network` for a few steps.

    A validation is timed on its first batch, and a checkpoint as it is made, without the disk's share.
    """
    reset_peak_memory(engine.device)
    state = State(network, len(data.split), settings, engine, objective.task)
    first = step = 0.0
    if settings.epochs:
        network.train()
        first, step = pace(_steps(state, data, objective, signal), engine.device)
    validating = _validation_seconds(state, validation)
    started = time.perf_counter()
    checkpoint = len(state_bytes(state.state_dict()))
    saving = time.perf_counter() - started
    validations = settings.epochs + (judge_start or not settings.epochs)
    return Cost(
        seconds=first
        + max(0, state.total_steps - 1) * step
        + validations * validating
        + settings.epochs * saving,
        steps=state.total_steps,
        step_seconds=step,
        batch_size=state.batch_size,
        memory=peak_memory(engine.device),
        checkpoint=checkpoint if settings.epochs else 0,
    )


def _steps(state: State, data: TrainingData, objective: Goal, signal: TeacherSignal | None) -> Iterator[None]:
    """The training's steps, epoch after epoch without an end."""
    objective = objective.at(1 / state.settings.epochs)
    step = Step(state.network, state.engine)
    for epoch in itertools.count():
        for batch in data.batches(epoch, state.batch_size):
            train_step(state, step, batch, data.view(epoch), objective, signal)
            yield


def _validation_seconds(state: State, validation: Split) -> float:
    """Seconds of one validation, after which the state is kept as it would be."""
    size = state.batch_size
    for _ in range(2):  # the first time warms up
        started = time.perf_counter()
        batches = validation.batches(torch.arange(len(validation)), size)
        batch = next(batch for batch in batches if len(batch.images))
        part = ArraySplit(batch.images, batch.labels)
        scores = state.task.summarise(*predict(state.averaged, part, size, state.engine))
        elapsed = time.perf_counter() - started
    state.consider(scores)
    return elapsed * len(validation) / len(part)
