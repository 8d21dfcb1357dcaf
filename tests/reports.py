"""What reports are made of, for tests: finished runs that nobody trained, comparisons and studies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill.artifacts import Artifact, ArtifactStore
from kdistill.files import write_json
from kdistill.partial import Work
from kdistill.predictions import FILE, Predictions
from kdistill.tasks import task_of

#: names that a page must survive
HOSTILE = (
    "<script>alert(1)</script>",
    "\"&' onload=alert(1)",
    "x" * 300,
    "Größe 猫 \u202e$\\frac{",
    "a\nb\x00",
)


def make_run(
    runs: Path,
    task: str = "classification",
    classes: Sequence[str] = ("cat", "dog", "eel"),
    name: str = "2026-01-01",
) -> Path:
    """A finished `kdistill run` in `runs`: a teacher that is mostly right and a student that is so less often."""
    store, generator = ArtifactStore(runs / "artifacts"), torch.Generator().manual_seed(0)
    labels, truth = _labels(task, len(classes), generator)
    teacher = _network(store, "teacher", task, 40_000, 0.9, {})
    student = _network(store, "student", task, 1_000, 0.8, {"teacher": teacher})
    models, theirs = {}, None
    for role, artifact, noise in (("teacher", teacher, 0.6), ("student", student, 1.8)):
        logits = 3 * truth + noise * torch.randn(truth.shape, generator=generator)
        answers = Predictions(logits, labels, [f"{i}.png" for i in range(len(labels))], list(classes))
        theirs = logits if theirs is None else theirs
        models[role] = _judged(store, role, artifact, answers, theirs, task)
    about = {"dataset": "animals", "task": task, "command": "kdistill run", "models": models}
    write_json(student.beside("evaluation.json"), about)
    folder = runs / "run" / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- stage=run\n")
    artifacts = {"teacher": str(teacher.folder), "student": str(student.folder)}
    objective = student.manifest["validation"][task_of(task).headline]
    result = {
        "status": "ok",
        "job": None,
        "overrides": [],
        "objective": objective,
        "row": {},
        "artifacts": artifacts,
    }
    write_json(folder / "result.json", result)
    return folder


def _labels(task: str, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels of 40 samples, and what a perfect model would say of them in [-1, 1]."""
    if task == "classification":
        labels = torch.arange(40) % classes
        return labels, 2 * torch.nn.functional.one_hot(labels, classes).float() - 1
    if task == "multilabel":
        several = torch.randint(0, 2, (40, classes), generator=generator).float()
        return several, 2 * several - 1
    values = torch.randn(40, classes, generator=generator)
    return values, values / 3


def _network(
    store: ArtifactStore, kind: str, task: str, parameters: int, score: float, parents: Mapping[str, Artifact]
) -> Artifact:
    headline = task_of(task).headline

    def make(work: Work) -> None:
        rows = [
            {
                "epoch": e,
                "loss": 1 / e,
                "hard": 0.1 / e,
                "soft": 0.9 / e,
                f"validation_{headline}": score * e / 3,
            }
            for e in (1, 2, 3)
        ]
        work.write_lines("metrics.jsonl", rows)
        (work.folder / "weights").write_text(f"{kind} {task}")
        work.payload = "weights"
        work.about = {
            "model": "cnn",
            "dataset": "animals",
            "parameters": parameters,
            "epochs": 3,
            "seconds": 1.5,
        }
        work.about |= {"validation": {headline: score, "nll": 0.5}, "command": "kdistill run"}

    return store.obtain(kind, "cnn", {}, f"{task[:5]}{kind[:5]}", make, parents=parents)


def _judged(
    store: ArtifactStore, role: str, artifact: Artifact, answers: Predictions, theirs: Tensor, task: str
) -> dict[str, Any]:
    def make(work: Work) -> None:
        answers.save(work.folder / FILE)
        work.payload = FILE

    kept = store.obtain("predictions", "cnn", {}, f"{task[:5]}{role[:4]}", make, parents={role: artifact})
    scores = task_of(task).judge(answers.logits, answers.labels, theirs)
    return {
        "title": f"{role} cnn",
        **{name: value if math.isfinite(value) else None for name, value in scores.items()},
        "artifact": str(artifact.folder),
        "predictions": str(kept.folder),
        "parameters": artifact.manifest["parameters"],
        "bytes": 4 * artifact.manifest["parameters"],
        "seconds": 1.5,
        "cost": {"latency_p50": artifact.manifest["parameters"] / 1e8, "throughput": 1e4},
    }


