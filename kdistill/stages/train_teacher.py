"""Stage 1: train the teacher on the labels."""

from __future__ import annotations

import logging
import time
from typing import Any, Literal

import torch

from kdistill.artifacts import Artifact, Work
from kdistill.errors import ConfigError
from kdistill.estimators import check_estimator, fit_estimator, require_skops, save_estimator
from kdistill.files import sync
from kdistill.identity import key_of
from kdistill.losses import Objective
from kdistill.stages.job import Job
from kdistill.stages.objectives import Lesson
from kdistill.stages.training import Course, train_network
from kdistill.teachers import EstimatorTeacher
from kdistill.training_data import TrainingData

log = logging.getLogger("kdistill")


def train_teacher(job: Job) -> Artifact:
    """Return the trained teacher, training it if it is not there yet.

    Of an ensemble each member is a job of its own (`job.teachers`). Raises `ConfigError` for a teacher that
    is brought along.
    """
    kind = job.config.teacher.kind
    if kind in ("folder", "file"):
        raise ConfigError(f"teacher.name={kind}: this teacher is brought along, there is nothing to train")
    parts = job.identity.teacher
    return job.store.obtain(
        "teacher",
        job.label("teacher"),
        parts,
        key_of(parts),
        lambda work: _fit(job, work) if kind == "estimator" else train_network(job, work, course(job)),
        force=job.forced("train-teacher"),
        together=kind != "estimator",
    )


def is_trainable(job: Job) -> bool:
    """Whether there is anything to train: a network or an estimator, not something brought along."""
    return job.previous is None and job.config.teacher.kind in ("network", "estimator")


def check_fit(job: Job) -> Literal["classification", "regression"]:
    """What an estimator is to learn; raises `ConfigError` where it cannot be the teacher."""
    name, task = job.config.teacher.name, job.data.task
    if task == "multilabel":
        raise ConfigError(f"{name} does not know several labels per image; choose a network as teacher")
    require_skops()
    check_estimator(name.partition("/")[2], job.config.teacher.params, task)
    return task


def course(job: Job) -> Course:
    """How a teacher that is a network is trained: on labels."""
    teacher = job.config.teacher
    data = TrainingData(
        split=job.data.train.to(job.engine.device), views=job.views(teacher.seed), order_seed=teacher.seed
    )
    objective = Objective(task=job.task, label_smoothing=teacher.label_smoothing)
    return Course("teacher", teacher, data, lambda network: Lesson(network, objective, network), "teacher")


def _fit(job: Job, work: Work) -> None:
    """Fit a scikit-learn estimator to the images as they are, without augmentation."""
    task = check_fit(job)
    teacher, clock = job.config.teacher, time.perf_counter()
    split = job.data.train
    order = torch.arange(len(split))
    (batch,) = split.batches(order, len(split))
    images = job.shown("teacher")(batch.images)
    name = teacher.name.partition("/")[2]
    log.info("teacher: fitting %s to %s images", name, f"{len(split):,}")
    estimator = fit_estimator(name, teacher.params, teacher.seed, images, batch.labels, task)
    save_estimator(estimator, work.folder / "estimator.skops")
    sync(work.folder)
    work.payload = "estimator.skops"
    work.about = _describe(job, round(time.perf_counter() - clock, 2))
    scored = EstimatorTeacher(estimator, len(job.data.classes), job.shown("teacher"), job.task.name)
    validation = job.data.validation
    (held_out,) = validation.batches(torch.arange(len(validation)), len(validation))
    work.about["validation"] = job.task.summarise(scored.logits(held_out.images), held_out.labels)
    log.info("teacher: val %s", job.task.line(work.about["validation"]))


def _describe(job: Job, seconds: float) -> dict[str, Any]:
    return {
        "model": job.config.teacher.name,
        "dataset": job.config.dataset.name,
        "classes": list(job.data.classes),
        "parameters": 0,
        "epochs": 0,
        "seconds": seconds,
        "command": job.command(job.config.stage),
    }
