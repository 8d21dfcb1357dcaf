"""What a run tells: progress on the way, tables and a result at the end."""

from __future__ import annotations

import csv
import io
import logging
import statistics
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeGuard

from rich import box, progress
from rich.table import Table as RichTable

from kdistill.console import err
from kdistill.files import write_bytes

log = logging.getLogger("kdistill")
#: characters of a text in a console's table
WIDTH = 72


@dataclass(frozen=True)
class Table:
    """A table of results: for the console, and as CSV."""

    title: str
    columns: list[str]
    rows: list[list[object]]
    note: str = ""

    def rich(self) -> RichTable:
        table = RichTable(
            title=self.title, caption=self.note or None, box=box.SIMPLE_HEAD, title_justify="left"
        )
        table.caption_justify = "left"
        for column, sample in zip(self.columns, self.rows[0] if self.rows else self.columns, strict=True):
            table.add_column(column, justify="left" if _is_text(sample) else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*(str(value) for value in row))
        return table

    def csv(self) -> str:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([self.columns, *self.rows])
        return text.getvalue()

    def to_csv(self, path: Path) -> None:
        write_bytes(path, self.csv().encode())


@dataclass(frozen=True)
class Spread:
    """Numbers that differ by chance, such as scores over seeds: mean and sample standard deviation, if there is one."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[object]) -> Spread | None:
        """Of those values that are numbers; None where none is."""
        numbers = [float(value) for value in values if is_number(value)]
        if not numbers:
            return None
        return cls(statistics.mean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)

    def __str__(self) -> str:
        if not self.deviation:
            return f"{self.mean:.0f}" if self.mean.is_integer() else f"{self.mean:g}"
        digits = 1 if self.mean >= 10 else 4
        return f"{self.mean:.{digits}f} +- {self.deviation:.{digits}f}"


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shortened(value: object) -> object:
    """A cell for the console: its table is to stay readable, files have it all."""
    if isinstance(value, str):
        return textwrap.shorten(value, WIDTH, placeholder=" ...")
    return round(value, 4) if isinstance(value, float) else value


@dataclass(frozen=True)
class Result:
    """What a stage hands back to the command line."""

    objective: float | None
    """What a sweeper would maximise: validation top-1."""
    row: dict[str, float | int | str]
    """Columns of a sweep's table."""
    tables: list[Table] = field(default_factory=list)
    message: str = ""
    """Last lines: where the result is, and the next command."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """kind -> folder"""


class Progress:
    """Progress of long work: a bar on a terminal; in a pipe or log only the lines given to `line`.

    >>> with Progress("student", total=steps) as bar:
    ...     bar.advance(samples=128, status=lambda: "epoch 1/30  loss 0.52")
    """

    def __init__(
        self, title: str, total: int, done: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._started = clock()
        self._samples = 0
        self._shown = 0.0
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=16),
            progress.TextColumn("{task.fields[status]}"),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(compact=True),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, status="", rate="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def rate(self) -> float:
        """Samples per second since the start."""
        return self._samples / max(1e-9, self._clock() - self._started)

    def advance(self, samples: int, status: Callable[[], str], steps: int = 1) -> None:
        """Count a step; `status` is only asked for when the bar is redrawn, since reading a loss may wait for a GPU."""
        self._samples += samples
        if self._bar.disable:
            return
        now = self._clock()
        if now - self._shown > 0.1:
            self._shown = now
            self._bar.update(self._task, status=status(), rate=f"{self.rate:,.0f} images/s")
        self._bar.advance(self._task, steps)


def _is_text(value: object) -> bool:
    return not str(value).strip().rstrip("%").replace(".", "").replace(",", "").replace("-", "").isdigit()
