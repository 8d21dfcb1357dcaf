"""The trials of a study: each a student like any other, scored on validation, ended early where it is bad.

This module needs the extra `tune`; the stage imports it when it has looked for that.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from optuna.trial import Trial

from kdistill.artifacts import Artifact
from kdistill.errors import ConfigError, Diverged, ModelError, RunError, first_line
from kdistill.footprint import BATCH_SIZE, measure
from kdistill.identity import key_of
from kdistill.stages.distill import distill
from kdistill.stages.finetune import finetune
from kdistill.stages.job import Job
from kdistill.stages.space import job_at, words_of
from kdistill.stages.subjects import subjects
from kdistill.stages.team import Team
from kdistill.studies import Pruned, Study

log = logging.getLogger("kdistill")
#: seconds between two looks at the trials of other processes
POLL = 0.5
#: trials that may fail one after another
FAILURES = 5
#: what ends a trial and not the study: settings that do not go together, or are too much for the machine
FAILS = (Diverged, ConfigError, ModelError, torch.OutOfMemoryError)


def run_trials(job: Job, study: Study, metric: str, team: Team, note: Callable[[], object]) -> None:
    """Run trials until the study has all, or the time is over; `note` is called after each.

    Raises `RunError` when one after another fails.
    """
    tune, failures = job.config.tune, 0
    deadline = math.inf if tune.minutes is None else time.monotonic() + 60 * tune.minutes
    while not team.is_over and time.monotonic() < deadline:
        team.look()
        trial = study.next()
        if trial is None and study.is_over:
            return
        if trial is None:
            time.sleep(POLL)
            continue
        reason = _run(job, study, trial, metric, team.threads)
        note()
        failures = failures + 1 if reason else 0
        if failures == FAILURES:
            raise RunError(f"{FAILURES} trials failed one after another, the last one because: {reason}")


def _run(job: Job, study: Study, trial: Trial, metric: str, threads: int | None) -> str:
    """Run one trial to its end, and return why it failed; empty where it did not."""
    name, started = f"trial {trial.number}", time.perf_counter()
    log.info("%s: %s", name, " ".join(words_of(trial.params)))
    try:
        own = job_at(job, trial.params, partial(_watch, study, trial, metric), threads)
        made = _made(own, study, trial)
        values = [made[-1].manifest["validation"][metric]]
        if job.config.tune.against is not None:
            values.append(_cost(own, job.config.tune.against))
    except Pruned:
        study.prune(trial, {"seconds": round(time.perf_counter() - started, 2)})
        log.info("%s: ended early", name)
    except FAILS as ex:
        reason = first_line(ex)
        study.fail(trial, {"seconds": round(time.perf_counter() - started, 2), "reason": reason})
        log.warning("%s failed: %s", name, reason)
        return reason
    else:
        study.complete(trial, values, _about(made))
        log.info("%s: validation %s %s", name, metric, "  ".join(f"{value:.5g}" for value in values))
    return ""


def _made(job: Job, study: Study, trial: Trial) -> list[Artifact]:
    """The trial's student, and the fine-tuned one. Nothing is left of one that is not worth going on with."""
    try:
        study.look(trial)  # that may have been decided when the trial's process was killed
        found = job.find_student()
        # as if it were trained now: who trained it changes nothing of the study
        for row in found.history if found else []:
            job.watch("student", row)
        student = distill(job)
    except (Pruned, Diverged):
        job.store.abandon("student", key_of(job.identity.student))
        raise
    return [student, finetune(job)] if job.config.finetune.epochs else [student]


def _watch(study: Study, trial: Trial, metric: str, what: str, row: dict[str, Any]) -> None:
    if what == "student" and len(study.directions) == 1:
        study.report(trial, row[f"validation_{metric}"], row["epoch"])


def _about(made: list[Artifact]) -> dict[str, Any]:
    return {
        "nll": made[-1].manifest["validation"]["nll"],
        "seconds": round(sum(artifact.manifest["seconds"] for artifact in made), 2),
        "epochs": made[0].manifest["epochs"],
        "artifact": str(made[-1].folder),
    }


def _cost(job: Job, against: str) -> float:
    """What using the trained student takes, measured as `kdistill eval` does, but on training images."""
    subject = subjects(job)[-1]
    if against in subject.facts:
        return float(subject.facts[against])
    images = job.first_images(BATCH_SIZE).to(job.engine.device)
    found = measure(subject.forward(), images, job.config.eval.runs)
    return found.latency_p50 if against == "latency" else float(found.flops or 0)
