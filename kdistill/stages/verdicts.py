"""A comparison for a reader: its table, its files, what it hands back."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdistill import ranks
from kdistill.files import write_json
from kdistill.records import Result, Table
from kdistill.stages.compare import Comparison, Side, Trial
from kdistill.tasks import Column

#: the difference that a user wants to be told apart: a point of a score in percent, 0.01 of R2
POINT = 0.01
FILE = "comparison.json"


def told(found: Comparison, folder: Path | None) -> Result:
    """The comparison as a stage's result; with a `folder`, also as JSON and CSV files there."""
    row: dict[str, float | int | str] = {f"control {found.task.headline}": round(found.control.mean, 5)}
    for variant in found.variants:
        name = variant.arm.name
        row |= {f"{name} difference": round(found.test(variant).difference, 5)}
        row |= {f"{name} verdict": found.verdict(variant)}
    message = ""
    if folder is not None and ranks.is_main():
        place = folder / FILE
        write_json(place, content(found))
        _flat(found).to_csv(place.with_suffix(".csv"))
        here = Path.cwd()
        place = place.relative_to(here) if place.is_relative_to(here) else place
        message = f"comparison: {place}\nnext: {shlex.join(['kdistill', 'report', str(place.parent)])}"
    return Result(objective=None, row=row, tables=[table(found)], message=message)


def content(found: Comparison) -> dict[str, Any]:
    """All of a comparison in plain values: what `comparison.json` holds. Scores and differences are shares of 1."""
    config = found.job.config
    return {
        "dataset": config.dataset.name,
        "task": found.task.name,
        "metric": found.task.headline,
        "higher_is_better": True,
        "confidence": config.compare.confidence,
        "command": found.job.command("compare"),
        "seeds": found.seeds,
        "test_images": found.samples,
        "soft_targets_seconds": found.soft_targets_seconds,
        "teacher": _teacher(found.teacher) if found.teacher else None,
        "control": _side(found.control),
        "variants": {v.arm.name: _side(v) | _against_control(found, v) for v in found.variants},
    }


def _teacher(teacher: Trial) -> dict[str, Any]:
    return {
        "title": teacher.title,
        "score": teacher.score,
        "seconds": teacher.seconds,
        "parameters": teacher.parameters,
        "predictions": teacher.predictions,
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "title": side.trials[0].title,
        "words": side.arm.words,
        "scores": side.scores,
        "mean": side.mean,
        "std": side.spread,
        "seconds": side.seconds,
        "parameters": side.trials[0].parameters,
        "predictions": [trial.predictions for trial in side.trials],
        "artifacts": [trial.artifact for trial in side.trials],
    }


def _against_control(found: Comparison, variant: Side) -> dict[str, Any]:
    test = found.test(variant)
    low, high = test.interval(found.confidence)
    return {
        "difference": test.difference,
        "low": low,
        "high": high,
        "verdict": found.verdict(variant),
        "gap_closed": found.gap_closed(variant),
        "detectable": test.detectable(found.confidence),
        "seeds_for_a_point": test.seeds_for(POINT, found.confidence),
    }


def _flat(found: Comparison) -> Table:
    """A line for each arm, of all that is one value."""
    lines = [{"name": "control", **_side(found.control)}]
    lines += [{"name": v.arm.name, **_side(v), **_against_control(found, v)} for v in found.variants]
    columns = [key for key, value in lines[-1].items() if not isinstance(value, list)]
    return Table("", columns, [[line.get(column, "") for column in columns] for line in lines])


# --- the table ---


def table(found: Comparison) -> Table:
    """A line for the teacher, the control and each variant."""
    level = f"{100 * found.job.config.compare.confidence:g} %"
    columns = [
        "",
        _headline(found).heading,
        "difference",
        f"{level} interval",
        "verdict",
        "gap closed %",
        "seconds",
    ]
    rows: list[list[object]] = []
    if (teacher := found.teacher) is not None:
        score = _headline(found).text(teacher.score)
        rows.append([teacher.title, score, *4 * ["-"], f"{teacher.seconds:.1f}"])
    rows.append(["control", _score(found, found.control), *4 * ["-"], f"{found.control.seconds:.1f}"])
    rows += [_row(found, variant) for variant in found.variants]
    title = f"{found.job.config.dataset.name}: {found.samples:,} test images, {len(found.seeds)} seeds"
    return Table(title, columns, rows, "\n".join(_notes(found)))


def _row(found: Comparison, variant: Side) -> list[object]:
    test, gap = found.test(variant), found.gap_closed(variant)
    low, high = (_signed(found, bound) for bound in test.interval(found.confidence))
    return [
        variant.arm.name,
        _score(found, variant),
        _signed(found, test.difference),
        f"{low} to {high}",
        found.verdict(variant),
        "-" if gap is None else f"{100 * gap:.1f}",
        f"{variant.seconds:.1f}",
    ]


def _notes(found: Comparison) -> Iterator[str]:
    control = found.control.arm.config
    yield (
        f"control: the student on labels alone for {control.student.epochs} epochs, seeds and order of data as the"
        " variants'; seconds: of training"
    )
    if len(found.variants) > 1:
        yield f"the intervals hold together; each alone has {100 * found.confidence:.4g} %"
    if found.soft_targets_seconds:
        yield f"the teacher's stored answers took another {found.soft_targets_seconds:.1f} seconds, once for all"
    for variant in found.variants:
        if found.verdict(variant) == "NO DIFFERENCE":
            yield _too_few(found, variant)


def _too_few(found: Comparison, variant: Side) -> str:
    """What so many seeds can tell, and how many it takes to tell a point."""
    test, point = found.test(variant), _points(found, POINT)
    smallest = _points(found, test.detectable(found.confidence))
    needed = test.seeds_for(POINT, found.confidence)
    takes = f"compare.seeds={needed}" if needed else "more test images, however many seeds"
    return (
        f"{variant.arm.name}: {test.seeds} seeds find a difference of {smallest} in 9 cases of 10;"
        f" one of {point} takes {takes}"
    )


# --- values ---


def _headline(found: Comparison) -> Column:
    return next(column for column in found.task.columns if column.key == found.task.headline)


def _score(found: Comparison, side: Side) -> str:
    text = _headline(found).text
    return f"{text(side.mean)} +- {text(side.spread)}"


def _signed(found: Comparison, value: float) -> str:
    return f"{'-' if value < 0 else '+'}{_headline(found).text(abs(value))}"


def _points(found: Comparison, value: float) -> str:
    column = _headline(found)
    return f"{column.text(value)}{' points' if column.heading.endswith('%') else ''}"
