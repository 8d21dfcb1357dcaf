"""A run as trackers are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from kdistill.records import Result

Status = Literal["ok", "failed", "interrupted"]


@dataclass(frozen=True)
class Run:
    """What is known of a run at its start."""

    name: str
    """Such as `distill/2026-01-31_12-00-00-000000`."""
    folder: Path
    """Where its config, log and result are."""
    runs: Path
    """The folder of all runs."""
    settings: dict[str, bool | int | float | str]
    """Dotted name -> value, of all that is not null; lists as JSON."""
    command: str


class Tracker(Protocol):
    """A run under observation. What its methods raise does not end the run: see `Tolerant`."""

    def log(self, what: str, row: Mapping[str, Any]) -> None:
        """Take down an epoch: of what ("teacher", "student", ...), and its row of `metrics.jsonl`."""
        ...

    def finish(self, status: Status, result: Result | None) -> None:
        """Take down how the run ended, and close."""
        ...


def metrics(what: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by trackers' names for them, such as `student/validation_top1`; `epoch` is their step."""
    return {
        metric(what, name): float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and name != "epoch"
    }


def metric(what: str, name: str) -> str:
    return f"{what}/{name}".replace(" ", "_")
