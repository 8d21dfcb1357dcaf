"""Stage 3: train the student on the teacher's soft targets and the labels."""

from __future__ import annotations

from kdistill.artifacts import Artifact, Work
from kdistill.identity import key_of
from kdistill.loop import TrainingData
from kdistill.losses import build_objective
from kdistill.stages.job import Job
from kdistill.stages.soft_targets import make_soft_targets
from kdistill.stages.training import train_network
from kdistill.teachers import LiveTeacher, StoredTeacher, TeacherSignal


def distill(job: Job) -> Artifact:
    """Return the distilled student, training it if it is not there yet.

    Missing soft targets are made on the way. Raises `MissingArtifact` when the teacher is not trained.
    """
    found = job.find_student()
    if found and not job.forced("distill"):
        return found
    parents = _parents(job)
    parts = job.identity.student
    return job.store.obtain(
        "student",
        job.label("student"),
        parts,
        key_of(parts),
        lambda work: _train(job, parents, work),
        parents=parents,
        force=job.forced("distill"),
    )


def _parents(job: Job) -> dict[str, Artifact]:
    """What the student learns from: nothing but labels, the live teacher, or its stored soft targets."""
    if not job.identity.needs_teacher:
        return {}
    parents = {"teacher": job.require_teacher()}
    if job.identity.stored:
        parents["soft-targets"] = make_soft_targets(job)
    return parents


def _train(job: Job, parents: dict[str, Artifact], work: Work) -> None:
    student = job.config.student
    data = TrainingData(
        split=job.data.train.to(job.engine.device),
        views=job.student_views,
        order_seed=student.seed,
        distinct_views=job.identity.views,
    )
    objective = build_objective(job.config.loss, student.label_smoothing)
    signal = _teacher_signal(job, parents)
    train_network(job, work, "student", student, objective, data, signal=signal, title="student")


def _teacher_signal(job: Job, parents: dict[str, Artifact]) -> TeacherSignal | None:
    if "soft-targets" in parents:
        return StoredTeacher(parents["soft-targets"].file("logits.npy"), job.engine.device)
    if "teacher" in parents:
        network = job.load("teacher", parents["teacher"])
        return LiveTeacher(network, job.config.soft_targets.batch_size, job.engine)
    return None
