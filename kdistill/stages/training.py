"""What training a teacher, a student and fine-tuning have in common: fit, save, describe."""

from __future__ import annotations

from typing import Any

from kdistill.artifacts import Artifact, Work
from kdistill.config.schema import Training
from kdistill.files import sync
from kdistill.loop import TrainingData, fit
from kdistill.losses import Objective
from kdistill.models import Classifier, save_weights, write_portable
from kdistill.stages.job import Job, Role
from kdistill.teachers import TeacherSignal


def train_network(
    job: Job,
    work: Work,
    role: Role,
    settings: Training,
    objective: Objective,
    data: TrainingData,
    *,
    title: str,
    start: Artifact | None = None,
    signal: TeacherSignal | None = None,
) -> None:
    """Train a new network, or the one of `start`, and put it into `work` with all that is needed to use it.

    All randomness of the run (initialisation, dropout) comes from the role's seed.
    """
    section = job.config.teacher if role == "teacher" else job.config.student
    with job.engine.seeded(data.order_seed):
        network = job.load(role, start) if start else job.build(role)
        fitted = fit(
            network,
            data,
            job.data.validation.to(job.engine.device),
            objective,
            settings,
            job.engine,
            signal=signal,
            checkpoint=work,
            judge_start=start is not None or section.weights is not None,
            title=title,
        )
    save_weights(network.net, work.folder / "model.safetensors")
    work.write_lines("metrics.jsonl", fitted.history)
    write_portable(
        work.folder,
        name=section.name,
        params=section.params,
        classes=job.data.classes,
        channels=job.data.channels,
        image_size=job.data.image_size,
        mean=network.mean.flatten().tolist(),
        std=network.std.flatten().tolist(),
    )
    sync(work.folder)
    work.payload = "model.safetensors"
    work.about = describe(job, role, network) | {
        "validation": fitted.scores,
        "epochs": len(fitted.history),
        "seconds": round(fitted.seconds, 2),
    }


def describe(job: Job, role: Role, network: Classifier) -> dict[str, Any]:
    """What a manifest says of a network, beyond what its key was computed from."""
    section = job.config.teacher if role == "teacher" else job.config.student
    return {
        "model": section.name,
        "parameters": sum(p.numel() for p in network.parameters()),
        "dataset": job.config.dataset.name,
        "classes": list(job.data.classes),
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "left_out": job.data.train.skipped + job.data.validation.skipped,  # corrupt images
        "device": str(job.engine.device),
        "command": job.command(job.config.stage),
    }
