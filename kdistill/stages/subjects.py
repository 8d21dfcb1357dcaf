"""What is judged: the teachers, the students of a chain, the fine-tuned one; or a model that the user brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from kdistill.artifacts import Artifact
from kdistill.config.losses import MutualLoss
from kdistill.data import Split
from kdistill.engine import Engine
from kdistill.errors import ConfigError, ModelError
from kdistill.files import sha256_of
from kdistill.footprint import Forward
from kdistill.loop import predict_rows
from kdistill.models import Classifier
from kdistill.stages.given import Role, existing
from kdistill.stages.job import Job, role_of
from kdistill.stages.signals import class_map_of, live_teacher, speaks_of_all, teacher_logits

BATCH_SIZE = 256


@dataclass(frozen=True)
class Subject:
    """A model to be judged."""

    name: str
    """In results: `teacher NAME` (of an ensemble), `teacher`, `step N`, `student`, `fine-tuned`, `model`."""
    title: str
    """The same for a reader."""
    label: str
    """For the reader of a folder's name."""
    job: Job
    role: Role
    made_from: dict[str, Any]
    """What its key is computed from."""
    artifacts: Mapping[str, Artifact]
    """Role -> the artifacts that it consists of; none of a file of weights."""
    rows: Callable[[Split], tuple[Tensor, Tensor]]
    """Logits `[n, K]` and positions `[n]` of the samples of a split that can be read, on the CPU."""
    forward: Callable[[], Forward]
    """The model itself, as it would be used."""
    facts: dict[str, Any]
    """`parameters`, `bytes` and, where it is known, `seconds` of its training."""


def subjects(job: Job) -> list[Subject]:
    """All that there is to judge, in the order of its making: a student comes after what taught it.

    Raises `MissingArtifact` when the student is not distilled, and for `model` what `given_model` does.
    """
    if job.config.model is not None:
        return [*_teachers(job.chain[0]), given_model(job)]
    job.require_student()
    steps = [
        _student(step, f"step {number}", f"step {number}: {step.config.student.name}, {_learnt(step)}")
        for number, step in enumerate(job.chain[:-1], 1)
    ]
    name = job.config.student.name
    found = [*_teachers(job.chain[0]), *steps, _student(job, "student", f"student {name}, {_learnt(job)}")]
    if job.config.finetune.epochs and (finetuned := job.find_finetuned()) is not None:
        title = f"student {name}, fine-tuned"
        found.append(_network(job, "fine-tuned", title, finetuned, job.identity.finetuned))
    return found


def given_model(job: Job) -> Subject:
    """The user's own model, of `model=PATH`.

    Raises `ModelError` where there is none, or its weights do not fit, and `ConfigError` for other classes.
    """
    path = existing(str(job.config.model), "model", "model")
    return _folder(job, path) if path.is_dir() else _weights(job, path)


# --- teachers ---


def _teachers(job: Job) -> list[Subject]:
    """The members of an ensemble, and the teacher as a whole, as far as they are there and know all classes."""
    found = []
    for name, member in job.teachers.items():
        if name and speaks_of_all(member):
            found.append(_teacher(member, f"teacher {name}", f"teacher {name}"))
    if speaks_of_all(job):
        found.append(_teacher(job, "teacher", f"teacher {job.config.teacher.name}"))
    return found


def _teacher(job: Job, name: str, title: str) -> Subject:
    members = {n: member.require_teacher() for n, member in job.teachers.items()}

    def forward() -> Forward:
        runs = [_forward(job.teachers[n], artifact, "teacher") for n, artifact in members.items()]
        return runs[0] if len(runs) == 1 else lambda images: [run(images) for run in runs]

    return Subject(
        name=name,
        title=title,
        label=job.label("teacher"),
        job=job,
        role="teacher",
        made_from=job.identity.teacher,
        artifacts={role_of("teacher", n): artifact for n, artifact in members.items()},
        rows=lambda split: teacher_logits(job, split, BATCH_SIZE),
        forward=forward,
        facts=_facts(list(members.values())),
    )


# --- students ---


