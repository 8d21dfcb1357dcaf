"""Where a run is told of besides its own files: a module for each tracker.

A tracker is a convenience: what stops it from starting is said before any work, what stops it later is said once, and
the run goes on. Packages of trackers are extras, imported where they are used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdistill.errors import first_line
from kdistill.records import Result
from kdistill.trackers import event_files, mlflow_run, wandb_run
from kdistill.trackers.run import Run, Status, Tracker

__all__ = ["TRACKERS", "Kind", "Run", "Status", "Tolerant", "Tracker"]
log = logging.getLogger("kdistill")


@dataclass(frozen=True)
class Kind:
    """A kind of tracker. Both are given its section of the config, and raise a `UserError` for what cannot work:

    `check` with the folder of all runs, before a sweep's first job; `start` with the run.
    """

    check: Callable[[Any, Path], None]
    start: Callable[[Any, Run], Tracker]


TRACKERS = {
    "tensorboard": Kind(event_files.check, event_files.EventFile),
    "mlflow": Kind(mlflow_run.check, mlflow_run.MlflowRun),
    "wandb": Kind(wandb_run.check, wandb_run.WandbRun),
}


class Tolerant:
    """A tracker that may fail: the first failure is said, then it is told no more but how the run ended."""

    def __init__(self, kind: str, tracker: Tracker) -> None:
        self._kind, self._tracker, self._failed = kind, tracker, False

    def log(self, what: str, row: Mapping[str, Any]) -> None:
        if not self._failed:
            with self._tolerated():
                self._tracker.log(what, row)

    def finish(self, status: Status, result: Result | None) -> None:
        with self._tolerated():
            self._tracker.finish(status, result)

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except Exception as ex:  # a full disk, a server that is gone: each tracker has classes of its own
            if not self._failed:
                log.warning(
                    "tracker=%s fails and is told no more of this run, which goes on: %s",
                    *(self._kind, first_line(ex)),
                )
            self._failed = True
