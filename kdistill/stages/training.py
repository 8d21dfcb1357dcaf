"""What training a teacher, a student and fine-tuning have in common: fit, save, describe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kdistill.artifacts import Work
from kdistill.config.schema import Training
from kdistill.files import sync
from kdistill.loop import fit
from kdistill.models import Classifier, reused_head_of, save_weights, write_portable
from kdistill.stages.job import Job, Role
from kdistill.stages.objectives import Lesson
from kdistill.teachers import TeacherSignal
from kdistill.training_data import TrainingData

log = logging.getLogger("kdistill")


@dataclass(frozen=True)
class Course:
    """How a stage trains its network: the one of `start`, or a new one.

    `prepare` says what a network is trained on, `signal` makes the teacher whose layers are tapped for that.
    """

    role: Role
    settings: Training
    data: TrainingData
    prepare: Callable[[Classifier], Lesson]
    title: str
    start: Callable[[], Classifier] | None = None
    signal: Callable[[Sequence[str]], TeacherSignal | None] = lambda layers: None

    def begin(self, job: Job) -> Lesson:
        return self.prepare(self.start() if self.start else job.build(self.role))

    def judges_start(self, job: Job) -> bool:
        """Whether the network that training starts from may be the one that is kept."""
        return self.start is not None or job.section(self.role).weights is not None


def train_network(job: Job, work: Work, course: Course) -> None:
    """Train a network and put it into `work` with all that is needed to use it.

    All randomness of the run (initialisation, dropout) comes from the role's seed.
    """
    engine = job.engine_for(course.role)
    if engine.precision != job.engine.precision:
        chosen = "%s: precision %s, as its size suits this CPU (device.precision=auto)"
        log.info(chosen, course.title, engine.precision)
    with job.engine.seeded(course.data.order_seed):
        lesson = course.begin(job)
        fitted = fit(
            lesson.network,
            course.data,
            job.data.validation.to(job.engine.device),
            lesson.objective,
            course.settings,
            engine,
            signal=course.signal(lesson.teacher_layers),
            checkpoint=work,
            judge_start=course.judges_start(job),
            title=course.title,
            on_epoch=partial(job.watch, course.title),
        )
    _save(job, work, course.role, lesson)
    work.write_lines("metrics.jsonl", fitted.history)
    sync(work.folder)
    work.payload = "model.safetensors"
    work.about = describe(job, course.role, lesson.student) | {
        "validation": fitted.scores,
        "epochs": len(fitted.history),
        "seconds": round(fitted.seconds, 2),
    }


def _save(job: Job, work: Work, role: Role, lesson: Lesson) -> None:
    """The network with what is needed to use it, and beside it what was trained with it."""
    section, network = job.section(role), lesson.student
    save_weights(network.net, work.folder / "model.safetensors")
    for name, module in lesson.apart.items():
        save_weights(module, work.folder / f"{name}.safetensors")
    channels, image_size = job.shown(role).shape(job.data.channels, job.data.image_size)
    write_portable(
        work.folder,
        name=section.name,
        params=section.params,
        classes=job.data.classes,
        channels=channels,
        image_size=image_size,
        mean=network.mean.flatten().tolist(),
        std=network.std.flatten().tolist(),
        reused_head=reused_head_of(network),
        task=job.task.name,  # type: ignore[arg-type]
        input="image" if job.data.is_images else "vector",
        source_size=job.data.image_size,
        source_channels=job.data.channels,
        target_mean=job.data.target_mean,
        target_std=job.data.target_std,
    )


def describe(job: Job, role: Role, network: Classifier) -> dict[str, Any]:
    """What a manifest says of a network, beyond what its key was computed from."""
    return {
        "model": job.section(role).name,
        "parameters": sum(p.numel() for p in network.parameters()),
        "dataset": job.config.dataset.name,
        "classes": list(job.data.classes),
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "left_out": job.data.train.skipped + job.data.validation.skipped,  # corrupt images
        "device": str(job.engine.device),
        "processes": job.config.device.processes,
        "command": job.command(job.config.stage),
    }