def _student(job: Job, name: str, title: str) -> Subject:
    return _network(job, name, title, job.require_student(), job.identity.student)


def _network(job: Job, name: str, title: str, artifact: Artifact, parts: dict[str, Any]) -> Subject:
    def rows(split: Split) -> tuple[Tensor, Tensor]:
        network = job.engine.spread(job.load(artifact))
        return predict_rows(network, split, BATCH_SIZE, job.engine_for("student"))

    return Subject(
        name=name,
        title=title,
        label=job.label("student"),
        job=job,
        role="student",
        made_from=parts,
        artifacts={artifact.kind: artifact},
        rows=rows,
        forward=lambda: _forward(job, artifact, "student"),
        facts=_facts([artifact]),
    )


def _learnt(job: Job) -> str:
    if isinstance(job.config.loss, MutualLoss):
        return "mutual learning"
    return "distilled" if job.identity.needs_teacher else "labels only"


# --- the user's own ---


def _weights(job: Job, path: Path) -> Subject:
    """A file of weights, for a network as the `student` section says."""
    section = job.config.student.model_copy(update={"weights": str(path)})
    own = Job(job.config.model_copy(update={"student": section, "model": None}), job.overrides)

    def build() -> Classifier:
        with own.engine.seeded(0):  # building draws random numbers; the caller's are not touched
            return own.build("student").eval()

    try:
        network = build()
    except ModelError as ex:
        raise ModelError(
            f"{ex}\nmodel={job.config.model} is taken for a {section.name}:"
            " student=NAME and student.params choose another"
        ) from ex
    parts = section.model_dump(mode="json", include={"name", "params", "mean", "std", "input"})
    return Subject(
        name="model",
        title=f"model {path.name}",
        label=own.label("student"),
        job=own,
        role="student",
        made_from={**parts, "weights": sha256_of(path)},
        artifacts={},
        rows=lambda split: predict_rows(
            own.engine.spread(build()), split, BATCH_SIZE, own.engine_for("student")
        ),
        forward=lambda: _run(own, network, "student"),
        facts={"parameters": sum(p.numel() for p in network.parameters()), "bytes": path.stat().st_size},
    )


def _folder(job: Job, path: Path) -> Subject:
    """The folder of a trained network: what it is, and its classes, are said there. It is asked as a teacher is."""
    section = job.config.teacher.model_copy(
        update={"name": "folder", "params": {}, "weights": str(path), "class_map": None}
    )
    own = Job(job.config.model_copy(update={"teacher": section, "model": None}), job.overrides)
    artifact = own.require_teacher()
    own.load(artifact)  # refused here if there is no network, or none for such images
    theirs, ours = artifact.manifest["classes"], job.data.classes
    if missing := [name for name in ours if name not in theirs]:
        raise ConfigError(
            f"model={job.config.model} was not trained for {len(missing)} of the {len(ours)} classes of"
            f" {job.config.dataset.name}: {', '.join(map(repr, missing[:3]))}{', ...' * (len(missing) > 3)}."
            f" It has {', '.join(map(repr, theirs[:3]))}{', ...' * (len(theirs) > 3)}"
        )
    class_map_of(own, artifact)  # refused here if it is for another task
    return _teacher(own, "model", f"model {artifact.manifest.get('model', path.name)}")


# --- shared ---


def _facts(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    return {
        "parameters": sum(artifact.manifest["parameters"] for artifact in artifacts),
        "bytes": sum(artifact.payload_bytes for artifact in artifacts),
        "seconds": sum(artifact.manifest["seconds"] for artifact in artifacts),
    }


def _forward(job: Job, artifact: Artifact, role: Role) -> Forward:
    if "model.json" not in artifact.manifest["files"]:
        return live_teacher(job, artifact).logits  # an estimator
    return _run(job, job.load(artifact).eval(), role)


def _run(job: Job, network: Classifier, role: Role) -> Forward:
    return partial(_with_precision, job.engine_for(role), network)


def _with_precision(engine: Engine, network: Classifier, images: Tensor) -> Tensor:
    with engine.autocast():
        logits: Tensor = network(images)
    return logits
