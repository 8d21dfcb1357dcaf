"""The settings that a search varies: the words that set them, and what is refused before the first trial."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kdistill.config import compose
from kdistill.config.explain import shown
from kdistill.errors import ConfigError
from kdistill.identity import key_of
from kdistill.stages.job import Job, Watch


def words_of(params: Mapping[str, Any]) -> list[str]:
    """Sampled settings as the user would write them."""
    return [f"{key}={shown(value)}" for key, value in params.items()]


def fixed_words(overrides: Sequence[str]) -> list[str]:
    """The user's words that all trials share: without those about the search itself."""
    return [word for word in overrides if not re.match(r"[+~]*(tune|search)\b", word)]


def job_at(
    job: Job, params: Mapping[str, Any], watch: Watch = lambda what, row: None, threads: int | None = None
) -> Job:
    """The job of one trial of the search of `job`, as `kdistill run` would have it; `threads` replaces null.

    Raises `ConfigError` for settings that do not go together.
    """
    words = [*fixed_words(job.overrides), *words_of(params)]
    config = compose.plan("run", words).configs[0]
    if config.device.threads is None:
        config = config.model_copy(update={"device": config.device.model_copy(update={"threads": threads})})
    return Job.open(config, words, watch)


def points(job: Job) -> list[Job]:
    """The search at a first point, and each of its settings from there at its other end, or its other choices.

    Raises `ConfigError` for what cannot be varied: a key or value that there is not, what the user has set, what the
    teacher, its soft targets or the data depend on, what the student does not depend on.
    """
    search = job.config.search
    if not search:
        raise ConfigError(
            "there is nothing to tune: choose a search, such as search=kd, or add a setting, such as"
            " '+search.loss.T={type: log, low: 1, high: 16}'"
        )
    _check_words(job)
    first = {key: values.samples[0] for key, values in search.items()}
    start = _composed(job, first, "search")
    found = [start]
    for key, values in search.items():
        others = [_composed(job, first | {key: value}, f"search.{key}") for value in values.samples[1:]]
        _check_key(key, start, others)
        found += others
    return found


def _composed(job: Job, params: Mapping[str, Any], where: str) -> Job:
    try:
        return job_at(job, params)
    except ConfigError as ex:
        raise ConfigError(f"{where}: {ex}") from ex


def _check_words(job: Job) -> None:
    for word in fixed_words(job.overrides):
        key = word.lstrip("+~").partition("=")[0]
        if key in job.config.search:
            raise ConfigError(
                f"{word} is given, but the search varies {key}: take it out, or add ~search.{key}"
            )


def _check_key(key: str, start: Job, others: Sequence[Job]) -> None:
    """Trials are compared on one data set, and share a teacher and its soft targets."""
    group = key.partition(".")[0]
    if group in ("dataset", "experiment"):
        raise ConfigError(f"search.{key}: trials are compared on one data set; use a sweep: kdistill run -m")
    for other in others:
        if _teachers(other) != _teachers(start):
            who = (
                "the teacher"
                if start.previous is None
                else f"{start.previous.config.student.name}, which teaches,"
            )
            raise ConfigError(
                f"search.{key}: {who} depends on it, and all trials share one teacher; use a sweep: kdistill run -m"
            )
        mine, first = _soft_targets(other), _soft_targets(start)
        if mine and first and mine != first:
            raise ConfigError(
                f"search.{key}: the soft targets depend on it, and all trials share one set: use"
                f" {'soft_targets.views=N or ' if key == 'student.epochs' else ''}soft_targets=live"
            )
    if others and all(_student(other) == _student(start) for other in others):
        raise ConfigError(f"search.{key}: the student does not depend on it")


def _teachers(job: Job) -> list[str]:
    return [key_of(teacher.identity.teacher) for teacher in job.teachers.values()]


def _soft_targets(job: Job) -> list[str]:
    """Keys of the soft targets that the student reads; none where it asks a live teacher, or none."""
    if not job.identity.needs_teacher:
        return []
    return [key_of(t.identity.soft_targets) for t in job.teachers.values() if t.identity.stored]


def _student(job: Job) -> tuple[str, str]:
    tuned = key_of(job.identity.finetuned) if job.config.finetune.epochs else ""
    return key_of(job.identity.student), tuned
