"""Stage 3: train the student on what the teacher says, and on the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdistill.artifacts import Artifact
from kdistill.data import Mixing
from kdistill.identity import key_of
from kdistill.models import Classifier
from kdistill.stages.checks import check_method
from kdistill.stages.job import Job, role_of
from kdistill.stages.objectives import prepare
from kdistill.stages.signals import teacher_signal
from kdistill.stages.soft_targets import make_soft_targets
from kdistill.stages.training import Course, train_network
from kdistill.teachers import TeacherSignal
from kdistill.training_data import TrainingData


def distill(job: Job) -> Artifact:
    """Return the distilled student, training it if it is not there yet.

    Missing soft targets are made on the way. Raises `MissingArtifact` when the teacher is not trained.
    """
    found = job.find_student()
    if found and not job.forced("distill"):
        return found
    check_method(job)
    parents = _parents(job)
    parts = job.identity.student
    return job.store.obtain(
        "student",
        job.label("student"),
        parts,
        key_of(parts),
        lambda work: train_network(job, work, _course(job, parents)),
        parents=parents,
        force=job.forced("distill"),
        together=True,
    )


def _parents(job: Job) -> dict[str, Artifact]:
    """What the student learns from: nothing but labels, live teachers, or their stored soft targets."""
    parents: dict[str, Artifact] = {}
    if not job.identity.needs_teacher:
        return parents
    asked = {name: teacher for name, teacher in job.teachers.items() if not teacher.identity.is_file}
    parents |= {role_of("teacher", name): teacher.require_teacher() for name, teacher in asked.items()}
    for name, teacher in job.teachers.items():
        if teacher.identity.stored:
            parents[role_of("soft-targets", name)] = make_soft_targets(teacher)
    return parents


def _course(job: Job, parents: dict[str, Artifact]) -> Course:
    return course(
        job, lambda: job.load(parents["teacher"]), lambda layers: teacher_signal(job, parents, layers)
    )


def course(
    job: Job,
    teacher: Callable[[], Classifier],
    signal: Callable[[Sequence[str]], TeacherSignal | None],
) -> Course:
    """How a student is trained: `teacher` gives the network whose features it imitates, where it does."""
    student, mixing = job.config.student, job.config.mixing
    data = TrainingData(
        split=job.transfer_set.to(job.engine.device),
        views=job.student_views,
        order_seed=student.seed,
        distinct_views=job.identity.views,
        teacher_views=job.teacher_views if job.teacher_views != job.student_views else None,
        mixing=None
        if mixing.kind == "none"
        else Mixing(mixing.kind, mixing.concentration, job.config.soft_targets.seed),
        classes=len(job.data.classes),
    )
    return Course(
        "student",
        student,
        data,
        lambda network: prepare(job, network, teacher),
        "student",
        signal=signal,
    )
