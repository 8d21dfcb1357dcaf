"""A table as text: for a reader, a spreadsheet, a page, a paper, a program."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

from kdistill.console import plain_table
from kdistill.records import Spread, Table, is_number, shortened

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def for_console(table: Table) -> Table:
    """The table with numbers rounded and long texts cut short."""
    rows = [[shortened(as_word(cell)) for cell in row] for row in table.rows]
    return Table(table.title, table.columns, rows, table.note)


def as_csv(table: Table) -> str:
    """All digits; a mean and its standard deviation are two columns."""
    spread = [any(isinstance(row[i], Spread) for row in table.rows) for i in range(len(table.columns))]
    columns = [
        name
        for column, is_spread in zip(table.columns, spread, strict=True)
        for name in ([column, f"{column}.std"] if is_spread else [column])
    ]
    rows = [
        [
            value
            for cell, is_spread in zip(row, spread, strict=True)
            for value in (_parts(cell) if is_spread else [as_word(cell)])
        ]
        for row in table.rows
    ]
    return Table("", columns, rows).csv().replace("\r\n", "\n").rstrip("\n")


def as_json(table: Table) -> str:
    """A list with an object for each row, on a line of its own; cells that are empty are left out."""
    rows = [
        {name: _plain(cell) for name, cell in zip(table.columns, row, strict=True) if cell != ""}
        for row in table.rows
    ]
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    return f"[\n{lines}\n]"


def as_markdown(table: Table) -> str:
    lines = [_cells(row, lambda text: text.replace("|", r"\|")) for row in _written(table)]
    rule = ["--:" if is_right else "---" for is_right in _right(table)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
    return "\n\n".join(filter(None, [table.title, body]))


def as_latex(table: Table) -> str:
    """A `tabular` that needs no package."""
    head, *body = [rf"{' & '.join(_cells(row, _escaped))} \\" for row in _written(table)]
    columns = "".join("r" if is_right else "l" for is_right in _right(table))
    title = [f"% {table.title}"] if table.title else []
    return "\n".join([*title, rf"\begin{{tabular}}{{{columns}}}", head, r"\hline", *body, r"\end{tabular}"])


FORMATS: dict[str, Callable[[Table], str]] = {
    "table": lambda table: plain_table(for_console(table)),
    "csv": as_csv,
    "markdown": as_markdown,
    "latex": as_latex,
    "json": as_json,
}
#: how a file's name ends -> what is written into it
SUFFIXES = {".txt": "table", ".csv": "csv", ".md": "markdown", ".tex": "latex", ".json": "json"}


def _written(table: Table) -> list[list[object]]:
    """The heading and all rows."""
    return [list(table.columns), *table.rows]


def _cells(row: list[object], escaped: Callable[[str], str]) -> list[str]:
    return [escaped(str(round(cell, 4) if isinstance(cell, float) else as_word(cell))) for cell in row]


def _right(table: Table) -> list[bool]:
    """Which columns hold numbers alone."""
    columns = [[row[i] for row in table.rows if row[i] != ""] for i in range(len(table.columns))]
    return [all(is_number(cell) or isinstance(cell, Spread) for cell in column) for column in columns]


def _escaped(text: str) -> str:
    text = re.sub(r"[&%$#_{}\\~^]", lambda found: _LATEX.get(found[0], rf"\{found[0]}"), text)
    return text.replace(" +- ", r" $\pm$ ")


def as_word(cell: object) -> object:
    """A setting as it is written on the command line."""
    if cell is None or isinstance(cell, bool):
        return {None: "null", True: "true", False: "false"}[cell]
    return json.dumps(cell) if isinstance(cell, list | dict) else cell


def _parts(cell: object) -> list[object]:
    if not isinstance(cell, Spread):
        return [cell, ""]
    return [cell.mean, "" if cell.deviation is None else cell.deviation]


def _plain(cell: object) -> object:
    """JSON has no nan and no infinity: they become null."""
    if isinstance(cell, Spread):
        return {"mean": _plain(cell.mean), "std": _plain(cell.deviation)}
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
