"""Stage 1: train the teacher on the labels."""

from __future__ import annotations

from kdistill.artifacts import Artifact, Work
from kdistill.identity import key_of
from kdistill.loop import TrainingData
from kdistill.losses import Objective
from kdistill.stages.job import Job
from kdistill.stages.training import train_network


def train_teacher(job: Job) -> Artifact:
    """Return the trained teacher, training it if it is not there yet."""
    parts = job.identity.teacher
    return job.store.obtain(
        "teacher",
        job.label("teacher"),
        parts,
        key_of(parts),
        lambda work: _train(job, work),
        force=job.forced("train-teacher"),
    )


def _train(job: Job, work: Work) -> None:
    teacher = job.config.teacher
    data = TrainingData(
        split=job.data.train.to(job.engine.device), views=job.views(teacher.seed), order_seed=teacher.seed
    )
    objective = Objective(label_smoothing=teacher.label_smoothing)
    train_network(job, work, "teacher", teacher, objective, data, title="teacher")
