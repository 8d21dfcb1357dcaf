"""Findings of a sweep: which settings are best, and how far the seeds lie apart."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdistill.errors import DataError, KdistillError, MissingArtifact
from kdistill.records import Table
from kdistill.reporting.findings import Findings, Group, Metric, Model, Repeat
from kdistill.reporting.folders import read_json, stage_of
from kdistill.reporting.runs import Job, facts, read_job, score_tables
from kdistill.tasks import Column

#: scores in tables, beside what results are known by; longest text in a cell
SCORES, CELL = ("nll", "ece", "agreement", "distance"), 60


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
    every, tables = _tables(places, swept, groups, leader)
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
        tables=tables,
        folded=[every],
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
    short = short_names([key for key in swept if not key.endswith("seed")])
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        label = ", ".join(f"{short[key]}{value}" for key, value in _settings(job, swept).items())
        groups.setdefault(label or job.shown.title, []).append(job)
    return groups


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """What stands before a setting's value in a label: nothing of an option, `T=` of `loss.T`, if that is the only one.

    >>> short_names(["student", "loss.T", "student.epochs", "finetune.epochs"])
    {'student': '', 'loss.T': 'T=', 'student.epochs': 'student.epochs=', 'finetune.epochs': 'finetune.epochs='}
    """
    last = [key.rpartition(".")[2] for key in keys]
    options = [key for key in keys if "." not in key]
    return {
        key: "" if options == [key] else f"{end if last.count(end) == 1 else key}="
        for key, end in zip(keys, last, strict=True)
    }


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


def _tables(
    places: Sequence[Path], swept: Sequence[str], groups: Mapping[str, Sequence[Job]], leader: Job
) -> tuple[Table, list[Table]]:
    """Every job; the settings, the best on validation first, and the models of the `leader`."""
    metric, columns = leader.metric, [c for c in leader.task.columns if c.key in (leader.metric.key, *SCORES)]
    headings = [
        f"validation {metric.label}",
        *(column.heading for column in columns),
        "parameters",
        "seconds",
    ]
    keys = [key for key in swept if not key.endswith("seed")]
    ranked = sorted(groups.values(), key=_chosen_by, reverse=True)
    settings = [[*_settings(jobs[0], swept).values(), len(jobs), *_scores(jobs, columns)] for jobs in ranked]
    several = f", mean ± standard deviation over {' and '.join(key for key in swept if key not in keys)}"
    title = f"Settings, the best on validation first{several if len(swept) > len(keys) else ''}"
    jobs = {job.folder: job for members in groups.values() for job in members}
    every = [_row(place, swept, jobs.get(place), columns) for place in places]
    models = list(leader.models.values())
    return Table("Every job", ["job", *swept, *headings, "status"], every), [
        Table(title, [*keys, "jobs", *headings], settings),
        *score_tables(leader.task, models, f"Job {leader.folder.name}, on the {leader.split} split"),
    ]


def _row(place: Path, swept: Sequence[str], job: Job | None, columns: Sequence[Column]) -> list[object]:
    if job is not None:
        chosen = _values(job.about["overrides"])
        return [place.name, *(chosen.get(key, "") for key in swept), *_scores([job], columns), "ok"]
    try:
        about = read_json(place / "result.json")
    except DataError:
        about = {"status": "damaged", "error": "result.json is not JSON"}
    chosen, told = (
        _values(about.get("overrides", [])),
        f"{about.get('status')}: {about.get('error', 'what it made is gone')}",
    )
    status = told if len(told) <= CELL else f"{told[:CELL]} ..."
    return [place.name, *(chosen.get(key, "") for key in swept), *[""] * (len(columns) + 3), status]


def _scores(jobs: Sequence[Job], columns: Sequence[Column]) -> list[object]:
    """The validation score, the scores of `columns`, and what jobs cost, as means over them."""
    shown = [job.shown.values for job in jobs]
    objectives = [job.about["objective"] for job in jobs if job.about.get("objective") is not None]
    scores = [_mean([v[c.key] for v in shown if v.get(c.key) is not None], c.text) for c in columns]
    seconds = [job.about["row"]["seconds"] for job in jobs if "seconds" in job.about.get("row", {})]
    size = f"{shown[0]['parameters']:,}"
    return [_mean(objectives, jobs[0].metric.number), *scores, size, _mean(seconds, "{:.1f}".format)]


def _mean(values: Sequence[float], text: Callable[[float], str]) -> str:
    if not values:
        return "-"
    mean = text(statistics.fmean(values))
    return f"{mean} ± {text(statistics.stdev(values))}" if len(values) > 1 else mean


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
