"""Findings of a run: what it trained, and how good it is, from its result, its artifacts and their evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdistill.artifacts import Artifact
from kdistill.errors import ConfigError, MissingArtifact
from kdistill.records import Table
from kdistill.reporting.findings import Findings, Group, Metric, Model, Repeat, located, parent
from kdistill.reporting.folders import STAGES, complete, read_json, runs_of, stage_of
from kdistill.stages.tables import COSTS, cost_text
from kdistill.tasks import Task, task_of


@dataclass(frozen=True)
class Job:
    """A finished job's folder and what it made: `models` in the order of their making, teachers first.

    `split`: what their scores are of; `about`: its result.json.
    """

    folder: Path
    about: Mapping[str, Any]
    dataset: str
    task: Task
    split: str
    models: Mapping[str, Model]
    command: str

    @property
    def teacher(self) -> Model | None:
        return self.models.get("teacher")

    @property
    def student(self) -> Model | None:
        """The last model, if that is no teacher."""
        return None if list(self.models)[-1].startswith("teacher") else self.shown

    @property
    def shown(self) -> Model:
        """The model that the job is about: the student, or the teacher where only that was trained."""
        return list(self.models.values())[-1]

    @property
    def metric(self) -> Metric:
        return Metric.of(self.task, self.task.headline)

    @property
    def repeat(self) -> Repeat:
        """What it takes to have the job's result again."""
        config = self.folder / ".hydra" / "config.yaml"
        made = [folder for model in self.models.values() for folder in model.artifacts]
        return Repeat(
            commands=[self.command],
            config=config.read_text() if config.is_file() else "",
            versions=Artifact(made[-1]).manifest["versions"] if made else {},
            artifacts=list(dict.fromkeys(made)),
        )


def read_job(folder: Path) -> Job:
    """Read a job's folder.

    Raises `ConfigError` for a job that failed or has nothing to show, `MissingArtifact` where what it made is gone.
    """
    about, stage = read_json(folder / "result.json"), stage_of(folder)
    if about.get("status") != "ok":
        raise ConfigError(
            f"{folder}: the run {about.get('status')}: {about.get('error') or 'it was stopped'}"
        )
    if stage not in STAGES:
        raise ConfigError(
            f"{folder} is a run of `kdistill {stage}`, of which there is nothing to show. Expected one of"
            f" {', '.join(STAGES)}"
        )
    with complete(folder / "result.json"):
        made = {name: _parts(written, runs_of(folder)) for name, written in about["artifacts"].items()}
        again = shlex.join(["kdistill", stage, *about["overrides"]])
        if gone := [part for parts in made.values() for part in parts if not part.exists()]:
            raise MissingArtifact(
                f"{gone[0]}, which the run {folder} made, is gone. Make it again with:\n  {again}"
            )
        file = _evaluation(made, runs_of(folder))
        if file is not None:
            return judged_job(folder, about, file)
        return _trained_job(folder, about, made, again)


def judged_job(folder: Path, about: Mapping[str, Any], file: Path) -> Job:
    """A job whose models were judged on the test split: `file` is their evaluation."""
    found = read_json(file)
    with complete(file):
        runs = runs_of(file)
        models = {name: _judged(values, runs) for name, values in found["models"].items()}
        task = task_of(found["task"])
        return Job(folder, about, found["dataset"], task, "test", models, found["command"])


def _judged(values: Mapping[str, Any], runs: Path) -> Model:
    artifacts = [part for part in _parts(values["artifact"], runs) if (part / "manifest.json").is_file()]
    return Model(values["title"], values, artifacts, located(values["predictions"], runs))


def _trained_job(folder: Path, about: Mapping[str, Any], made: Mapping[str, list[Path]], command: str) -> Job:
    """A job of which only the scores on the validation split are known."""
    artifact = Artifact(next(iter(made.values()))[0])
    manifest, models = artifact.manifest, {}
    teacher = parent(parent(artifact, "student") or artifact, "teacher")
    if teacher is not None:
        models["teacher"] = _validated(teacher, "teacher")
    role = "teacher" if artifact.kind == "teacher" else "student"
    models[role] = _validated(artifact, role)
    task = _task(manifest["validation"])
    return Job(folder, about, manifest["dataset"], task, "validation", models, command)


def _validated(artifact: Artifact, role: str) -> Model:
    about = artifact.manifest
    values = {**about["validation"], "parameters": about["parameters"], "seconds": about["seconds"]}
    return Model(f"{role} {about['model']}", {**values, "bytes": artifact.payload_bytes}, [artifact.folder])


def _task(scores: Mapping[str, float]) -> Task:
    names = ("classification", "multilabel", "regression")
    return next(task for task in map(task_of, names) if task.headline in scores)


