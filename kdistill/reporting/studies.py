"""Findings of a study: the best trial, what mattered, and how good it is on the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdistill.records import Table
from kdistill.reporting.findings import Findings, Group, Metric, Repeat, located
from kdistill.reporting.folders import complete, read_json, runs_of
from kdistill.reporting.runs import Job, facts, judged_job, score_tables
from kdistill.tasks import task_of

#: trials in the table
SHOWN = 20


def study_findings(folder: Path) -> Findings:
    """What there is to tell of a study; raises `DataError` for a file that is not whole."""
    file = folder / "study.json"
    about = read_json(file)
    with complete(file):
        return _findings(folder, about)


def _findings(folder: Path, about: Mapping[str, Any]) -> Findings:
    task, final = task_of(about["task"]), _final(folder, about)
    metric = Metric.of(task, about["metrics"][0])
    student, teacher = (final.student, final.teacher) if final else (None, None)
    tables = [_table(about, task)]
    if final is not None:
        tables += score_tables(task, list(final.models.values()), f"{about['dataset']}, test split")
    repeat = final.repeat if final else Repeat()
    own = facts(metric, student, teacher) if student and metric.key in student.values else []
    return Findings(
        kind="study",
        folder=folder.name,
        title=f"Study {about['name']}",
        dataset=about["dataset"],
        task=task,
        metric=metric,
        split="test" if final else "validation",
        verdict=_verdict(about, task),
        facts=[*_counts(about), *own],
        tables=tables,
        groups=[Group(student.title, [student])] if student else [],
        teacher=teacher,
        student=student,
        favourites=Group(student.title, [student]) if student else None,
        rivals=Group(teacher.title, [teacher]) if teacher and student else None,
        repeat=Repeat([about["command"], *repeat.commands], repeat.config, repeat.versions, repeat.artifacts),
        about=about,
        detail="Shown in detail: the final model." if final else "",
    )


def finished(about: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials that came to their end."""
    return [trial for trial in about["trials"] if trial["state"] == "COMPLETE"]


def ranked(about: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Finished trials, the best by the first score at the front."""
    higher = about["directions"][0] == "maximize"
    return sorted(finished(about), key=lambda trial: trial["values"][0], reverse=higher)


def _final(folder: Path, about: Mapping[str, Any]) -> Job | None:
    """The model that the study ended with, as judged; None where it is not made yet, or gone."""
    if about["final"] is None:
        return None
    file = located(about["final"]["evaluation"], runs_of(folder))
    return judged_job(folder, {"overrides": about["final"]["words"]}, file) if file.is_file() else None


def _verdict(about: Mapping[str, Any], task: Any) -> list[str]:
    metrics = [Metric.of(task, key) for key in about["metrics"]]
    done = finished(about)
    if not done:
        return [f"No trial of the study {about['name']} is finished yet."]
    if about["front"]:
        found = f"{len(about['front'])} of {len(done)} finished trials are best in their way"
        return [f"{found}: no other one is better in both {' and '.join(m.name for m in metrics)}."]
    best = next((trial for trial in done if trial["number"] == about["best"]), ranked(about)[0])
    chosen = ", ".join(f"{key}={short(value)}" for key, value in best["params"].items()) or "the defaults"
    told = f"Of {len(done)} finished trials, number {best['number']} is best on validation"
    lines = [f"{told}: {metrics[0].text(best['values'][0])} {metrics[0].name} with {chosen}."]
    scores = (about["final"] or {}).get("scores", {})
    if metrics[0].key in scores:
        lines.append(f"On the test split, its final model reaches {metrics[0].text(scores[metrics[0].key])}.")
    return lines


def _counts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    seconds = sum(trial["seconds"] or 0 for trial in about["trials"])
    count = f"{len(finished(about))} of {len(about['trials'])}"
    return [("trials finished", count), ("training", f"{seconds:,.0f} s")]


def _table(about: Mapping[str, Any], task: Any) -> Table:
    metrics, best = [Metric.of(task, key) for key in about["metrics"]], ranked(about)
    columns = [
        "trial",
        f"validation {metrics[0].label}",
        *(metric.label for metric in metrics[1:]),
        *about["search"],
        "epochs",
        "seconds",
    ]
    rows = [_row(trial, metrics, about["search"]) for trial in best[:SHOWN]]
    note = f"the best {SHOWN} of {len(best)} finished trials" if len(best) > SHOWN else ""
    return Table("Finished trials, the best first", columns, rows, note)


def _row(trial: Mapping[str, Any], metrics: Sequence[Metric], search: Mapping[str, str]) -> list[object]:
    chosen = [short(trial["params"].get(key, "")) for key in search]
    scores = [metric.number(value) for metric, value in zip(metrics, trial["values"], strict=True)]
    return [trial["number"], *scores, *chosen, trial["epochs"], f"{trial['seconds'] or 0:.1f}"]


def short(value: Any) -> str:
    """A setting's value with as many digits as a reader needs."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