def make_comparison(runs: Path, classes: Sequence[str] = ("cat", "dog", "eel"), variant: str = "kd") -> Path:
    """A comparison of three variants with a control, over two seeds, whose models are those of `make_run`."""
    made = json.loads((make_run(runs, classes=classes) / "result.json").read_text())["artifacts"]
    teacher, student = (
        str(runs / "artifacts" / "predictions" / f"cnn-class{role}") for role in ("teac", "stud")
    )
    own = {
        "words": [],
        "std": 0.01,
        "seconds": 1.0,
        "parameters": 1_000,
        "predictions": [student, student],
        "artifacts": [made["student"], made["student"]],
    }
    better = {"difference": 0.012, "low": 0.008, "high": 0.016, "verdict": "BEATS", "gap_closed": 0.4}
    worse = {"difference": -0.02, "low": -0.031, "high": -0.009, "verdict": "WORSE", "gap_closed": None}
    same = {"difference": 0.001, "low": -0.002, "high": 0.004, "verdict": "NO DIFFERENCE", "gap_closed": 0.02}
    folder = runs / "compare" / "2026-01-02"
    folder.mkdir(parents=True)
    content = {
        "dataset": "animals",
        "task": "classification",
        "metric": "top1",
        "higher_is_better": True,
        "confidence": 0.95,
        "command": "kdistill compare loss=kd,at",
        "seeds": [0, 1],
        "test_images": 40,
        "teacher": {
            "title": "teacher cnn",
            "score": 0.9,
            "seconds": 9.0,
            "parameters": 40_000,
            "predictions": teacher,
        },
        "control": {**own, "title": "labels only", "scores": [0.8, 0.81], "mean": 0.805},
        "variants": {
            variant: {**own, **better, "title": variant, "scores": [0.81, 0.824], "mean": 0.817},
            "at": {**own, **worse, "title": "at", "scores": [0.78, 0.79], "mean": 0.785},
            "sp": {**own, **same, "title": "sp", "scores": [0.80, 0.812], "mean": 0.806},
        },
    }
    write_json(folder / "comparison.json", content)
    return folder


def make_study(runs: Path, front: bool = False) -> Path:
    """A study of four trials, one of them pruned; its final model is that of `make_run`."""
    student = json.loads((make_run(runs) / "result.json").read_text())["artifacts"]["student"]
    metrics = ["top1", "parameters"] if front else ["top1"]
    chosen = [
        ({"loss.T": 2.0, "student.optim": "sgd"}, 0.8),
        ({"loss.T": 8.0, "student.optim": "adamw"}, 0.9),
    ]
    chosen += [({"loss.T": 4.0, "student.optim": "sgd"}, 0.85)]
    trials: list[dict[str, Any]] = [
        {
            "number": number,
            "state": "COMPLETE",
            "values": [score, 1_000 * (number + 1)][: len(metrics)],
            "params": params,
            "words": [f"{key}={value}" for key, value in params.items()],
            "seconds": 2.0,
            "epochs": 3,
            "artifact": None,
        }
        for number, (params, score) in enumerate(chosen)
    ]
    pruned = {
        "number": 3,
        "state": "PRUNED",
        "values": None,
        "params": {"loss.T": 1.0},
        "words": ["loss.T=1.0"],
    }
    trials.append(pruned | {"seconds": 0.5, "epochs": 1, "artifact": None})
    final = {"words": ["loss.T=8.0"], "scores": {"top1": 0.875}, "artifact": student}
    final["evaluation"] = f"{student}.evaluation.json"
    folder = runs / "studies" / "first"
    folder.mkdir(parents=True)
    content = {
        "name": "first",
        "dataset": "animals",
        "task": "classification",
        "command": "kdistill tune",
        "metrics": metrics,
        "directions": ["maximize", "minimize"][: len(metrics)],
        "search": {"loss.T": "1 to 8", "student.optim": "sgd, adamw"},
        "trials": trials,
        "importance": {"loss.T": 0.7, "student.optim": 0.3},
        "best": None if front else 1,
        "front": [0, 1] if front else None,
        "final": final,
    }
    write_json(folder / "study.json", content)
    return folder
