"""A study: the trials of a search, in a journal that several processes share and that a kill leaves whole.

`FOLDER/journal.log` is Optuna's journal storage (`optuna-dashboard` opens it), `FOLDER/workers/` has a lock for each
process at work, which dies with it. A trial whose process is gone is taken up by the next one that asks: with its
number, its settings and what it has reported. The sampler is seeded by the trial's number, so that a study which was
killed and started again samples what it would have sampled.

This module needs the extra `tune`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from kdistill.config.search import Choice, IntRange, LogRange, Range, Scalar, Tune

Direction = Literal["maximize", "minimize"]
Pruned = optuna.TrialPruned


class Study:
    """One process's hold on the study in `folder`; it is made where it is not there.

    `directions` are those of the scores that a trial ends with; `epochs` are the most that one takes.
    """

    def __init__(
        self,
        folder: Path,
        search: Mapping[str, Range],
        settings: Tune,
        directions: Sequence[Direction],
        epochs: int,
    ) -> None:
        self.folder = folder
        self.directions = list(directions)
        self._search, self._settings = search, settings
        self._name = secrets.token_hex(4)
        self._workers = folder / "workers"
        self._workers.mkdir(parents=True, exist_ok=True)
        self._alive = FileLock(self._workers / self._name)
        self._alive.acquire()
        self._lock = FileLock(folder / "study.lock")
        # Optuna's lines go where those of other libraries go: to the log file
        optuna.logging.disable_default_handler()
        optuna.logging.enable_propagation()
        self._study = optuna.create_study(
            storage=_storage(folder / "journal.log"),
            study_name=folder.name,
            directions=self.directions,
            pruner=_pruner(settings.prunes, epochs),
            load_if_exists=True,
        )

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, in the order of their numbers."""
        return self._study.get_trials(deepcopy=False)

    @property
    def front(self) -> list[int]:
        """Numbers of the complete trials that no other one is better than in every score."""
        return sorted(trial.number for trial in self._study.best_trials)

    @property
    def importance(self) -> dict[str, float] | None:
        """Each setting's share of the variance of the first score (fANOVA: Hutter et al. 2014, ICML).

        None where there are not two trials that differ in it.
        """
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        if len({trial.values[0] for trial in complete}) < 2:
            return None
        evaluator = FanovaImportanceEvaluator(seed=self._settings.seed)
        shares = get_param_importances(self._study, evaluator=evaluator, target=lambda trial: trial.values[0])
        return {key: float(share) for key, share in shares.items()}

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to do, or to wait for, when `next` has nothing to give."""
        return not self._running()

    def next(self) -> Trial | None:
        """A trial to run: one whose process is gone, or a new one; None where there are as many as there should be.

        Trials that failed do not count, those of other processes do.
        """
        with self._lock:
            running = self._running()
            for trial in running:
                if not self._is_held(trial):
                    return self._begun(Trial(self._study, trial._trial_id), trial.number)
            finished = [t for t in self.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
            if len(finished) + len(running) >= self._settings.trials:
                return None
            return self._begun(self._study.ask(), len(self.trials) - 1)

    def report(self, trial: Trial, value: float, epoch: int) -> None:
        """Record the score after an epoch; raises `Pruned` where the trial is not worth going on with.

        A training that goes on tells of its earlier epochs again.
        """
        if epoch not in self.trials[trial.number].intermediate_values:
            trial.report(value, epoch)
        self.look(trial)

    def look(self, trial: Trial) -> None:
        """Raise `Pruned` where what was reported of the trial is not worth going on with."""
        if len(self.directions) == 1 and trial.should_prune():
            raise Pruned

    def complete(self, trial: Trial, values: Sequence[float], about: Mapping[str, Any]) -> None:
        """End a trial with its scores; what is known `about` it besides is kept with it."""
        self._end(trial, TrialState.COMPLETE, about, values)

    def prune(self, trial: Trial, about: Mapping[str, Any]) -> None:
        self._end(trial, TrialState.PRUNED, about)

    def fail(self, trial: Trial, about: Mapping[str, Any]) -> None:
        self._end(trial, TrialState.FAIL, about)

    def close(self) -> None:
        """Leave the study: a trial of this process that has not ended is free to be taken up."""
        self._alive.release()
        (self._workers / self._name).unlink(missing_ok=True)

    def _end(
        self, trial: Trial, state: TrialState, about: Mapping[str, Any], values: Sequence[float] | None = None
    ) -> None:
        for name, value in about.items():
            trial.set_user_attr(name, value)
        self._study.tell(trial, values, state)

    def _begun(self, trial: Trial, number: int) -> Trial:
        """Make a trial this process's own, and give it its settings, or those that it lacks."""
        self._study.sampler = _sampler(self._settings.sampler, self._settings.seed, number)
        trial.set_user_attr("worker", self._name)
        for key, values in self._search.items():
            _suggest(trial, key, values)
        return trial

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials if trial.state == TrialState.RUNNING]

    def _is_held(self, trial: FrozenTrial) -> bool:
        """Whether the process of a running trial is there: it holds its lock."""
        name = trial.user_attrs.get("worker")
        if name is None or not (self._workers / name).exists():
            return False
        lock = FileLock(self._workers / name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        lock.release()
        (self._workers / name).unlink(missing_ok=True)
        return False


class _JournalLock(JournalFileOpenLock):
    """A lock that dies with its process. Optuna's own would keep the next one waiting for half a minute."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._held = FileLock(path.with_name(f"{path.name}.held"))

    def acquire(self) -> bool:
        self._held.acquire()
        return True

    def release(self) -> None:
        self._held.release()


def _storage(path: Path) -> JournalStorage:
    lock = _JournalLock(path)
    lock.acquire()
    try:
        _cut_torn_line(path)
    finally:
        lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock))


def _cut_torn_line(path: Path) -> None:
    """Take a last line out that a full disk or a power cut has left without its end: Optuna cannot read past it."""
    content = path.read_bytes() if path.exists() else b""
    if not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def _sampler(kind: str, seed: int, number: int) -> BaseSampler:
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return TPESampler(seed=own) if kind == "tpe" else RandomSampler(seed=own)


def _pruner(kind: str, epochs: int) -> BasePruner:
    if kind == "hyperband":
        return HyperbandPruner(max_resource=max(1, epochs))
    return MedianPruner(n_warmup_steps=epochs // 5) if kind == "median" else NopPruner()


def _suggest(trial: Trial, key: str, values: Range) -> Scalar:
    if isinstance(values, Choice):
        return trial.suggest_categorical(key, values.choices)
    if isinstance(values, IntRange):
        return trial.suggest_int(key, values.low, values.high)
    return trial.suggest_float(key, values.low, values.high, log=isinstance(values, LogRange))
