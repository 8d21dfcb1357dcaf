"""Stage 5: judge what there is on the test split. Nothing else reads that split."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill import ranks
from kdistill.artifacts import Artifact
from kdistill.files import storage_errors, write_bytes
from kdistill.footprint import BATCH_SIZE, measure
from kdistill.predictions import FILE, Predictions, read_predictions
from kdistill.records import Table
from kdistill.stages.job import Job
from kdistill.stages.predict import predict
from kdistill.stages.subjects import Subject, subjects

#: (predictions, their digest, device, precision, runs) -> what was measured: the jobs of a sweep share a teacher
_measured: dict[tuple[object, ...], dict[str, Any]] = {}


@dataclass(frozen=True)
class Evaluation:
    """What is known of each model, by its name; `titles` are for a reader, `path` is the JSON file."""

    scores: dict[str, dict[str, Any]]
    titles: dict[str, str]
    path: Path


def evaluate(job: Job) -> Evaluation:
    """Test metrics of the teachers, the distilled and the fine-tuned student, as far as they are there; or of `model`.

    Each is compared with what taught it. With `eval.cost` the models are timed, too. All of it is written to a JSON
    and a CSV file beside the last model's artifact; of `model`, beside its predictions. Raises `MissingArtifact` when
    the student is not distilled, and for `model` what `given_model` does.
    """
    found = subjects(job)
    kept = {subject.name: predict(subject) for subject in found}
    answers = {name: read_predictions(artifact.file(FILE)) for name, artifact in kept.items()}
    theirs = answers.get("teacher")
    scores = {}
    for subject in found:
        name = subject.name
        scores[name] = _judged(subject, kept[name], answers[name], theirs) | subject.facts
        if job.config.eval.cost and ranks.is_main():
            scores[name]["cost"] = _cost(subject, kept[name])
        if name.startswith("step"):
            theirs = answers[name]
    ranks.barrier()
    evaluation = Evaluation(scores, {s.name: s.title for s in found}, _place(found[-1], kept[found[-1].name]))
    if ranks.is_main():
        with storage_errors(job.store.root):
            _write(job, evaluation)
    return evaluation


def _judged(
    subject: Subject, artifact: Artifact, answers: Predictions, theirs: Predictions | None
) -> dict[str, Any]:
    task, logits, labels = subject.job.task, answers.logits, answers.labels
    temperature = artifact.manifest["temperature"]
    values: dict[str, Any] = dict(task.judge(logits, labels, theirs.logits if theirs else None, temperature))
    if temperature is not None:
        values["temperature"] = temperature
    by_class = task.by_class(logits, labels).tolist()
    values["by_class"] = {
        name: None if math.isnan(v) else v for name, v in zip(answers.classes, by_class, strict=True)
    }
    if task.confusion is not None:
        values["confusion"] = task.confusion(logits, labels).tolist()
    folders = [str(model.folder) for model in subject.artifacts.values()]
    return {
        **values,
        "images": len(logits),
        "artifact": ", ".join(folders) or str(subject.job.config.student.weights),
        "digests": [model.digest for model in subject.artifacts.values()],
        "predictions": str(artifact.folder),
    }


def _cost(subject: Subject, artifact: Artifact) -> dict[str, Any]:
    """What it takes to use the model, measured once in this process."""
    job = subject.job
    engine, runs = job.engine_for(subject.role), job.config.eval.runs
    case = artifact.folder.resolve(), artifact.digest, str(engine.device), engine.precision, runs
    if case not in _measured:
        _measured[case] = asdict(measure(subject.forward(), _test_images(job), runs))
        _measured[case]["precision"] = engine.precision
    return _measured[case]


def _test_images(job: Job) -> Tensor:
    split = job.data.test.to(job.engine.device)
    batches = split.batches(torch.arange(len(split)), BATCH_SIZE)
    return next(batch.images for batch in batches if len(batch))


# --- files ---


def _place(subject: Subject, predictions: Artifact) -> Path:
    """Beside what the store has of the model. Nothing is written to folders of the user's own."""
    artifact = predictions if subject.name == "model" else next(iter(subject.artifacts.values()))
    return artifact.beside("evaluation.json")


def _write(job: Job, evaluation: Evaluation) -> None:
    content = {
        "dataset": job.config.dataset.name,
        "task": job.task.name,
        "test": job.data.test_fingerprint,
        "command": job.command(job.config.stage),
        "models": {
            name: {"title": evaluation.titles[name], **_finite(values)}
            for name, values in evaluation.scores.items()
        },
    }
    text = json.dumps(content, indent=2, allow_nan=False)
    rows = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)  # a matrix: a line each
    write_bytes(evaluation.path, (rows + "\n").encode())
    _flat(evaluation).to_csv(evaluation.path.with_suffix(".csv"))


def _finite(value: Any) -> Any:
    """JSON has no nan and no infinity: they become null."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(evaluation: Evaluation) -> Table:
    """A line for each model, of all that is one value."""
    lines = [
        {"model": name, "title": evaluation.titles[name], **values, **values.get("cost", {})}
        for name, values in evaluation.scores.items()
    ]
    columns = [
        name
        for name in dict.fromkeys(key for line in lines for key in line)
        if not any(isinstance(line.get(name), dict | list) for line in lines)
    ]
    return Table("", columns, [[line.get(name, "") for name in columns] for line in lines])
