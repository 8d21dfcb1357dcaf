"""Stage 5: judge what there is on the test split. Nothing else reads that split."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdistill import metrics
from kdistill.artifacts import Artifact
from kdistill.loop import predict
from kdistill.records import Table
from kdistill.stages.job import Job, Role

BATCH_SIZE = 256


def evaluate(job: Job) -> dict[str, dict[str, Any]]:
    """Test metrics of the teacher, the distilled and the fine-tuned student, as far as they are there.

    Raises `MissingArtifact` when the student is not distilled.
    """
    student = job.require_student()
    split = job.data.test.to(job.engine.device)
    teacher_logits: Tensor | None = None
    scores = {}
    for name, role, artifact in _candidates(job, student):
        logits, labels = predict(job.load(role, artifact), split, BATCH_SIZE, job.engine)
        if name == "teacher":
            teacher_logits = logits
        scores[name] = {
            **metrics.summarise(logits, labels, teacher_logits),
            "images": len(labels),
            "parameters": artifact.manifest["parameters"],
            "bytes": artifact.file("model.safetensors").stat().st_size,
            "seconds": artifact.manifest["seconds"],
            "artifact": str(artifact.folder),
        }
    return scores


def _candidates(job: Job, student: Artifact) -> list[tuple[str, Role, Artifact]]:
    """In the table's order: the teacher first, since the others are compared with it."""
    named: list[tuple[str, Role, Artifact | None]] = [
        ("teacher", "teacher", job.find_teacher()),
        ("student", "student", student),
        ("fine-tuned", "student", job.find_finetuned() if job.config.finetune.epochs else None),
    ]
    return [(name, role, artifact) for name, role, artifact in named if artifact is not None]


def table(job: Job, scores: dict[str, dict[str, Any]]) -> Table:
    """The scores for a reader: percent, counts and bytes in readable units."""
    rows: list[list[object]] = []
    titles = {
        "teacher": f"teacher {job.config.teacher.name}",
        "student": f"student {job.config.student.name}, "
        + ("distilled" if job.identity.needs_teacher else "labels only"),
        "fine-tuned": f"student {job.config.student.name}, fine-tuned",
    }
    for name, values in scores.items():
        rows.append(
            [
                titles[name],
                f"{100 * values['top1']:.2f}",
                f"{values['nll']:.4f}",
                f"{100 * values['ece']:.2f}",
                f"{100 * values['agreement']:.2f}" if "agreement" in values else "-",
                f"{values['parameters']:,}",
                f"{values['bytes'] / 1000:,.1f}",
                f"{values['seconds']:.1f}",
            ]
        )
    return Table(
        title=f"{job.config.dataset.name}: {max(values['images'] for values in scores.values()):,} test images",
        columns=["", "top-1 %", "NLL", "ECE %", "agree %", "parameters", "file kB", "seconds"],
        rows=rows,
        note="ECE: calibration error, 15 bins. agree: same class as the teacher. seconds: training time",
    )
