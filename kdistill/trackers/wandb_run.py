"""Weights & Biases: files in the run's folder, which `wandb sync` uploads; or straight to the server.

Its report of errors to its makers is turned off, unless the user's environment turns it on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdistill.config.trackers import Wandb
from kdistill.errors import ConfigError, first_line
from kdistill.extras import imported
from kdistill.records import Result
from kdistill.trackers.run import Run, Status, metric, metrics

EXIT_CODES = {"ok": 0, "failed": 1, "interrupted": 130}
#: how long the end of a run waits for a server, in seconds; the files stay for `wandb sync`
PATIENCE = 60


def check(settings: Wandb, runs: Path) -> None:
    """Raise `ConfigError` where the package is missing, or the server does not know the user."""
    wandb = _wandb()
    if settings.mode == "offline":
        return
    try:
        known = wandb.login(prompt=False)
    except Exception as ex:  # of its connection and its own
        raise ConfigError(f"tracker.mode=online: {first_line(ex)}. {OFFLINE}") from ex
    if not known:
        raise ConfigError(f"tracker.mode=online needs an account: give `wandb login` its key. {OFFLINE}")


OFFLINE = "tracker.mode=offline needs none, and `wandb sync` uploads its files later"


class WandbRun:
    """A run of Weights & Biases: its config, a history over epochs, a summary."""

    def __init__(self, settings: Wandb, run: Run) -> None:
        wandb = _wandb()
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            name=run.name,
            dir=run.folder,
            config={**run.settings, "command": run.command},
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", finish_timeout=PATIENCE, x_disable_machine_info=True
            ),
        )
        self._axes: set[str] = set()

    def log(self, what: str, row: Mapping[str, Any]) -> None:
        axis = metric(what, "epoch")
        if axis not in self._axes:  # each training has epochs of its own
            self._run.define_metric(metric(what, "*"), step_metric=axis)
            self._axes.add(axis)
        self._run.log({axis: row["epoch"], **metrics(what, row)})

    def finish(self, status: Status, result: Result | None) -> None:
        if result is not None:
            self._run.summary.update(metrics("result", result.row))
            self._run.summary.update({f"artifact/{kind}": path for kind, path in result.artifacts.items()})
        self._run.finish(exit_code=EXIT_CODES[status])


def _wandb() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return imported("wandb", "wandb", "tracker=wandb")
