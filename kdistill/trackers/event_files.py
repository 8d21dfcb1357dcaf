"""TensorBoard: event files, which `tensorboard --logdir runs` shows while the run goes on."""

from __future__ import annotations

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
    _torchs_writer()


class EventFiles:
    """A run's event file: scalars over epochs, texts, and the settings for the HPARAMS page.

    Raises `StorageError` where the folder cannot be written.
    """

    def __init__(self, settings: TensorBoard, run: Run) -> None:
        board = _torchs_writer()
        folder = Path(settings.folder).expanduser() / run.name if settings.folder else run.folder
        with storage_errors(folder, "tracker.folder" if settings.folder else "runs"):
            self._writer = board.SummaryWriter(folder)
        _, started, self._succeeded = board.summary.hparams(run.settings, {})
        self._writer.file_writer.add_summary(started)
        self._writer.add_text("command", run.command)
        self._writer.flush()

    def log(self, what: str, row: Mapping[str, Any]) -> None:
        for name, value in metrics(what, row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def finish(self, status: Status, result: Result | None) -> None:
        if result is not None:
            for name, value in metrics("result", result.row).items():
                self._writer.add_scalar(name, value)
            for kind, folder in result.artifacts.items():
                self._writer.add_text(f"artifact/{kind}", folder)
            self._writer.file_writer.add_summary(self._succeeded)
        self._writer.add_text("status", status)
        self._writer.close()


def _torchs_writer() -> Any:
    return imported("torch.utils.tensorboard", "tensorboard", "tracker=tensorboard")
