"""Stage 4: fine-tune the distilled student on the labels, with a smaller learning rate."""

from __future__ import annotations

from collections.abc import Callable

from kdistill.artifacts import Artifact
from kdistill.config.schema import Finetune
from kdistill.errors import ConfigError
from kdistill.identity import key_of
from kdistill.losses import Objective
from kdistill.models import Classifier
from kdistill.stages.job import Job
from kdistill.stages.objectives import Lesson
from kdistill.stages.training import Course, train_network
from kdistill.training_data import TrainingData


def finetune(job: Job) -> Artifact:
    """Return the fine-tuned student; raises `MissingArtifact` when the student is not distilled."""
    check_epochs(job.config.finetune)
    student = job.require_student()
    parts = job.identity.finetuned
    return job.store.obtain(
        "finetuned",
        job.label("student"),
        parts,
        key_of(parts),
        lambda work: train_network(job, work, course(job, lambda: job.load(student))),
        parents={"student": student},
        force=job.forced("finetune"),
        together=True,
    )


def course(job: Job, student: Callable[[], Classifier]) -> Course:
    """How the network of `student` is trained on."""
    data = TrainingData(
        split=job.data.train.to(job.engine.device),
        views=job.student_views,
        order_seed=job.config.student.seed,
        first_epoch=job.config.student.epochs,
    )
    settings = job.config.finetune
    objective = Objective(task=job.task, label_smoothing=settings.label_smoothing)
    return Course(
        "student",
        settings,
        data,
        lambda network: Lesson(network, objective, network),
        "fine-tuning",
        start=student,
    )


def check_epochs(settings: Finetune) -> None:
    """Raise `ConfigError` when there is nothing to do."""
    if settings.epochs == 0:
        raise ConfigError(
            "finetune.epochs=0: there is nothing to fine-tune; set finetune.epochs, for example finetune.epochs=5"
        )
