"""Stage 5: judge what there is on the test split. Nothing else reads that split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kdistill.artifacts import Artifact
from kdistill.config.losses import MutualLoss
from kdistill.data import Split
from kdistill.loop import predict
from kdistill.records import Table
from kdistill.stages.job import Job
from kdistill.stages.signals import teacher_logits

BATCH_SIZE = 256


def evaluate(job: Job) -> dict[str, dict[str, Any]]:
    """Test metrics of the teachers, the distilled and the fine-tuned student, as far as they are there.

    Each is compared with what taught it. Raises `MissingArtifact` when the student is not distilled.
    """
    student = job.require_student()
    split = job.data.test.to(job.engine.device)
    scores, theirs = _teachers(job.chain[0], split)
    for number, step in enumerate(job.chain[:-1], 1):
        artifact = step.require_student()
        logits = _logits(step, artifact, split)
        scores[f"step {number}"] = _judged(job, logits, split, theirs, [artifact])
        theirs = logits
    found = {"student": student}
    if job.config.finetune.epochs and (finetuned := job.find_finetuned()) is not None:
        found["fine-tuned"] = finetuned
    for name, artifact in found.items():
        scores[name] = _judged(job, _logits(job, artifact, split), split, theirs, [artifact])
    return scores


def _teachers(job: Job, split: Split) -> tuple[dict[str, dict[str, Any]], Tensor | None]:
    """Scores of the teacher, of an ensemble's members before it, and the teacher's logits where there are some."""
    scores = {}
    found = {name: artifact for name, m in job.teachers.items() if (artifact := m.find_teacher()) is not None}
    theirs = teacher_logits(job, split, BATCH_SIZE)
    for name, artifact in found.items():
        if name and (logits := teacher_logits(job.teachers[name], split, BATCH_SIZE)) is not None:
            scores[f"teacher {name}"] = _judged(job, logits, split, theirs, [artifact])
    if theirs is not None:
        scores["teacher"] = _judged(job, theirs, split, theirs, list(found.values()))
    return scores, theirs


def _logits(job: Job, artifact: Artifact, split: Split) -> Tensor:
    engine = job.engine_for("teacher" if artifact.kind == "teacher" else "student")
    return predict(engine.spread(job.load(artifact)), split, BATCH_SIZE, engine)[0]


def _judged(
    job: Job, logits: Tensor, split: Split, theirs: Tensor | None, artifacts: Sequence[Artifact]
) -> dict[str, Any]:
    return {
        **job.task.summarise(logits, split.labels.cpu(), theirs),
        "images": len(logits),
        "parameters": sum(artifact.manifest["parameters"] for artifact in artifacts),
        "bytes": sum(artifact.payload_bytes for artifact in artifacts),
        "seconds": sum(artifact.manifest["seconds"] for artifact in artifacts),
        "artifact": ", ".join(str(artifact.folder) for artifact in artifacts),
    }


def table(job: Job, scores: dict[str, dict[str, Any]]) -> Table:
    """The scores for a reader: percent, counts and bytes in readable units."""
    columns = [c for c in job.task.columns if any(c.key in values for values in scores.values())]
    rows: list[list[object]] = [
        [
            _title(job, name),
            *(c.text(values[c.key]) if c.key in values else "-" for c in columns),
            f"{values['parameters']:,}" if values["parameters"] else "-",
            f"{values['bytes'] / 1000:,.1f}",
            f"{values['seconds']:.1f}",
        ]
        for name, values in scores.items()
    ]
    notes = [_NOTES[c.key] for c in columns if c.key in _NOTES]
    return Table(
        title=f"{job.config.dataset.name}: {max(values['images'] for values in scores.values()):,} test images",
        columns=["", *(c.heading for c in columns), "parameters", "file kB", "seconds"],
        rows=rows,
        note=". ".join([*notes, "seconds: training time"]),
    )


_NOTES = {
    "ece": "ECE: calibration error, 15 bins",
    "agreement": "agree: same class as the teacher",
    "map": "mAP: mean average precision",
}


def _title(job: Job, name: str) -> str:
    kind, _, which = name.partition(" ")
    student = job.config.student.name
    learnt = "distilled" if job.identity.needs_teacher else "labels only"
    if isinstance(job.config.loss, MutualLoss):
        learnt = "mutual learning"
    if kind == "teacher":
        return f"teacher {which or job.chain[0].config.teacher.name}"
    if kind == "step":
        return f"step {which}: {job.chain[int(which) - 1].config.student.name}, {learnt}"
    if kind == "student":
        return f"student {student}, {learnt}"
    return f"student {student}, fine-tuned"
