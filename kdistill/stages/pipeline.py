"""All stages in order, building what is missing."""

from __future__ import annotations

from kdistill.stages.distill import distill
from kdistill.stages.evaluate import Evaluation, evaluate
from kdistill.stages.finetune import finetune
from kdistill.stages.job import Job
from kdistill.stages.soft_targets import make_soft_targets
from kdistill.stages.train_teacher import is_trainable, train_teacher


def run(job: Job) -> Evaluation:
    """Teacher training -> soft targets -> student training -> fine-tuning -> evaluation."""
    make(job)
    return evaluate(job)


def make(job: Job) -> None:
    """What `run` does but for the evaluation."""
    make_teachers(job)
    distill(job)
    if job.config.finetune.epochs:
        finetune(job)


def make_teachers(job: Job) -> None:
    """Train the teachers and store their soft targets.

    In a chain every step's student is distilled before it teaches the next one.
    """
    for step in job.chain:
        for teacher in step.teachers.values():
            # also for a student that learns from labels alone: the table compares with it
            if is_trainable(teacher):
                train_teacher(teacher)
            if teacher.identity.needs_teacher and teacher.identity.stored:
                make_soft_targets(teacher)
        if step is not job:
            distill(step)
