"""MLflow: runs on a tracking server, or in a database of its own in the runs folder.

MLflow itself refuses plain folders by now. Its report of usage to its makers is turned off, unless the user's
environment turns it on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdistill.config.trackers import MLflow
from kdistill.errors import ConfigError, first_line
from kdistill.extras import imported
from kdistill.files import locked
from kdistill.records import Result
from kdistill.trackers.run import Run, Status, metrics

STATUS = {"ok": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
#: of MLflow's settings; training waits for a server that is gone no longer than this
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
}
#: parameters in one request, at most
BATCH = 100


def check(settings: MLflow, runs: Path) -> None:
    """Reach the server, and make the experiment there. Raises `ConfigError`."""
    _connected(settings, runs)


class MlflowRun:
    """A run of MLflow: parameters, metrics over epochs, and tags. Raises `ConfigError`."""

    def __init__(self, settings: MLflow, run: Run) -> None:
        self._client, experiment = _connected(settings, run.runs)
        self._entities = _imported("mlflow.entities")
        tags = {"command": run.command, "folder": str(run.folder)}
        self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        params = [self._entities.Param(name, str(value)) for name, value in run.settings.items()]
        for start in range(0, len(params), BATCH):
            self._client.log_batch(self._id, params=params[start : start + BATCH])

    def log(self, what: str, row: Mapping[str, Any]) -> None:
        self._measure(metrics(what, row), row["epoch"])

    def finish(self, status: Status, result: Result | None) -> None:
        if result is not None:
            self._measure(metrics("result", result.row), 0)
            for kind, folder in result.artifacts.items():
                self._client.set_tag(self._id, f"artifact.{kind}", folder)
        self._client.set_terminated(self._id, STATUS[status])

    def _measure(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        found = [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=found)


def _connected(settings: MLflow, runs: Path) -> tuple[Any, str]:
    """MLflow's client, and the id of the experiment."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    mlflow = _imported("mlflow")
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # what goes wrong, kdistill says
    database = runs.resolve() / "mlflow.db"
    if settings.uri is None:
        _imported("sqlalchemy")
        with locked(runs / "artifacts" / ".locks" / "mlflow.lock", str(database)):
            client = mlflow.MlflowClient(f"sqlite:///{database}")
            return client, _experiment(client, settings.experiment, (runs.resolve() / "mlflow").as_uri())
    try:
        client = mlflow.MlflowClient(settings.uri)
        return client, _experiment(client, settings.experiment, None)
    except Exception as ex:  # of MLflow, of its connections and databases
        raise ConfigError(
            f"tracker.uri={settings.uri}: MLflow cannot use it: {_cause(ex)}. Start the server there, or leave"
            " tracker.uri out to keep runs in the runs folder"
        ) from ex


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name, artifacts))


def _cause(ex: BaseException) -> str:
    """What was wrong at the bottom of it, such as `Connection refused`."""
    while (below := ex.__cause__ or ex.__context__) is not None:
        ex = below
    return ex.strerror if isinstance(ex, OSError) and ex.strerror else first_line(ex)


def _imported(module: str) -> Any:
    return imported(module, "mlflow", "tracker=mlflow")
