"""What training a teacher, a student and fine-tuning have in common: fit, save, describe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kdistill.artifacts import Artifact, Work
from kdistill.config.schema import Training
from kdistill.files import sync
from kdistill.loop import TrainingData, fit
from kdistill.models import Classifier, reused_head_of, save_weights, write_portable
from kdistill.stages.job import Job, Role
from kdistill.stages.objectives import Lesson
from kdistill.teachers import TeacherSignal


def train_network(
    job: Job,
    work: Work,
    role: Role,
    settings: Training,
    prepare: Callable[[Classifier], Lesson],
    data: TrainingData,
    *,
    title: str,
    start: Artifact | None = None,
    signal: Callable[[Sequence[str]], TeacherSignal | None] = lambda layers: None,
) -> None:
    """Train a new network, or the one of `start`, and put it into `work` with all that is needed to use it.

    `prepare` says what a network is trained on, `signal` makes the teacher whose layers are tapped for that.
    All randomness of the run (initialisation, dropout) comes from the role's seed.
    """
    section = job.section(role)
    with job.engine.seeded(data.order_seed):
        network = job.load(start) if start else job.build(role)
        lesson = prepare(network)
        fitted = fit(
            lesson.network,
            data,
            job.data.validation.to(job.engine.device),
            lesson.objective,
            settings,
            job.engine,
            signal=signal(lesson.teacher_layers),
            checkpoint=work,
            judge_start=start is not None or section.weights is not None,
            title=title,
        )
    _save(job, work, role, lesson)
    work.write_lines("metrics.jsonl", fitted.history)
    sync(work.folder)
    work.payload = "model.safetensors"
    work.about = describe(job, role, lesson.student) | {
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
