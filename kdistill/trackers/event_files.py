"""TensorBoard: event files, which `tensorboard --logdir runs` shows while the run goes on.

They are written here and now: PyTorch's `SummaryWriter` has a thread, which prints a traceback where a disk is full.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdistill.config.trackers import TensorBoard
from kdistill.extras import imported
from kdistill.files import storage_errors
from kdistill.records import Result
from kdistill.trackers.run import Run, Status, metrics


def check(settings: TensorBoard, runs: Path) -> None:
    """Raise `ConfigError` where the package is missing."""
    _imported("torch.utils.tensorboard")


class EventFile:
    """A run's event file: scalars over epochs, texts, and the settings for the HPARAMS page.

    Raises `StorageError` where the folder cannot be written.
    """

    def __init__(self, settings: TensorBoard, run: Run) -> None:
        board = _imported("torch.utils.tensorboard")
        self._summary, self._event = board.summary, _imported("tensorboard.compat.proto.event_pb2").Event
        folder = Path(settings.folder).expanduser() / run.name if settings.folder else run.folder
        with storage_errors(folder, "tracker.folder" if settings.folder else "runs"):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}").open("wb")
            self._records = board.RecordWriter(self._file)
            _, started, self._succeeded = board.summary.hparams(run.settings, {})
            self._write(file_version="brain.Event:2")
            self._write(summary=started)
            self._write(summary=board.summary.text("command", run.command))
            self._file.flush()

    def log(self, what: str, row: Mapping[str, Any]) -> None:
        self._scalars(metrics(what, row), row["epoch"])
        self._file.flush()

    def finish(self, status: Status, result: Result | None) -> None:
        with self._file:
            if result is not None:
                self._scalars(metrics("result", result.row), 0)
                for kind, folder in result.artifacts.items():
                    self._write(summary=self._summary.text(f"artifact/{kind}", folder))
                self._write(summary=self._succeeded)
            self._write(summary=self._summary.text("status", status))

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def _write(self, step: int = 0, **content: Any) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())


def _imported(module: str) -> Any:
    return imported(module, "tensorboard", "tracker=tensorboard")
