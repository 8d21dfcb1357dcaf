"""Stages as commands: run one for a config, and say what came out."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from kdistill.artifacts import Artifact
from kdistill.config.models import kind_of
from kdistill.config.schema import Config
from kdistill.errors import ConfigError
from kdistill.exports import FORMATS
from kdistill.logs import early_warnings
from kdistill.models import check_name
from kdistill.records import Result, Table
from kdistill.stages.arms import arms, check_arms
from kdistill.stages.checks import check_method, check_shares
from kdistill.stages.compare import compare
from kdistill.stages.distill import distill
from kdistill.stages.evaluate import Evaluation, evaluate
from kdistill.stages.export import check_export, export
from kdistill.stages.export import table as export_table
from kdistill.stages.finetune import check_epochs, finetune
from kdistill.stages.job import ROLES, Job, Role, Watch, command_line
from kdistill.stages.objectives import rehearse
from kdistill.stages.pipeline import run
from kdistill.stages.signals import class_map_of
from kdistill.stages.soft_targets import check_soft_targets, make_soft_targets, read_file
from kdistill.stages.subjects import given_model
from kdistill.stages.tables import tables
from kdistill.stages.tracking import check_trackers, tracked
from kdistill.stages.train_teacher import check_fit, is_trainable, train_teacher
from kdistill.stages.tune import check_tune, tune
from kdistill.stages.verdicts import told

#: stage -> (its function, the stage that usually comes next)
MAKERS: dict[str, tuple[Callable[[Job], Artifact], str]] = {
    "train-teacher": (train_teacher, "distill"),
    "soft-targets": (make_soft_targets, "distill"),
    "distill": (distill, "finetune"),
    "finetune": (finetune, "eval"),
}


#: stage -> the networks that it builds
TRAINED: dict[str, tuple[Role, ...]] = {
    "train-teacher": ("teacher",),
    "distill": ("student",),
    "run": ("teacher", "student"),
}


def run_stage(config: Config, overrides: Sequence[str] = (), folder: Path | None = None) -> Result:
    """Run the stage that the config names, under its tracker.

    `overrides` are the user's words, for the suggested command; `folder` is the run's, for what is no artifact.
    """
    command = command_line(config.stage, overrides)
    return tracked(lambda watch: _carry_out(config, overrides, watch, folder), config, command, folder)


def _carry_out(config: Config, overrides: Sequence[str], watch: Watch, folder: Path | None) -> Result:
    stage = config.stage
    if stage == "compare":
        return told(compare(config, overrides), folder)
    job = Job.open(config, overrides, watch)
    if stage in MAKERS:
        make, following = MAKERS[stage]
        if stage == "distill" and not config.finetune.epochs:
            following = "eval"
        return _made(job, [make(maker) for maker in makers(job, stage)], following)
    if stage == "export":
        return _exported(job, export(job))
    if stage == "tune":
        return tune(job)
    return _judged(job, run(job) if stage == "run" else evaluate(job))


def makers(job: Job, stage: str) -> list[Job]:
    """The jobs of a stage: one for each member of an ensemble where the teacher is made or asked."""
    if stage == "train-teacher":
        teachers = list(job.chain[0].teachers.values())
        return [teacher for teacher in teachers if is_trainable(teacher)] or teachers
    return list(job.teachers.values()) if stage == "soft-targets" else [job]


def check_before(configs: Sequence[Config], overrides: Sequence[Sequence[str]] = ()) -> None:
    """Refuse a sweep before its first job: a model, device, tracker or data that is not there, a missing teacher,
    or a method that the data or the teacher do not allow.

    Raises the `UserError` that the job itself would raise, perhaps after hours.
    """
    words = list(overrides) or [()] * len(configs)
    check_trackers(configs)
    compared = [arms(c, line) for c, line in zip(configs, words, strict=True) if c.stage == "compare"]
    runs = [(c, line) for c, line in zip(configs, words, strict=True) if c.stage != "compare"]
    runs += [(arm.config, arm.words) for found in compared for arm in found]
    for config, _ in runs:
        for model in (config.teacher, *config.teacher.members.values(), *(c.student for c in config.steps)):
            if kind_of(model.name) == "network":
                check_name(model.name)
    tried: set[str] = set()
    with early_warnings():
        for config, line in runs:
            _check_job(Job.open(config, line), tried)
        for found in compared:
            check_arms(found)


def _check_job(job: Job, tried: set[str]) -> None:
    """Look for what the job needs, and build the networks that no job before it has `tried`."""
    stage = job.config.stage
    if stage == "tune":
        for point in check_tune(job):
            _check_job(point, tried)
    _ = job.views(seed=0)  # refused now if the images do not allow them
    check_shares(job)
    check_model(job)
    if stage in ("distill", "run"):
        for step in job.chain:
            check_method(step)
    if stage == "soft-targets":
        check_soft_targets(makers(job, stage))
    if stage in ("soft-targets", "distill") and (job.identity.needs_teacher or stage == "soft-targets"):
        for teacher in job.teachers.values():
            if not teacher.identity.is_file:
                teacher.require_teacher()
    if stage in ("soft-targets", "distill", "run"):
        for teacher in (job if stage == "soft-targets" else job.chain[0]).teachers.values():
            _try_given(teacher)
    if stage == "finetune":
        check_epochs(job.config.finetune)
    if stage == "eval" and job.config.model is not None:
        given_model(job)
    elif stage in ("finetune", "eval"):
        job.require_student()
    if stage == "export":
        check_export(job)
    roles = TRAINED.get(stage, ())
    if "teacher" in roles:
        for teacher in job.chain[0].teachers.values():
            _try_teacher(teacher, tried)
    if "student" in roles:
        for step in job.chain if stage == "run" else [job]:
            _try_network(step, "student", tried)
            _try_features(step, tried)
    if stage == "run":
        _ = job.data.test  # found missing or damaged now, not after the training


def check_model(job: Job) -> None:
    """Raise `ConfigError` for `model` with a stage that has no use for it."""
    if job.config.model is not None and job.config.stage not in ("eval", "export"):
        raise ConfigError(
            f"model={job.config.model} is for `kdistill eval`, `export` and `predict`; a student starts from"
            " student.weights=FILE, and teacher=folder teacher.weights=FOLDER teaches"
        )


def _try_teacher(job: Job, tried: set[str]) -> None:
    teacher = job.config.teacher
    if teacher.kind == "network":
        _try_network(job, "teacher", tried)
    elif teacher.kind == "estimator":
        check_fit(job)


def _try_given(job: Job) -> None:
    """Read what the user brings along as a teacher: it may be damaged, or of other data."""
    if job.previous is None and job.identity.needs_teacher:
        if job.identity.is_file and job.find_soft_targets({}) is None:
            read_file(job)
        elif job.config.teacher.kind == "folder":
            folder = job.require_teacher()
            class_map_of(job, folder)
            job.load(folder)


def _try_features(job: Job, tried: set[str]) -> None:
    """Pair the layers of student and teacher, and see that each feature term reaches the student."""
    config = job.config
    settings = [config.loss.model_dump_json(include={"features"}), str(config.student.batch_size)]
    settings += [config.student.optim.model_dump_json(include={"accumulate"})]
    settings += [step.network_settings(role) for step in job.chain for role in ROLES]
    case = " ".join(settings)
    if config.loss.features and case not in tried and not job.is_trained("student"):
        tried.add(case)
        with job.engine.seeded(0):
            rehearse(job)


def _try_network(job: Job, role: Role, tried: set[str]) -> None:
    network = job.network_settings(role)
    if network not in tried and not job.is_trained(role):
        tried.add(network)
        job.try_network(role)


def _made(job: Job, artifacts: Sequence[Artifact], following: str) -> Result:
    artifact = artifacts[-1]
    about = artifact.manifest
    scores = about.get("validation", {})
    row: dict[str, float | int | str] = {
        f"validation {name}": round(value, 5) for name, value in scores.items()
    }
    row |= {"seconds": about["seconds"]}
    return Result(
        objective=scores.get(job.task.headline),
        row={**row, "artifact": artifact.folder.name},
        tables=[_summary(job, artifact) for artifact in artifacts],
        message="\n".join([*(str(a.folder) for a in artifacts), f"next: {job.command(following)}"]),
        artifacts={artifact.kind: str(artifact.folder)},
    )


def _summary(job: Job, artifact: Artifact) -> Table:
    about = artifact.manifest
    facts: dict[str, object] = {"model": about["model"], "dataset": about["dataset"]}
    if "validation" in about:
        scores = about["validation"]
        shown = [c for c in job.task.columns if c.key in (job.task.headline, "nll")]
        facts |= {f"validation {c.heading}": c.text(scores[c.key]) for c in shown}
        facts |= {
            "parameters": f"{about['parameters']:,}",
            "epochs": about["epochs"],
        }
    else:
        views, samples, classes = about["shape"]
        facts |= {"views": views, "samples": f"{samples:,}", "classes": classes, "dtype": about["dtype"]}
        if about.get("top_k") is not None:
            facts["top k"] = about["top_k"]
    facts |= {"MB": f"{artifact.bytes / 1e6:,.2f}", "seconds": f"{about['seconds']:.1f}"}
    return Table(title=artifact.kind, columns=list(facts), rows=[list(facts.values())])


def _exported(job: Job, artifact: Artifact) -> Result:
    about = artifact.manifest
    path = artifact.folder / FORMATS[job.config.export.format].file
    row: dict[str, float | int | str] = {name: round(value, 5) for name, value in about["test"].items()}
    row |= {name: about[name] for name in ("difference", "ms")}
    return Result(
        objective=None,
        row={**row, "bytes": artifact.payload_bytes, "artifact": artifact.folder.name},
        tables=[export_table(job.task, artifact)],
        message=f"{path}\nnext: {shlex.join(['kdistill', 'predict', 'IMAGE', f'model={path}'])}",
        artifacts={artifact.kind: str(artifact.folder)},
    )


def _judged(job: Job, evaluation: Evaluation) -> Result:
    scores, headline = evaluation.scores, job.task.headline
    last = list(scores.values())[-1]
    row: dict[str, float | int | str] = {
        f"{name} {headline}": round(v[headline], 5) for name, v in scores.items()
    }
    row |= {metric: round(last[metric], 5) for metric in ("nll", "ece", "agreement") if metric in last}
    trained = [values.get("seconds", 0) for name, values in scores.items() if not name.startswith("teacher")]
    row |= {"parameters": last["parameters"], "seconds": round(sum(trained), 2)}
    lines = [f"evaluation: {evaluation.path}"]
    best = None
    if job.config.model is None:
        lines = [f"student: {last['artifact']}", *lines, f"next: {_next_command(job)}"]
        best = job.find_finetuned() if job.config.finetune.epochs else job.find_student()
    return Result(
        objective=best.manifest["validation"][headline] if best else None,
        row=row,
        tables=tables(job, evaluation),
        message="\n".join(lines),
        artifacts={name: values["artifact"] for name, values in scores.items()},
    )


def _next_command(job: Job) -> str:
    """What a user may want to know next: is the student better for its teacher?"""
    if job.config.loss.kind != "ce":
        return job.command("compare")
    taught = ("loss", "feature", "assistant", "generations")
    return job.command("run", [*(word for word in job.overrides if not word.startswith(taught)), "loss=kd"])
