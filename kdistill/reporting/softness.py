"""The figures of what a teacher says beyond the label: the classes it thinks alike, and how undecided it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdistill.artifacts import Artifact
from kdistill.predictions import Predictions
from kdistill.reporting import curves, heat
from kdistill.reporting.findings import Findings, parent
from kdistill.reporting.style import Drawn, label
from kdistill.stored import Reader, layout_of

TEMPERATURES = (1, 2, 3, 4, 6, 8, 12, 16)
#: samples that entropy is measured on
SAMPLES = 20_000


def temperature(findings: Findings) -> float | None:
    """The T of the loss; of one that changes, that at the start. None where there is none."""
    value: Any = (findings.config.get("loss") or {}).get("T")
    if isinstance(value, Mapping):
        value = value.get("start")
    return float(value) if isinstance(value, int | float) else None


def mean_probabilities(answers: Predictions, T: float) -> Tensor:
    """What a teacher gives each class at T, mean over the samples of each class: `[K, K]`, row the label.

    A class without samples has a row of zeros.
    """
    classes = answers.logits.shape[1]
    shares = (answers.logits.double() / T).softmax(dim=1)
    total = shares.new_zeros(classes, classes).index_add_(0, answers.labels, shares)
    return total / answers.labels.bincount(minlength=classes).clamp(min=1)[:, None]


def entropies(logits: Tensor, T: float) -> Tensor:
    """Entropy of the softmax of `logits / T`, in nats, for logits `[N, K]`: `[N]`."""
    logs = (logits.double() / T).log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def _knowledge(findings: Findings) -> Drawn:
    answers = _answers(findings)
    if answers is None:
        return
    T = temperature(findings) or 1.0
    mean = mean_probabilities(answers, T).numpy()
    other = mean - np.diag(np.diag(mean))
    row, column = np.unravel_index(other.argmax(), other.shape)
    pair = (
        f"on images of {label(answers.classes[row])} the teacher thinks of {label(answers.classes[column])}"
    )
    yield (
        f"At T = {T:g}, {pair} most, {100 * other[row, column]:.1f} %",
        heat.knowledge(mean, answers.classes),
    )


def _entropy(findings: Findings) -> Drawn:
    answers, stored = _answers(findings), _stored(findings)
    if answers is None:
        return
    logits, what = (answers.logits, "test images") if stored is None else (stored, "stored soft targets")
    shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    quantiles = torch.stack([entropies(logits, T).quantile(shares) for T in TEMPERATURES], dim=1).numpy()
    chosen = temperature(findings)
    at = f" at T = {chosen:g}" if chosen is not None else ""
    middle = entropies(logits, chosen or 1.0).median().item()
    most = math.log(logits.shape[1])
    title = f"{what}: half of them below {middle:.2g} nats{at}, of at most {most:.2g}; the band holds 80 %"
    yield title[0].upper() + title[1:], curves.entropy(TEMPERATURES, quantiles, most, chosen)


def _answers(findings: Findings) -> Predictions | None:
    """What the teacher says of the test split, where there is one class for each image."""
    if findings.task.name != "classification" or findings.teacher is None:
        return None
    return findings.teacher.answers


def _stored(findings: Findings) -> Tensor | None:
    """Logits of the first view that the student learnt from; None where they are not stored, or gone."""
    if findings.student is None or not findings.student.artifacts:
        return None
    student = Artifact(findings.student.artifacts[0])
    stored = parent(parent(student, "student") or student, "soft-targets")
    if stored is None or stored.is_damaged:
        return None
    layout = layout_of(stored.manifest)
    samples = torch.arange(min(SAMPLES, layout.shape[1]))
    return Reader(stored.folder / layout.file, layout, torch.device("cpu")).logits(0, samples)


SOFT_FIGURES: Mapping[str, Callable[[Findings], Drawn]] = {"knowledge": _knowledge, "entropy": _entropy}
