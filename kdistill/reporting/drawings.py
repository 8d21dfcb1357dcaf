"""The figures of findings: what each needs is looked up, drawn, and given a title that says what is to be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from kdistill.metrics.calibration import calibration_gap
from kdistill.reporting import curves, heat, points
from kdistill.reporting.catalogue import FIGURES
from kdistill.reporting.findings import Findings, Group, Model
from kdistill.reporting.searches import SEARCH_FIGURES
from kdistill.reporting.softness import SOFT_FIGURES
from kdistill.reporting.style import Drawing, Drawn, label

#: groups that are drawn at most, classes of each kind, samples of a regression, values of one
GROUPS, CLASSES, SAMPLES, VALUES = 24, 10, 400, 4


def draw(name: str, findings: Findings) -> list[Drawing]:
    """The drawings of a figure of the catalogue: none where it does not apply."""
    found = list(DRAWERS[name](findings))
    only = len(found) == 1
    return [
        Drawing(name if only else f"{name}-{number}", title, f"{FIGURES[name]}: {title}", figure)
        for number, (title, figure) in enumerate(found, 1)
    ]


# --- scores ---


def _differences(findings: Findings) -> Drawn:
    if findings.kind != "comparison":
        return
    scale = findings.metric.scale
    rows = [
        points.Difference(name, scale * v["difference"], scale * v["low"], scale * v["high"], v["verdict"])
        for name, v in findings.about["variants"].items()
    ]
    shown = sum(row.verdict != "NO DIFFERENCE" for row in rows)
    unit = f"points of {findings.metric.name}" if findings.metric.unit else findings.metric.name
    yield f"{shown} of {len(rows)} variants differ from the control", points.differences(rows, unit)


def _scores(findings: Findings) -> Drawn:
    groups, metric = _ranked(findings), findings.metric
    if findings.kind not in ("sweep", "comparison") or len(groups) < 2:
        return
    if findings.kind == "sweep":
        groups.sort(key=lambda group: -group.mean(metric))
    rows = [(group.label, [metric.scale * s for s in group.scores(metric)]) for group in groups[:GROUPS]]
    best = max(groups, key=lambda group: group.mean(metric))
    highest = metric.text(best.mean(metric))
    title = f"{best.label} has the highest mean on the {findings.split} split, {highest}"
    if findings.kind == "sweep" and findings.favourites and best is not findings.favourites:
        title += f"; best on validation is {findings.favourites.label}"
    yield title, points.dots(rows, _teachers(findings), metric.label)


def _settings(findings: Findings) -> Drawn:
    """For each swept number, a line for each choice of the other settings."""
    metric = findings.metric
    keys = dict.fromkeys(key for group in findings.groups for key in group.settings)
    for key in keys:
        lines: dict[str, list[tuple[float, list[float]]]] = {}
        for group in _ranked(findings):
            value = _number(group.settings[key])
            others = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in group.settings.items() if k != key)
            if value is not None:
                found = [metric.scale * score for score in group.scores(metric)]
                lines.setdefault(others or metric.name, []).append((value, found))
        lines = {
            name: sorted(line) for name, line in islice(lines.items(), len(points.COLOURS)) if len(line) > 1
        }
        if lines:
            name, line = max(lines.items(), key=lambda item: max(np.mean(scores) for _, scores in item[1]))
            best = max(line, key=lambda pair: float(np.mean(pair[1])))[0]
            where = f" for {name}" if len(lines) > 1 else ""
            yield (
                f"{metric.name} over {key}: highest at {best:g}{where}",
                points.settings(lines, key, metric.label),
            )


def _size(findings: Findings) -> Drawn:
    yield from _costs(findings, "parameters", lambda model: model.values.get("parameters") or None)


def _latency(findings: Findings) -> Drawn:
    def milliseconds(model: Model) -> float | None:
        return None if model.latency is None else 1e3 * model.latency

    yield from _costs(findings, "ms for one image", milliseconds)


def _costs(findings: Findings, cost: str, of: Callable[[Model], float | None]) -> Drawn:
    metric, teacher = findings.metric, findings.teacher
    scale = metric.scale
    known = [
        points.Point(group.label, float(np.mean(x)), scale * group.mean(metric), scale * group.spread(metric))
        for group in _ranked(findings)
        if (x := [value for model in group.models if (value := of(model))])
    ]
    star = None
    if teacher is not None and (price := of(teacher)) and metric.key in teacher.values:
        star = points.Point(teacher.title, price, scale * teacher.values[metric.key])
    if not known or (star is None and len(known) < 2):
        return
    best = max(known, key=lambda point: point.y)
    unit = f" {metric.unit}".rstrip()
    title = f"{best.name}: {best.y:.4g}{unit} with {_amount(best.x, cost)}"
    if star is not None:
        title += f"; the teacher: {star.y:.4g}{unit} with {_amount(star.x, cost)}"
    yield title, points.costs(known, star, cost, metric.label)


def _amount(value: float, cost: str) -> str:
    return f"{value:,.0f} {cost}" if cost == "parameters" else f"{value:.2g} {cost}"


# --- training ---


def _curves(findings: Findings) -> Drawn:
    key, metric = f"validation_{findings.metric.key}", findings.metric
    lines = [_curve(group.label, group.models, key, metric.scale) for group in _ranked(findings)[:GROUPS]]
    if (teacher := findings.teacher) is not None and teacher not in [
        m for g in findings.groups for m in g.models
    ]:
        lines.append(_curve(teacher.title, [teacher], key, metric.scale, is_given=True))
    found = [line for line in lines if line is not None]
    if not found:
        return
    by_name = {line.name: line for line in found}
    sides = [
        group.label for group in (findings.favourites, findings.rivals) if group and group.label in by_name
    ]
    told = [by_name[name] for name in sides] or found[:1]
    ends = ", ".join(
        f"{line.name} at {np.mean([run[-1] for run in line.runs]):.4g}{f' {metric.unit}'.rstrip()}"
        for line in told
    )
    courses = findings.student.courses if findings.student else []
    finetuned = len(courses[0]) if len(courses) > 1 else None
    note = "; dotted: where fine-tuning begins" if finetuned else ""
    yield f"At the end: {ends}{note}", curves.learning(found, f"validation {metric.label}", finetuned)


def _curve(
    name: str, models: Sequence[Model], key: str, scale: int, is_given: bool = False
) -> curves.Curve | None:
    runs = [[scale * row[key] for course in m.courses for row in course if key in row] for m in models]
    runs = [run for run in runs if run]
    return curves.Curve(name, runs, is_given) if runs else None


def _losses(findings: Findings) -> Drawn:
    if findings.student is None or not findings.student.courses or not findings.student.courses[0]:
        return
    rows = findings.student.courses[0]
    names = list(rows[0])
    first = next(i for i, name in enumerate(names) if name.startswith("validation_"))
    terms = {name: [row[name] for row in rows] for name in names[names.index("loss") + 1 : first]}
    if terms:
        ends = ", ".join(f"{name} {values[-1]:.3g}" for name, values in terms.items())
        yield f"The loss of {findings.student.title} ends with {ends}", curves.losses(terms)


# --- classes ---


def _reliability(findings: Findings) -> Drawn:
    shown = [model for model in (findings.teacher, findings.student) if model is not None]
    models = {model.title: sure for model in shown if (sure := _confidence(model, findings))}
    if not models:
        return
    gaps = {
        name: calibration_gap(torch.from_numpy(sure), torch.from_numpy(right))
        for name, (sure, right) in models.items()
    }
    told = ", ".join(f"{name} is off by {100 * gap:.1f} %" for name, gap in reversed(gaps.items()))
    yield f"On average, {told}; on the dotted line, confidence is right", heat.reliability(models)


def _confidence(model: Model, findings: Findings) -> tuple[np.ndarray, np.ndarray] | None:
    if model.answers is None or findings.task.name == "regression":
        return None
    logits, labels = model.answers.logits.double(), model.answers.labels
    if findings.task.name == "multilabel":
        return logits.sigmoid().flatten().numpy(), (labels.flatten() > 0.5).double().numpy()
    sure, said = logits.softmax(dim=1).max(dim=1)
    return sure.numpy(), (said == labels).double().numpy()


def _confusion(findings: Findings) -> Drawn:
    yield from _confused(findings, findings.student)


def _confusion_teacher(findings: Findings) -> Drawn:
    yield from _confused(findings, findings.teacher)


def _confused(findings: Findings, model: Model | None) -> Drawn:
    if model is None or model.answers is None or findings.task.name != "classification":
        return
    counts = findings.task.confusion(model.answers.logits, model.answers.labels).numpy()  # type: ignore[misc]
    classes, errors = model.answers.classes, counts - np.diag(np.diag(counts))
    row, column = np.unravel_index(errors.argmax(), errors.shape)
    most = f"most often {label(classes[row])} is taken for {label(classes[column])}, {_times(errors[row, column])}"
    title = f"{model.title}: {errors.sum()} of {counts.sum()} wrong{f'; {most}' if errors.any() else ''}"
    yield title, heat.confusion(counts, classes)


def _classes(findings: Findings) -> Drawn:
    """The classes that are won and lost most."""
    own, theirs = _mean_by_class(findings.favourites, findings), _mean_by_class(findings.rivals, findings)
    if own is None or theirs is None or len(own) < 2 or own.keys() != theirs.keys():
        return
    assert findings.favourites is not None
    assert findings.rivals is not None
    scale, unit = _class_score(findings)
    gain = {
        name: scale * (own[name] - theirs[name]) for name in own if not np.isnan(own[name] - theirs[name])
    }
    order = sorted(gain, key=lambda name: -gain[name])
    if len(order) > 2 * CLASSES:
        order = [*order[:CLASSES], *order[-CLASSES:]]
    won, lost = (sum(sign * value > 0 for value in gain.values()) for sign in (1, -1))
    sides = f"Against {findings.rivals.label}, {findings.favourites.label}"
    title = f"{sides} wins {won} of {len(gain)} classes and loses {lost}"
    yield title, points.bars({name: gain[name] for name in order}, unit)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _class_score(findings: Findings) -> tuple[int, str]:
    names = {"classification": "points of accuracy", "multilabel": "points of average precision"}
    return (100, names[findings.task.name]) if findings.task.name in names else (1, findings.metric.name)


def _mean_by_class(group: Group | None, findings: Findings) -> Mapping[str, float] | None:
    if group is None:
        return None
    found = [scores for model in group.models if (scores := model.by_class(findings.task)) is not None]
    answers = next((model.answers for model in group.models if model.answers is not None), None)
    if answers is None:
        return None
    return dict(zip(answers.classes, torch.stack(found).mean(dim=0).tolist(), strict=True))


def _values(findings: Findings) -> Drawn:
    """Of a regression, each value as it is and as it is predicted."""
    models = [m for m in (findings.teacher, findings.student) if m is not None and m.answers is not None]
    if findings.task.name != "regression" or not models:
        return
    answers = models[-1].answers
    assert answers is not None
    for k, name in enumerate(answers.classes[:VALUES]):
        said = {m.title: m.answers.logits[:SAMPLES, k].numpy() for m in models if m.answers is not None}
        title = f"{name} of {min(SAMPLES, len(answers.labels))} samples, in standard deviations"
        yield title, points.values(_column(answers.labels, k), said, name)


def _column(labels: Tensor, k: int) -> np.ndarray:
    return labels[:SAMPLES, k].numpy()


# --- shared ---


def _ranked(findings: Findings) -> list[Group]:
    """The groups that have scores; those of a sweep with the favourites first, and then by their mean."""
    found = [group for group in findings.groups if group.scores(findings.metric)]
    if findings.kind != "sweep":
        return found
    return sorted(found, key=lambda group: (group is not findings.favourites, -group.mean(findings.metric)))


def _teachers(findings: Findings) -> float | None:
    value = findings.teacher.values.get(findings.metric.key) if findings.teacher else None
    return None if value is None else findings.metric.scale * value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


DRAWERS: Mapping[str, Callable[[Findings], Drawn]] = {
    "differences": _differences,
    "scores": _scores,
    "settings": _settings,
    "curves": _curves,
    "size": _size,
    "latency": _latency,
    "reliability": _reliability,
    "confusion": _confusion,
    "confusion-teacher": _confusion_teacher,
    "classes": _classes,
    "values": _values,
    "losses": _losses,
    **SEARCH_FIGURES,
    **SOFT_FIGURES,
}
