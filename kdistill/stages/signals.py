"""From teachers' artifacts to what the loop asks: a `TeacherSignal`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdistill.artifacts import Artifact
from kdistill.averaging import AverageOf
from kdistill.classes import ClassMap, class_map, same_classes
from kdistill.config.models import EnsembleParams
from kdistill.data import Split
from kdistill.errors import ConfigError
from kdistill.estimators import load_estimator
from kdistill.models import Classifier
from kdistill.models.folding import fold_batch_norm
from kdistill.models.fusing import fuse_relu
from kdistill.stages.job import Job, role_of
from kdistill.stored import Reader, layout_of
from kdistill.teachers import (
    MIXTURES,
    AveragedTeachers,
    EstimatorTeacher,
    Live,
    LiveTeacher,
    MappedTeacher,
    RescaledTeacher,
    StoredTeacher,
    TeacherSignal,
)

#: images that a network whose calls were rewritten is tried on
TRIED = 8


def teacher_signal(
    job: Job, parents: Mapping[str, Artifact], layers: Sequence[str] = ()
) -> TeacherSignal | None:
    """What the student's loss is told of the teacher; None where the student has none.

    `layers` of the teacher are tapped; then it must be one live network.
    """
    if not job.identity.needs_teacher:
        return None

    def one(name: str, member: Job) -> TeacherSignal:
        stored = parents.get(role_of("soft-targets", name))
        if stored is not None:
            layout = layout_of(stored.manifest)
            reader = Reader(stored.file(layout.file), layout, job.engine.device)
            signal: TeacherSignal = StoredTeacher(reader, MIXTURES[job.task.name])
        else:
            signal = live_teacher(member, parents[role_of("teacher", name)], layers)
        return mapped(signal, class_map_of(member, parents.get(role_of("teacher", name))))

    return combined(job, one)


def combined(job: Job, one: Callable[[str, Job], TeacherSignal]) -> TeacherSignal:
    """The signal of the teacher, or of an ensemble: `one(name, its job)` gives each member's."""
    signals = {name: one(name, member) for name, member in job.teachers.items()}
    if "" in signals:
        return signals[""]
    about = EnsembleParams.model_validate(job.config.teacher.params)
    weights = None if about.weights is None else [about.weights[name] for name in signals]
    # probabilities of classes exclude each other; other tasks' outputs are averaged as they are
    of: AverageOf = about.average if job.task.name == "classification" else "logits"
    return AveragedTeachers(list(signals.values()), weights, of)


def live_teacher(job: Job, artifact: Artifact, layers: Sequence[str] = ()) -> Live:
    """The teacher of a finished artifact, to be asked about images."""
    if job.previous is None and job.config.teacher.kind == "estimator":
        estimator = load_estimator(artifact.file("estimator.skops"))
        return EstimatorTeacher(estimator, len(job.data.classes), job.shown("teacher"), job.task.name)
    teacher = asked(job, job.load(artifact), layers)
    return _in_units_of(job, teacher, _about(artifact)) if job.task.name == "regression" else teacher


def asked(job: Job, network: Classifier, layers: Sequence[str] = ()) -> LiveTeacher:
    """A network that was placed, as a teacher to be asked about images and for its `layers`."""
    engine = job.engine_for("teacher")
    if not (layers or engine.compile or engine.shard):  # layers are wanted as they are
        images = job.first_images(TRIED)
        network = fold_batch_norm(network, images)
        if engine.device.type == "cpu":
            network = fuse_relu(network, images, engine.autocast)
    return LiveTeacher(engine.spread(network), job.config.soft_targets.batch_size, engine, layers=layers)


def _in_units_of(job: Job, teacher: Live, about: Mapping[str, Any]) -> Live:
    """A regression network that learnt values of another mean and spread, in this data's units."""
    theirs = [torch.tensor(about[name]) for name in ("target_mean", "target_std")]
    ours = [torch.tensor(given) for given in (job.data.target_mean, job.data.target_std)]
    if all(torch.allclose(a, b) for a, b in zip(theirs, ours, strict=True)):
        return teacher
    device = job.engine.device
    factor, offset = theirs[1] / ours[1], (theirs[0] - ours[0]) / ours[1]
    return RescaledTeacher(teacher, factor.to(device), offset.to(device))


def _about(artifact: Artifact) -> dict[str, Any]:
    """What `model.json` says of a teacher that is a network; nothing of any other."""
    if "model.json" not in artifact.manifest["files"]:
        return {}
    about: dict[str, Any] = json.loads(artifact.file("model.json").read_text())
    return about


def class_map_of(job: Job, artifact: Artifact | None) -> ClassMap:
    """Which of the teacher's classes are which of the student's; raises `ConfigError` where none fits."""
    classes = list(job.data.classes)
    explicit = (
        job.config.teacher.class_map if job.previous is None else None
    )  # a student has the data's classes
    about = _about(artifact) if artifact is not None else {}
    theirs = about.get("classes", classes)
    if about and about.get("task", "classification") != job.task.name:
        raise ConfigError(
            f"the teacher {artifact.folder if artifact else ''} was trained for"
            f" {about.get('task', 'classification')}, but {job.config.dataset.name} is for {job.task.name}"
        )
    if job.task.name != "classification":
        if theirs != classes or explicit:
            raise ConfigError(
                f"for {job.task.name} teacher and student need the same outputs, and no class_map;"
                f" the teacher has {', '.join(theirs[:4])}, the data {', '.join(classes[:4])}"
            )
        return same_classes(len(classes))
    return class_map(theirs, classes, explicit)


def count_outputs(job: Job, artifact: Artifact | None) -> int:
    """How many outputs the teacher has: one brought along may have other classes than the data."""
    about = _about(artifact) if artifact is not None else {}
    return len(about.get("classes", job.data.classes))


def speaks_of_all(job: Job) -> bool:
    """Whether the teacher is there, and can be asked about any image and every class: not a file of outputs."""
    found = [(member, member.find_teacher()) for member in job.teachers.values()]
    return all(artifact is not None and class_map_of(member, artifact).is_full for member, artifact in found)


def teacher_logits(job: Job, split: Split, batch_size: int) -> tuple[Tensor, Tensor]:
    """What the teacher, which `speaks_of_all`, says of a split at T=1, on the CPU.

    Logits `[n, K]` and positions int64 `[n]`, without samples that cannot be decoded.
    """

    def one(name: str, member: Job) -> TeacherSignal:
        artifact = member.require_teacher()
        return mapped(live_teacher(member, artifact), class_map_of(member, artifact))

    signal = combined(job, one)
    answers = [
        (signal(batch, 0, 1.0).logits.cpu(), batch.indices.cpu())
        for batch in split.batches(torch.arange(len(split)), batch_size)
    ]
    logits, indices = zip(*answers, strict=True)
    return torch.cat(logits), torch.cat(indices)


def mapped(signal: TeacherSignal, classes: ClassMap) -> TeacherSignal:
    """A signal of the teacher's classes as one of the student's."""
    return signal if classes.is_identity else MappedTeacher(signal, classes)
