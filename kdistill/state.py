"""The state of a training run: everything that changes while it trains, and what a checkpoint holds of it."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdistill import fsdp, ranks
from kdistill.config.schema import Training
from kdistill.engine import Engine
from kdistill.errors import DataError
from kdistill.learners import Learner
from kdistill.optim import build_optimizer, learning_rate
from kdistill.tally import Tally
from kdistill.tasks import Task

log = logging.getLogger("kdistill")


@dataclass(frozen=True)
class Fitted:
    """What `fit` returns: the network holds the kept state; `history` has one row per epoch."""

    history: list[dict[str, Any]]
    scores: dict[str, float]
    """Validation metrics of the kept state."""
    seconds: float
    """Training time, over all starts of the run."""


class State:
    """Everything that changes during training."""

    def __init__(
        self, network: nn.Module, samples: int, settings: Training, engine: Engine, task: Task
    ) -> None:
        self.network, self.settings, self.engine, self.task = network, settings, engine, task
        self.batch_size = usable_batch_size(settings, samples)
        self.steps_per_epoch = samples // self.batch_size
        self.ema = _moving_average(network, settings.optim.ema)  # first: what is sharded cannot be copied
        _spread(network, engine, trained=True)
        if self.ema is not None:
            _spread(self.ema.module, engine, trained=False)
        self.optimizer = build_optimizer(network, settings.optim)
        self.learning_rate = learning_rate(settings.optim, settings.epochs, self.steps_per_epoch)
        self.scaler = engine.scaler()
        self.epoch = self.step = 0  # finished epochs; finished steps of the running one
        self.tally = Tally()  # of the running epoch
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, float] = {}  # best validation metrics so far
        self.kept: dict[str, float] = {}  # validation metrics of the kept state
        self.kept_weights: dict[str, Tensor] = {}
        self.waited = 0  # epochs without a better validation
        self.seconds = 0.0
        self._clock = time.perf_counter()

    @property
    def averaged(self) -> nn.Module:
        """The network that is validated and kept: the moving average where there is one."""
        return self.network if self.ema is None else self.ema.module

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    @property
    def steps_done(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    @property
    def finished(self) -> bool:
        patience = self.settings.optim.early_stopping
        return self.epoch >= self.settings.epochs or (patience is not None and self.waited >= patience)

    @property
    def where(self) -> str:
        return self.place(self.step)

    def place(self, step: int) -> str:
        """A step of the running epoch, in words."""
        epoch = min(self.epoch + 1, self.settings.epochs)
        return f"epoch {epoch}/{self.settings.epochs} step {step}/{self.steps_per_epoch}"

    @property
    def looks_at_loss(self) -> bool:
        """Whether this step's loss is looked at: each on a CPU, elsewhere now and then, and the epoch's last."""
        return (self.step + 1) % self.engine.look_every == 0 or self.step + 1 == self.steps_per_epoch

    def set_learning_rate(self) -> None:
        lr = self.learning_rate(self.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def optimizer_step(self) -> None:
        if self.settings.optim.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        self.step += 1

    def mean_terms(self) -> dict[str, float]:
        """Mean of the loss and of its terms over the running epoch; a GPU is waited for."""
        means = {name: value / self.step for name, value in self.tally.look().sums.items()}
        return {"loss": sum(means.values()), **means}

    def end_epoch(self, scores: dict[str, float], images_per_second: float) -> dict[str, Any]:
        row = {
            "epoch": self.epoch + 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            **self.mean_terms(),
            **{f"validation_{name}": value for name, value in scores.items()},
            "images_per_second": images_per_second,
        }
        self.epoch, self.step, self.tally = self.epoch + 1, 0, Tally()
        self.history.append(row)
        self.waited += 1
        self.consider(scores)
        return row

    def consider(self, scores: dict[str, float]) -> None:
        """Keep the present state if it is the best so far: by the task's measure, and by NLL where that is equal."""
        better = not self.best or self.task.rank(scores) > self.task.rank(self.best)
        if better:
            self.best, self.waited = scores, 0
        if better or self.settings.keep == "last":
            self.kept, self.kept_weights = scores, copy.deepcopy(self.averaged.state_dict())

    def result(self) -> Fitted:
        self.network.load_state_dict(self.kept_weights)
        self.network.eval()
        self._count_seconds()
        return Fitted(self.history, self.kept, self.seconds)

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now

    def state_dict(self) -> dict[str, Any]:
        """All of it, sharded or not. Of sharded networks the main rank gets all, and all ranks call this together."""
        self._count_seconds()
        sums = self.tally.look().sums
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "terms": tuple(sums),
            "sums": list(sums.values()),
            "history": self.history,
            "best": self.best,
            "kept": self.kept,
            "kept_weights": self.kept_weights,
            "waited": self.waited,
            "seconds": self.seconds,
            "random": self.engine.random_state(),
        }
        return fsdp.gathered(state) if self.engine.shard else state

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, of any number of ranks, sharded or not."""
        if self.engine.shard:
            saved = saved | self._cut(saved)
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        self.epoch, self.step, self.waited = saved["epoch"], saved["step"], saved["waited"]
        self.tally = Tally(dict(zip(saved["terms"], saved["sums"], strict=True)))
        self.history, self.seconds = saved["history"], saved["seconds"]
        self.best, self.kept, self.kept_weights = saved["best"], saved["kept"], saved["kept_weights"]
        self.engine.set_random_state(saved["random"])

    def _cut(self, saved: dict[str, Any]) -> dict[str, Any]:
        """This rank's part of a saved state's networks, and of the optimizer's memory of each parameter."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        memory = {
            number: {name: fsdp.cut(value, parameters[number]) for name, value in entries.items()}
            for number, entries in saved["optimizer"]["state"].items()
        }
        return {
            "network": fsdp.cut_like(self.network.state_dict(), saved["network"]),
            "ema": None if self.ema is None else fsdp.cut_like(self.ema.state_dict(), saved["ema"]),
            "kept_weights": fsdp.cut_like(self.averaged.state_dict(), saved["kept_weights"]),
            "optimizer": saved["optimizer"] | {"state": memory},
        }


def usable_batch_size(settings: Training, samples: int) -> int:
    """`batch_size`, or all samples where there are fewer; raises `DataError` when those cannot be split."""
    size, parts = min(settings.batch_size, samples), settings.optim.accumulate * ranks.size()
    if size < parts or (settings.optim.accumulate > 1 and size % parts):
        raise DataError(
            f"{samples} training samples do not make a batch of {settings.batch_size}"
            f" in {parts} equal parts; set a smaller batch_size"
        )
    if size < settings.batch_size:
        log.warning(
            "batch_size=%d is more than the %d training samples: every step sees them all",
            settings.batch_size,
            samples,
        )
    return size


def _moving_average(network: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    update = get_ema_multi_avg_fn(decay)
    return AveragedModel(
        network,
        multi_avg_fn=lambda averages, values, count: update(fsdp.local(averages), fsdp.local(values), count),
        use_buffers=True,
    )


def _spread(network: nn.Module, engine: Engine, trained: bool) -> None:
    """Make a network ready to run, and what is trained beside it: terms that look into the student."""
    parts, observed = (network.parts, True) if isinstance(network, Learner) else ([network], False)
    for part in parts:
        engine.spread(part, trained=trained, keep=trained and observed)
