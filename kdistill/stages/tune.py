"""The stage `tune`: a study of many students of one teacher, and the best of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from kdistill.errors import ConfigError, did_you_mean
from kdistill.files import write_json
from kdistill.identity import key_of
from kdistill.records import Result
from kdistill.stages.job import Job
from kdistill.stages.pipeline import make_teachers
from kdistill.stages.space import points
from kdistill.stages.team import Team, is_worker
from kdistill.stages.tuned import Goal, ending, write
from kdistill.tasks import SMALLER_IS_BETTER

#: settings that say where things are, how the machine is used and how long the search goes on: another start of the
#: same study may have others
_FREE: dict[str, Any] = {
    **dict.fromkeys(("stage", "runs", "force", "model", "export", "predict", "eval"), True),
    "device": {"workers", "threads", "memory_gb", "cache"},
    "tune": {"name", "trials", "minutes", "workers", "final"},
}
#: settings that are named where a study was begun with others
NAMED = 3


def check_tune(job: Job) -> list[Job]:
    """Jobs that stand for all trials, to be checked as `kdistill run` checks its own.

    Raises `ConfigError` for what cannot be tuned, and for a study that was begun with other settings.
    """
    _require_optuna()
    config = job.config
    if config.device.processes > 1:
        raise ConfigError(
            f"device.processes={config.device.processes}: a trial is trained by one process; tune.workers=N runs N"
            " trials at the same time"
        )
    if config.force:
        raise ConfigError(
            "force=true: a study goes on where it stopped; give another one a name with tune.name=NAME"
        )
    goal_of(job)
    if is_worker():
        return []
    found = points(job)
    _check_settings(job)
    return found


def tune(job: Job) -> Result:
    """Run the trials of a study, or what is left of them; returns its best student, judged on the test split."""
    _require_optuna()
    from kdistill.stages.trials import run_trials
    from kdistill.studies import Study

    goal, folder = goal_of(job), folder_of(job)
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(job)
    write_json(folder / "settings.json", _settings(job))
    make_teachers(job)
    study = Study(folder, job.config.search, job.config.tune, goal.directions, _most_epochs(job))
    try:
        with Team(job) as team:
            run_trials(job, study, goal.metric, team, lambda: write(job, study, goal))
        return Result(objective=None, row={}) if is_worker() else ending(job, study, goal)
    finally:
        study.close()


def goal_of(job: Job) -> Goal:
    """What trials are judged by; raises `ConfigError` for a score that the task does not have."""
    labels = job.data.validation.labels[:2]
    known = job.task.summarise(torch.zeros(len(labels), len(job.data.classes)), labels.cpu())
    metric = job.config.tune.metric or job.task.headline
    if metric not in known:
        raise ConfigError(
            f"tune.metric={metric}: validation has no such score.{did_you_mean(metric, known)} There are"
            f" {', '.join(known)}"
        )
    direction: Literal["minimize", "maximize"] = "minimize" if metric in SMALLER_IS_BETTER else "maximize"
    return Goal(metric, direction, job.config.tune.against)


def folder_of(job: Job) -> Path:
    """Where the study is; without a name of the user's, its own is made from all that it depends on."""
    own = f"{job.config.dataset.name}-{job.label('student')}-{key_of(_settings(job))}"
    return Path(job.config.runs) / "studies" / (job.config.tune.name or own)


def _most_epochs(job: Job) -> int:
    """The most epochs that a student of the search is trained for."""
    searched = job.config.search.get("student.epochs")
    return max(int(value or 0) for value in searched.samples) if searched else job.config.student.epochs


def _require_optuna() -> None:
    try:
        import_module("optuna")
    except ImportError as ex:
        raise ConfigError("kdistill tune needs optuna: pip install 'kdistill[tune]'") from ex


# --- settings of a study ---


def _settings(job: Job) -> dict[str, Any]:
    """All that the results of a study depend on, by dotted key."""
    settings = job.config.model_dump(mode="json", exclude_none=True, exclude=_FREE)
    return {**_dotted(settings), "data": job.data.fingerprint}


def _dotted(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in node.items():
        found |= (
            _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return found


def _check_settings(job: Job) -> None:
    folder = folder_of(job)
    if not (folder / "settings.json").exists():
        return
    then, now = json.loads((folder / "settings.json").read_text()), _settings(job)
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if keys:
        changes = [f"{key}={then.get(key, 'null')}, now {now.get(key, 'null')}" for key in keys[:NAMED]]
        more = f"; {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        raise ConfigError(
            f"the study {folder.name} was begun with {'; '.join(changes)}{more}. Give this one another name,"
            f" tune.name=NAME, or remove {folder}"
        )
