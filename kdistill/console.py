"""The two consoles of the program: results go to `out` (stdout), bars and log lines to `err` (stderr).

Bars and log lines share one rich console, so that a line is printed above the bar and never into it.
In a pipe nothing is wrapped, padded or coloured.
"""

from __future__ import annotations

import os
import sys
from typing import Protocol

from rich.console import Console, RenderableType

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class TableLike(Protocol):
    """What `show_table` needs; `kdistill.records.Table` is one."""

    @property
    def title(self) -> str: ...
    @property
    def columns(self) -> list[str]: ...
    @property
    def rows(self) -> list[list[object]]: ...
    @property
    def note(self) -> str: ...
    def rich(self) -> RenderableType: ...


def say(text: str) -> None:
    """Print a result or a help text as it is."""
    sys.stdout.write(text + "\n")


def complain(text: str) -> None:
    """Print a message about the run as it is, on stderr."""
    sys.stderr.write(text + "\n")


def show_table(table: TableLike) -> None:
    """Print a table: through rich on a terminal, as aligned plain text otherwise.

    Plain also where a terminal is too narrow: rich would cut values off.
    """
    widths = [max(map(len, cells)) for cells in zip(*_cells(table), strict=True)]
    padding = 2 * len(widths) + 2
    if out.is_terminal and sum(widths) + padding <= out.width:
        out.print(table.rich())
    else:
        say(plain_table(table))


def plain_table(table: TableLike) -> str:
    """Return the table as aligned text, one line per row, however wide."""
    cells = _cells(table)
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([*filter(None, [table.title]), *lines, *filter(None, [table.note])])


def _cells(table: TableLike) -> list[list[str]]:
    return [table.columns, *([str(cell) for cell in row] for row in table.rows)]


def debug() -> bool:
    """Whether the user asked for tracebacks with KDISTILL_DEBUG=1."""
    return os.environ.get("KDISTILL_DEBUG", "0") not in ("", "0")
