"""Stages as commands: run one for a config, and say what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kdistill.artifacts import Artifact
from kdistill.config.schema import Config
from kdistill.logs import early_warnings
from kdistill.models import check_name
from kdistill.records import Result, Table
from kdistill.stages import evaluate as evaluation
from kdistill.stages.distill import distill
from kdistill.stages.finetune import check_epochs, finetune
from kdistill.stages.job import Job, Role
from kdistill.stages.pipeline import run
from kdistill.stages.soft_targets import make_soft_targets
from kdistill.stages.train_teacher import train_teacher

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


def run_stage(config: Config, overrides: Sequence[str] = ()) -> Result:
    """Run the stage that the config names. `overrides` are the user's words, for the suggested command."""
    job = Job(config, overrides)
    if config.stage in MAKERS:
        make, following = MAKERS[config.stage]
        if config.stage == "distill" and not config.finetune.epochs:
            following = "eval"
        return _made(job, make(job), following)
    return _judged(job, run(job) if config.stage == "run" else evaluation.evaluate(job))


def check_before(configs: Sequence[Config], overrides: Sequence[Sequence[str]] = ()) -> None:
    """Refuse a sweep before its first job: a model, device or data that is not there, a missing teacher.

    Raises the `UserError` that the job itself would raise, perhaps after hours.
    """
    words = list(overrides) or [()] * len(configs)
    for config in configs:
        for model in (config.teacher, config.student):
            check_name(model.name)
    tried: set[str] = set()
    with early_warnings():
        for config, line in zip(configs, words, strict=True):
            _check_job(Job(config, line), tried)


def _check_job(job: Job, tried: set[str]) -> None:
    """Look for what the job needs, and build the networks that no job before it has `tried`."""
    stage = job.config.stage
    if stage in ("soft-targets", "distill") and job.identity.needs_teacher:
        job.require_teacher()
    if stage == "finetune":
        check_epochs(job.config.finetune)
    if stage in ("finetune", "eval"):
        job.require_student()
    for role in TRAINED.get(stage, ()):
        network = job.network_settings(role)
        if network not in tried and not job.is_trained(role):
            tried.add(network)
            job.try_network(role)
    if stage == "run":
        _ = job.data.test  # found missing or damaged now, not after the training


def _made(job: Job, artifact: Artifact, following: str) -> Result:
    about = artifact.manifest
    scores = about.get("validation", {})
    row: dict[str, float | int | str] = {
        f"validation {name}": round(value, 5) for name, value in scores.items()
    }
    row |= {"seconds": about["seconds"]}
    return Result(
        objective=scores.get("top1"),
        row={**row, "artifact": artifact.folder.name},
        tables=[_summary(artifact)],
        message=f"{artifact.folder}\nnext: {job.command(following)}",
        artifacts={artifact.kind: str(artifact.folder)},
    )


def _summary(artifact: Artifact) -> Table:
    about = artifact.manifest
    facts: dict[str, object] = {"model": about["model"], "dataset": about["dataset"]}
    if "validation" in about:
        scores = about["validation"]
        facts |= {
            "validation top-1 %": f"{100 * scores['top1']:.2f}",
            "validation NLL": f"{scores['nll']:.4f}",
            "parameters": f"{about['parameters']:,}",
            "epochs": about["epochs"],
        }
    else:
        views, samples, classes = about["shape"]
        facts |= {"views": views, "samples": f"{samples:,}", "classes": classes, "dtype": about["dtype"]}
    facts |= {"MB": f"{artifact.bytes / 1e6:,.2f}", "seconds": f"{about['seconds']:.1f}"}
    return Table(title=artifact.kind, columns=list(facts), rows=[list(facts.values())])


def _judged(job: Job, scores: dict[str, dict[str, Any]]) -> Result:
    last = list(scores.values())[-1]
    row: dict[str, float | int | str] = {f"{name} top1": round(v["top1"], 5) for name, v in scores.items()}
    row |= {metric: round(last[metric], 5) for metric in ("nll", "ece", "agreement") if metric in last}
    trained = [values["seconds"] for name, values in scores.items() if name != "teacher"]
    row |= {"parameters": last["parameters"], "seconds": round(sum(trained), 2)}
    best = job.find_finetuned() if job.config.finetune.epochs else job.find_student()
    return Result(
        objective=best.manifest["validation"]["top1"] if best else None,
        row=row,
        tables=[evaluation.table(job, scores)],
        message=f"student: {last['artifact']}\nnext: {_next_command(job)}",
        artifacts={name: values["artifact"] for name, values in scores.items()},
    )


def _next_command(job: Job) -> str:
    """What a user may want to know next: is the student better for its teacher?"""
    free = [word for word in job.overrides if not word.startswith(("loss", "student.seed"))]
    own_loss = any(word.startswith("loss.") for word in job.overrides)
    if job.identity.needs_teacher and own_loss:
        return job.command("run", [*free, "loss=ce"])
    if job.identity.needs_teacher:
        return job.command("run", [*free, "-m", "loss=kd,ce", "student.seed=0,1,2"])
    return job.command("run", [*free, "loss=kd"])
