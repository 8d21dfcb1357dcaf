"""`kdistill results`: all runs as one table, filtered, sorted, grouped, exported. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kdistill import history
from kdistill.config.overrides import values_of
from kdistill.console import complain, say, show_table
from kdistill.errors import ConfigError, did_you_mean
from kdistill.files import storage_errors, write_bytes
from kdistill.formats import FORMATS, SUFFIXES, as_word, for_console
from kdistill.history import DAMAGED, OK, Run
from kdistill.records import Spread, Table, is_number

#: words that say what becomes of the runs; all others are filters
OPTIONS = ("sort", "group", "columns", "top", "format", "out", "runs")
#: columns that every run has
ABOUT: dict[str, Callable[[Run], object]] = {
    "run": lambda run: run.name,
    "stage": lambda run: run.stage,
    "overrides": lambda run: " ".join(run.words),
    "started": lambda run: datetime.fromtimestamp(run.started).isoformat(" ", "minutes"),
    "status": lambda run: run.status,
    "error": lambda run: run.error,
}
#: values that a message lists
MOST = 10
#: settings that change no result
UNIMPORTANT = ("stage", "runs", "force")


@dataclass(frozen=True)
class Rows:
    """The lines of the table to be, each column by its name."""

    rows: list[dict[str, object]]
    title: str = ""


def main(words: Sequence[str]) -> int:
    """Show the runs that `words` ask for, or write them to a file, and return the exit code.

    Raises `ConfigError` for words that cannot be read, unknown columns, and where there is no such run; `DataError`
    and `StorageError` for folders that are not there or cannot be written.
    """
    options, filters = _parsed(words)
    place = Path(options.get("runs", "runs"))
    out = Path(options["out"]) if "out" in options else None
    form = _format(options.get("format"), out)
    top = _top(options.get("top"))
    group, columns, order = (_listed(options.get(key)) for key in ("group", "columns", "sort"))
    runs = history.read(place)
    if not runs:
        raise ConfigError(f"no runs in {place}: `kdistill run` makes one, runs=DIR names another folder")
    chosen = _filtered(runs, filters)
    for run in chosen:
        if run.status == DAMAGED:
            complain(f"{run.error}. Remove the folder, or give its command again")
    found = grouped(chosen, group) if group else listed(chosen, columns, order)
    _tell(_arranged(found, columns, order, top), form, out)
    return 0


def listed(runs: Sequence[Run], columns: Sequence[str] = (), others: Sequence[str] = ()) -> Rows:
    """A row for each run, with these columns; without any, those that say something, and all numbers."""
    wanted = [*(columns or _usual(runs)), *(name.removeprefix("-") for name in others)]
    _check_columns(runs, wanted)
    return Rows([{name: _value(run, name) for name in wanted} for run in runs])


def grouped(runs: Sequence[Run], keys: Sequence[str]) -> Rows:
    """A row for each combination of stage and `keys`: how many there are, and the mean and spread of each number.

    Runs that did not end well are counted in `status` alone. One that was repeated, and found its artifacts there,
    counts once. The title says over what was averaged.
    """
    _check_columns(runs, keys)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.stage, *(_as_key(_value(run, key)) for key in keys)), []).append(run)
    scores = dict.fromkeys(name for run in runs if run.status == OK for name in run.scores)
    rows: list[dict[str, object]] = []
    varied: set[str] = set()
    for members in groups.values():
        good = _distinct(run for run in members if run.status == OK)
        varied |= _varied(good)
        about = {"stage": members[0].stage, **{key: _value(members[0], key) for key in keys}, "n": len(good)}
        spreads = {name: Spread.of(run.scores.get(name) for run in good) or "" for name in scores}
        rows.append({**about, **spreads, "status": _statuses(members)})
    over = ", ".join(sorted(name for name in varied if not _is_below(name, varied)))
    return Rows(rows, f"mean +- standard deviation over {over}" if over else "")


def _distinct(runs: Iterable[Run]) -> list[Run]:
    return list({run.artifacts or (run.name,): run for run in runs}.values())


def _varied(runs: Sequence[Run]) -> set[str]:
    """Settings that are not the same in all of the runs."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            values.setdefault(name, set()).add(_as_key(value))
    return {name for name, found in values.items() if len(found) > 1 and name not in UNIMPORTANT}


def _is_below(name: str, names: set[str]) -> bool:
    """Whether a setting belongs to a group of which another option was chosen: `loss.T` where `loss` differs."""
    parts = name.split(".")
    return any(".".join(parts[:i]) in names for i in range(1, len(parts)))


def _statuses(runs: Sequence[Run]) -> str:
    counts = Counter(run.status for run in runs)
    if counts.keys() == {OK}:
        return OK
    return ", ".join(f"{counts[status]} {status}" for status in sorted(counts, key=lambda name: name != OK))


# --- words ---


