"""The end of a sweep: one table of all jobs, for the console and as CSV, from each job's `result.json`."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdistill.config.compose import Plan, users_words
from kdistill.console import complain, say, show_table
from kdistill.errors import UserError
from kdistill.records import Table

STATUS_WIDTH = 72


def report(plan: Plan) -> int:
    """Show the table, write `sweep.csv` into the sweep's folder, and return the exit code.

    0 when all jobs succeeded; 2 when every failure is a mistake that the user can mend; else 1.
    """
    results = _results(plan.folder)
    # A sweeper that searches chooses its jobs itself; a list of values is known beforehand.
    numbers = sorted(results.keys() | set(range(len(plan.jobs) if plan.is_listed else 0)))
    rows = [_row(number, results.get(number), plan) for number in numbers]
    columns = [*dict.fromkeys(key for row in rows for key in row if key != "status"), "status"]
    table = Table("", columns, [[row.get(column, "") for column in columns] for row in rows])
    show_table(Table("", columns, [[_short(value) for value in row] for row in table.rows]))
    over_seeds = _over_seeds(rows, plan.swept)
    if over_seeds:
        show_table(over_seeds)
    path = plan.folder / "sweep.csv"
    table.to_csv(path)
    say(f"as CSV: {path}")
    failed = [
        results[number] for number in numbers if number in results and results[number]["status"] == "failed"
    ]
    if failed:
        complain(f"{len(failed)} of {len(numbers)} jobs failed; logs: {plan.folder}/JOB/kdistill.log")
    if len(results) == len(numbers) and not failed:
        return 0
    codes = {int(result["exit_code"]) for result in failed}
    return UserError.exit_code if codes == {UserError.exit_code} else 1


def _results(folder: Path) -> dict[int, dict[str, Any]]:
    found = {}
    for file in folder.rglob("result.json"):
        with suppress(ValueError):  # a full disk has cut it off
            content = json.loads(file.read_text())
            found[int(content["job"])] = content
    return found


def _row(number: int, result: Mapping[str, Any] | None, plan: Plan) -> dict[str, Any]:
    """Job number, swept settings, what the stage reports, status."""
    overrides = result["overrides"] if result else users_words(plan.jobs[number])
    values = dict(word.split("=", 1) for word in overrides if "=" in word)
    row: dict[str, Any] = {"job": number, **{key: values.get(key, "") for key in plan.swept}}
    if result is None:
        return row | {"status": "not run"}
    status = (
        result["status"]
        if result["status"] == "ok"
        else f"{result['status']}: {result['error']}".rstrip(": ")
    )
    return row | result.get("row", {}) | {"status": status}


def _over_seeds(rows: list[dict[str, Any]], swept: list[str]) -> Table | None:
    """Mean and sample standard deviation over the swept seeds, for each combination of the other settings."""
    seeds = [key for key in swept if key.endswith("seed")]
    others = [key for key in swept if key not in seeds]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok":
            groups.setdefault(tuple(row[key] for key in others), []).append(row)
    groups = {values: members for values, members in groups.items() if len(members) > 1}
    if not seeds or not groups:
        return None
    first = next(iter(groups.values()))[0]
    metrics = [
        key for key, value in first.items() if key not in ("job", *swept) and isinstance(value, int | float)
    ]
    lines = [
        [
            *values,
            len(members),
            *(_mean_and_spread([member.get(key) for member in members]) for key in metrics),
        ]
        for values, members in groups.items()
    ]
    return Table(f"mean +- standard deviation over {' and '.join(seeds)}", [*others, "n", *metrics], lines)


def _mean_and_spread(values: list[Any]) -> str:
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < 2:
        return ""
    mean, spread = statistics.mean(numbers), statistics.stdev(numbers)
    if not spread:
        return f"{mean:g}"
    return f"{mean:.1f} +- {spread:.1f}" if mean >= 10 else f"{mean:.4f} +- {spread:.4f}"


def _short(value: Any) -> Any:
    """A value for the console: the table is to stay readable, the CSV has it all."""
    if isinstance(value, str):
        return textwrap.shorten(value, STATUS_WIDTH, placeholder=" ...")
    return round(value, 4) if isinstance(value, float) else value
