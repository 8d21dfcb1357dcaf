"""The artifacts of a run in the order in which they are made: `run` makes them, `kdistill plan` says what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from kdistill.artifacts import Artifact
from kdistill.identity import key_of
from kdistill.stages.distill import distill
from kdistill.stages.finetune import finetune
from kdistill.stages.job import Job
from kdistill.stages.soft_targets import make_soft_targets
from kdistill.stages.train_teacher import is_trainable, train_teacher

Kind = Literal["teacher", "soft-targets", "student", "finetuned"]
MAKERS: dict[Kind, Callable[[Job], Artifact]] = {
    "teacher": train_teacher,
    "soft-targets": make_soft_targets,
    "student": distill,
    "finetuned": finetune,
}


@dataclass(frozen=True)
class Part:
    """One artifact of a run."""

    kind: Kind
    job: Job

    @property
    def model(self) -> str:
        """The network's name; of soft targets, that of who teaches."""
        config, previous = self.job.config, self.job.previous
        if self.kind in ("student", "finetuned"):
            return config.student.name
        return previous.config.student.name if previous else config.teacher.name

    @cached_property
    def key(self) -> str:
        identity = self.job.identity
        parts = {
            "teacher": lambda: identity.teacher,
            "soft-targets": lambda: identity.soft_targets,
            "student": lambda: identity.student,
            "finetuned": lambda: identity.finetuned,
        }
        return key_of(parts[self.kind]())

    @cached_property
    def found(self) -> Artifact | None:
        """The artifact that is there and will be used, None where one will be made."""
        job = self.job
        if job.config.force:
            return None
        if self.kind == "soft-targets":
            teacher = job.find_teacher()
            return job.find_soft_targets({"teacher": teacher} if teacher else {})
        find = {"teacher": job.find_teacher, "student": job.find_student, "finetuned": job.find_finetuned}
        return find[self.kind]()

    def make(self) -> Artifact:
        """Return the artifact, making it if it is not there yet. What it is made from must be there."""
        return MAKERS[self.kind](self.job)


def parts_of(job: Job) -> Iterator[Part]:
    """All artifacts of a run."""
    yield from teaching(job)
    yield Part("student", job)
    if job.config.finetune.epochs:
        yield Part("finetuned", job)


def teaching(job: Job) -> Iterator[Part]:
    """What there must be before the student is distilled: in a chain also the students of the steps before."""
    for step in job.chain:
        for teacher in step.teachers.values():
            # also for a student that learns from labels alone: the table compares with it
            if is_trainable(teacher):
                yield Part("teacher", teacher)
            if teacher.identity.needs_teacher and teacher.identity.stored:
                yield Part("soft-targets", teacher)
        if step is not job:
            yield Part("student", step)