def _parsed(words: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Options, and filters: column -> word."""
    options: dict[str, str] = {}
    filters: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise ConfigError(
                f"cannot read {word!r}: results takes key=value, for example student=mlp top=10"
            )
        if key in OPTIONS:
            options[key] = value
        else:
            filters[_named(key)] = word
    return options, filters


def _named(column: str) -> str:
    """Numbers have the names of a sweep's table, each as one word."""
    return column.strip().replace(" ", ".")


def _listed(value: str | None) -> list[str]:
    return [_named(name) for name in value.split(",")] if value else []


def _top(value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or not int(value):
        raise ConfigError(f"top={value}: must be a whole number from 1, as in top=10")
    return int(value)


def _format(name: str | None, out: Path | None) -> str:
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"out={out}: there is no folder {out.parent}")
    if name is None:
        if out is None:
            return "table"
        if out.suffix not in SUFFIXES:
            raise ConfigError(
                f"out={out}: its name should end in {', '.join(SUFFIXES)}; or say format={'|'.join(FORMATS)}"
            )
        return SUFFIXES[out.suffix]
    if name not in FORMATS:
        raise ConfigError(f"format={name}: must be one of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    return name


# --- columns ---


def _value(run: Run, column: str) -> Any:
    """What a run has in a column; empty where it has none."""
    if column in ABOUT:
        return ABOUT[column](run)
    return run.scores[column] if column in run.scores else run.settings.get(column, "")


def _as_key(value: object) -> str:
    """Equal for values that are equal as settings are."""
    return str(float(value)) if is_number(value) else str(value)


def _usual(runs: Sequence[Run]) -> list[str]:
    scores = dict.fromkeys(name for run in runs for name in run.scores)
    failed = ["error"] if any(run.error for run in runs) else []
    return ["run", "overrides", *scores, "status", *failed]


def _check_columns(runs: Sequence[Run], names: Iterable[str]) -> None:
    for name in names:
        if name not in ABOUT and not any(name in run.scores or name in run.settings for run in runs):
            known = dict.fromkeys([*ABOUT, *(score for run in runs for score in run.scores)])
            settings = {setting for run in runs for setting in run.settings}
            near = did_you_mean(name, [*known, *settings, *OPTIONS])
            raise ConfigError(
                f"no run has a column {name!r}.{near}\ncolumns: {', '.join(known)}; and every setting, as in"
                " `kdistill run --cfg job`"
            )


def _filtered(runs: Sequence[Run], filters: Mapping[str, str]) -> list[Run]:
    """The runs that all filters let through; raises `ConfigError` where there is none."""
    _check_columns(runs, filters)
    chosen = list(runs)
    for column, word in filters.items():
        wanted = values_of(word)
        left = [run for run in chosen if any(_same(_value(run, column), value) for value in wanted)]
        if not left:
            there = [*dict.fromkeys(str(as_word(_value(run, column))) for run in chosen)]
            shown = ", ".join(filter(None, there[:MOST])) + (", ..." if len(there) > MOST else "")
            raise ConfigError(f"no run has {word}; {column} is {shown or 'not set'}")
        chosen = left
    return chosen


def _same(value: object, wanted: object) -> bool:
    """Whether they are equal as settings are: 4 and 4.0 are, 1 and true are not."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


# --- the table ---


def _arranged(found: Rows, columns: Sequence[str], order: Sequence[str], top: int | None) -> Table:
    there = list(dict.fromkeys(name for row in found.rows for name in row))
    for name in [*columns, *(name.removeprefix("-") for name in order)]:
        if name not in there:
            raise ConfigError(
                f"no column {name!r} in this table of groups.{did_you_mean(name, there)}\ncolumns: {', '.join(there)}"
            )
    rows = found.rows
    for name in reversed(order):
        rows = _sorted(rows, name)
    shown = list(columns or there)
    return Table(found.title, shown, [[row.get(name, "") for name in shown] for row in rows[:top]])


def _sorted(rows: Sequence[dict[str, object]], order: str) -> list[dict[str, object]]:
    """In the order of a column, with `-` the largest first; rows that have nothing there come last."""
    name = order.removeprefix("-")
    empty = [row for row in rows if row.get(name) in ("", None)]
    full = [row for row in rows if row.get(name) not in ("", None)]
    return sorted(full, key=lambda row: _rank(row[name]), reverse=order != name) + empty


def _rank(value: object) -> tuple[bool, float, str]:
    """Numbers by their size, then texts."""
    if isinstance(value, Spread):
        return False, value.mean, ""
    return (False, value, "") if is_number(value) else (True, 0, str(value))


def _tell(table: Table, form: str, out: Path | None) -> None:
    if out is not None:
        with storage_errors(out.parent, "out"):
            write_bytes(out, f"{FORMATS[form](table)}\n".encode())
        say(f"written: {out}")
    elif form == "table":
        show_table(for_console(table))
    else:
        say(FORMATS[form](table))
