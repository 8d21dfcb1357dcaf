"""All stages in order, building what is missing."""

from __future__ import annotations

from kdistill.stages.evaluate import Evaluation, evaluate
from kdistill.stages.job import Job
from kdistill.stages.parts import parts_of, teaching


def run(job: Job) -> Evaluation:
    """Teacher training -> soft targets -> student training -> fine-tuning -> evaluation."""
    make(job)
    return evaluate(job)


def make(job: Job) -> None:
    """What `run` does but for the evaluation."""
    for part in parts_of(job):
        part.make()


def make_teachers(job: Job) -> None:
    """Train the teachers and store their soft targets.

    In a chain every step's student is distilled before it teaches the next one.
    """
    for part in teaching(job):
        part.make()
