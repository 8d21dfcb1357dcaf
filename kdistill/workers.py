"""Sweeps whose jobs run in worker processes: what a job needs to know there, and how it is stopped.

Workers share the artifact store with its locks: what several jobs need is made before they start, or by the first of
them, while the others wait.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from kdistill import logs, plugins
from kdistill.config import folders
from kdistill.config.compose import Plan
from kdistill.config.overrides import users_words
from kdistill.errors import RunError, first_line
from kdistill.stages.sharing import make_shared
from kdistill.stopping import StopRequest, stop_requests
from kdistill.task import task

log = logging.getLogger("kdistill")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: whether this worker was asked to stop: jobs that it is given from then on do not start
_stopped = False


@dataclass(frozen=True)
class WorkerTask:
    """The task, as a launcher sends it to its workers: with the user's own folders and files."""

    config_dirs: list[str] = field(default_factory=folders.on_command_line)
    trusted: list[str] = field(default_factory=plugins.on_command_line)
    process: int = field(default_factory=os.getpid)
    """Who sends it: where there is one job at a time, it stays there"""

    def __call__(self, cfg: DictConfig) -> float | None:
        """Run a job as `task` does. In a worker it raises nothing: that would end the other jobs, too."""
        if os.getpid() == self.process:
            return task(cfg)
        global _stopped
        self._prepare()
        try:
            return math.nan if _stopped else task(cfg)
        except KeyboardInterrupt:
            _stopped = True  # in training, signals are collected
            return math.nan
        finally:
            for number in SIGNALS:  # a worker that ends between two jobs takes the others along
                signal.signal(number, signal.SIG_IGN)

    def _prepare(self) -> None:
        """Make this process what the one is that the user started, but for the terminal, which all share."""
        for number in SIGNALS:
            signal.signal(number, _stop)
        os.environ["TTY_COMPATIBLE"] = "0"  # no progress bars, for rich
        logs.prefix = f"job {HydraConfig.get().job.num}: "
        folders.use_folders(self.config_dirs, remember=True)
        if plugins.on_command_line() != self.trusted:
            plugins.forget()
            for file in self.trusted:
                plugins.trust(file)


def _stop(signum: int, frame: FrameType | None) -> None:
    """Leave what the job is at, once: Ctrl-C comes from the terminal, and again from who started this process."""
    global _stopped
    if not _stopped:
        _stopped = True
        raise KeyboardInterrupt


def prepare(plan: Plan) -> None:
    """Make what several jobs use, with all cores, where this process has nothing else to do than to wait for them."""
    if plan.launcher.name == "joblib":
        make_shared(plan.configs, [users_words(job) for job in plan.jobs], plan.folder)


@contextmanager
def supervised(launcher: str) -> Iterator[None]:
    """While a launcher's jobs run: Ctrl-C, or a termination signal, lets joblib's save their state and end.

    A second Ctrl-C ends them at once. Submitit's are processes of their own, or Slurm's: they are not waited for.
    Raises `KeyboardInterrupt` where it was asked to stop, and `RunError` where a worker ended without its job.
    """
    waiting = stop_requests(_tell_workers) if launcher == "joblib" else nullcontext(StopRequest())
    with waiting as stop:
        try:
            yield
        except Exception as ex:
            if not stop:
                raise RunError(
                    f"hydra/launcher={launcher} ended early: {first_line(ex)}. Give the same command again: what is"
                    " done is not made again"
                ) from ex
    if stop:
        raise KeyboardInterrupt


def _tell_workers() -> None:
    log.info("stopping: the jobs save their state; Ctrl-C again ends them at once")
    for worker in multiprocessing.active_children():
        if worker.pid is not None:
            os.kill(worker.pid, signal.SIGTERM)
