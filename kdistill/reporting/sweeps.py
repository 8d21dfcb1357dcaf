"""Findings of a sweep: which settings are best, and how far the seeds lie apart."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdistill.errors import KdistillError, MissingArtifact
from kdistill.records import Table
from kdistill.reporting.findings import Findings, Group, Metric, Model, Repeat
from kdistill.reporting.folders import read_json, stage_of
from kdistill.reporting.runs import Job, facts, read_job, scores_table
from kdistill.sweeps import averages

#: longest text in a cell
CELL = 60


def sweep_findings(folder: Path) -> Findings:
    """What there is to tell of a sweep; raises `MissingArtifact` where none of its jobs can be told of."""
    places = sorted((file.parent for file in folder.glob("*/result.json")), key=_number)
    jobs, problems = [], []
    for place in places:
        try:
            jobs.append(read_job(place))
        except KdistillError as ex:
            problems.append(" ".join(str(ex).split()))
    if not jobs:
        raise MissingArtifact(f"{folder}: no job of this sweep can be shown; {problems[0]}")
    swept = swept_keys([job.about["overrides"] for job in jobs])
    groups = grouped(jobs, swept)
    best = max(groups, key=lambda label: _chosen_by(groups[label]))
    leader = max(groups[best], key=lambda job: job.about.get("objective") or 0)
    students = {
        label: Group(label, [job.shown for job in members], _settings(members[0], swept))
        for label, members in groups.items()
    }
    metric, split, repeat = leader.metric, leader.split, leader.repeat
    student, teacher = leader.student, leader.teacher if leader.student else None
    return Findings(
        kind="sweep",
        folder=folder.name,
        title=f"Sweep of {', '.join(swept) or 'one job'}",
        dataset=leader.dataset,
        task=leader.task,
        metric=metric,
        split=split,
        verdict=[_verdict(students[best], len(groups), metric, split, teacher)],
        facts=[("jobs", f"{len(jobs)} of {len(places)}"), *facts(metric, students[best].average, teacher)],
        tables=_tables(places, swept, leader),
        groups=list(students.values()),
        teacher=teacher,
        student=student,
        favourites=students[best] if student else None,
        rivals=Group(teacher.title, [teacher]) if teacher else None,
        repeat=Repeat(_commands(folder, leader), repeat.config, repeat.versions, repeat.artifacts),
        notes=[*problems, *_unfinished(folder)],
        detail=f"Shown in detail: job {leader.folder.name}, of the best settings the best on validation.",
    )


def swept_keys(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The settings that differ between jobs, of the overrides of each."""
    chosen = [_values(words) for words in jobs]
    keys = dict.fromkeys(key for values in chosen for key in values)
    return [key for key in keys if len({values.get(key) for values in chosen}) > 1]


def grouped(jobs: Sequence[Job], swept: Sequence[str]) -> dict[str, list[Job]]:
    """Jobs that differ in seeds alone, under a label of the settings that they share."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        settings = _settings(job, swept)
        label = ", ".join(f"{key.removeprefix('student.')}={value}" for key, value in settings.items())
        groups.setdefault(label or job.shown.title, []).append(job)
    return groups


def _settings(job: Job, swept: Sequence[str]) -> dict[str, str]:
    values = _values(job.about["overrides"])
    return {key: values.get(key, "") for key in swept if not key.endswith("seed")}


def _values(words: Sequence[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if "=" in word)


def _chosen_by(jobs: Sequence[Job]) -> float:
    """What the best settings are chosen by: the mean validation score, never the test split."""
    known = [job.about["objective"] for job in jobs if job.about.get("objective") is not None]
    return statistics.fmean(known) if known else float("-inf")


def _verdict(best: Group, count: int, metric: Metric, split: str, teacher: Model | None) -> str:
    scores = best.scores(metric)
    told = f"{metric.text(best.mean(metric))} {metric.name} on the {split} split"
    if len(scores) > 1:
        told += f", mean of {len(scores)} seeds"
    if teacher is not None and metric.key in teacher.values:
        told += f"; the teacher reaches {metric.text(teacher.values[metric.key])}"
    chosen = f"Of {count} settings, {best.label} is best on validation" if count > 1 else "All jobs"
    return f"{chosen}: {told}."


# --- tables ---


def _tables(places: Sequence[Path], swept: Sequence[str], leader: Job) -> list[Table]:
    rows = [_row(place, swept) for place in places]
    columns = [*dict.fromkeys(key for row in rows for key in row if key != "status"), "status"]
    seeds = averages(rows, list(swept))
    every = Table("Every job", columns, [[_cell(row.get(column, "")) for column in columns] for row in rows])
    title = f"Job {leader.folder.name}, shown in detail, on the {leader.split} split"
    detail = scores_table(leader.task, list(leader.models.values()), title)
    return [*([seeds] if seeds else []), every, detail]


def _row(place: Path, swept: Sequence[str]) -> dict[str, Any]:
    about = read_json(place / "result.json")
    values = _values(about.get("overrides", []))
    status = (
        about.get("status", "")
        if about.get("status") == "ok"
        else f"{about.get('status')}: {about.get('error')}"
    )
    chosen = {key: values.get(key, "") for key in swept}
    return {"job": about.get("job"), **chosen, **about.get("row", {}), "status": status}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if len(str(value)) <= CELL else f"{str(value)[:CELL]} ..."


# --- how to repeat it ---


def _commands(folder: Path, leader: Job) -> list[str]:
    file = folder / "multirun.yaml"
    words: list[str] = []
    if file.is_file():
        from omegaconf import OmegaConf

        from kdistill.config.compose import users_words

        words = users_words(OmegaConf.select(OmegaConf.load(file), "hydra.overrides.task") or [])
    sweep = [shlex.join(["kdistill", stage_of(leader.folder), "-m", *words])] if words else []
    return [*sweep, leader.command]


def _unfinished(folder: Path) -> list[str]:
    if (folder / "sweep.csv").is_file():
        return []
    return ["The sweep is at work, or was cut off: what was finished is shown."]


def _number(place: Path) -> tuple[int, str]:
    return (int(place.name), "") if place.name.isdigit() else (-1, place.name)