def _parts(written: str, runs: Path) -> list[Path]:
    """The folders of a model: of an ensemble there are several."""
    whole = located(written, runs)
    return [whole] if whole.exists() else [located(part, runs) for part in written.split(", ")]


def _evaluation(made: Mapping[str, Sequence[Path]], runs: Path) -> Path | None:
    """The evaluation that ends with the job's last model; None where it was not judged."""
    last = list(made.values())[-1][0]
    beside = Artifact(last).beside("evaluation.json")
    if beside.is_file():
        return beside
    # of a model that the user brought, it lies beside its predictions
    files = [*(runs / "artifacts" / "predictions").glob("*.evaluation.json")]
    own = (
        file for file in files if list(read_json(file)["models"].values())[-1]["artifact"].endswith(last.name)
    )
    return next(own, None)


# --- told ---


def run_findings(folder: Path) -> Findings:
    """What there is to tell of a run; raises what `read_job` does."""
    job = read_job(folder)
    student, teacher = job.student, job.teacher
    notes = (
        []
        if job.split == "test"
        else [f"Not judged on the test split yet: scores are of the {job.split} split."]
    )
    return Findings(
        kind="run",
        folder=folder.name,
        title=" beside ".join(model.title for model in (student, teacher) if model is not None),
        dataset=job.dataset,
        task=job.task,
        metric=job.metric,
        split=job.split,
        verdict=[verdict(job)],
        facts=facts(job.metric, job.shown, teacher if student else None),
        tables=score_tables(job.task, list(job.models.values()), f"{job.dataset}, {job.split} split"),
        groups=[Group(student.title, [student])] if student else [],
        teacher=teacher,
        student=student,
        favourites=Group(student.title, [student]) if student else None,
        rivals=Group(teacher.title, [teacher]) if teacher and student else None,
        repeat=job.repeat,
        notes=notes,
    )


def verdict(job: Job) -> str:
    """How good the student is beside its teacher, in a sentence."""
    metric, student, teacher = job.metric, job.student, job.teacher
    where = "" if job.split == "test" else f" on the {job.split} split"
    if student is None or teacher is None:
        return (
            f"The {job.shown.title} reaches {metric.text(job.shown.values[metric.key])} {metric.name}{where}."
        )
    own, theirs = student.values[metric.key], teacher.values[metric.key]
    size = _share_of_size(student, teacher)
    if own >= theirs:
        told = f"The student is as good as its teacher: {metric.text(own)} against {metric.text(theirs)} {metric.name}"
        return f"{told}{where}{size}."
    if not metric.unit:
        return f"The student reaches {metric.name} {metric.text(own)}, the teacher {metric.text(theirs)}{where}{size}."
    kept = f"{100 * own / theirs:.1f} % of the teacher's {metric.name}"
    return f"The student keeps {kept} ({metric.number(own)} of {metric.text(theirs)}){where}{size}."


def _share_of_size(student: Model, teacher: Model) -> str:
    own, theirs = student.values["parameters"], teacher.values["parameters"]
    return f", with 1/{theirs / own:,.0f} of its parameters" if own and theirs >= 1.5 * own else ""


def facts(metric: Metric, shown: Model, teacher: Model | None) -> list[tuple[str, str]]:
    """The few numbers that a reader looks for first."""
    values = shown.values
    found = [(metric.name, metric.text(values[metric.key]))]
    if teacher is not None:
        found.append((f"{metric.name}, teacher", metric.text(teacher.values[metric.key])))
    if "agreement" in values:
        found.append(("agreement", f"{100 * values['agreement']:.1f} %"))
    if "ece" in values:
        found.append(("calibration error", f"{100 * values['ece']:.1f} %"))
    found.append(("parameters", f"{values['parameters']:,}"))
    if shown.latency is not None:
        found.append(("for one image", f"{1e3 * shown.latency:.2f} ms"))
    return found


def score_tables(task: Task, models: Sequence[Model], title: str) -> list[Table]:
    """Scores of each model, and what it costs, as far as they are known."""
    columns = [c for c in task.columns if any(model.values.get(c.key) is not None for model in models)]
    costs = [c for c in COSTS if any(cost_text(model.values, c) != "-" for model in models)]
    scores: list[list[object]] = [
        [
            model.title,
            *(c.text(value) if (value := model.values.get(c.key)) is not None else "-" for c in columns),
        ]
        for model in models
    ]
    prices: list[list[object]] = [
        [model.title, *(cost_text(model.values, c) for c in costs)] for model in models
    ]
    return [
        Table(title, ["", *(c.heading for c in columns)], scores),
        Table(
            "What they cost",
            ["", *(c.heading for c in costs)],
            prices,
            "p50, p95: of one image; seconds: of training",
        ),
    ]
