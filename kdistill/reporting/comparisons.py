"""Findings of a comparison: which variants beat the control, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdistill.artifacts import Artifact
from kdistill.records import Table
from kdistill.reporting.findings import Findings, Group, Metric, Model, Repeat, located
from kdistill.reporting.folders import complete, read_json, runs_of
from kdistill.tasks import task_of

#: verdict in the file -> in a sentence
SAID = {
    "BEATS": "BEATS the control by",
    "WORSE": "is WORSE than the control by",
    "NO DIFFERENCE": "shows NO DIFFERENCE:",
}


def comparison_findings(folder: Path) -> Findings:
    """What there is to tell of a comparison; raises `DataError` for a file that is not whole."""
    file = folder / "comparison.json"
    about = read_json(file)
    with complete(file):
        return _findings(folder, about)


def _findings(folder: Path, about: Mapping[str, Any]) -> Findings:
    runs, task = runs_of(folder), task_of(about["task"])
    metric = Metric.of(task, about["metric"])
    control = _group(about["control"]["title"], about["control"], metric, runs)
    variants = {name: _group(name, values, metric, runs) for name, values in about["variants"].items()}
    teacher = _teacher(about["teacher"], metric, runs) if about["teacher"] else None
    sign = 1 if about["higher_is_better"] else -1
    best = max(variants, key=lambda name: sign * about["variants"][name]["mean"])
    student = variants[best].models[0]
    manifest = Artifact(student.artifacts[0]).manifest if student.artifacts else {}
    return Findings(
        kind="comparison",
        folder=folder.name,
        title=f"Comparison with {control.label}",
        dataset=about["dataset"],
        task=task,
        metric=metric,
        split="test",
        verdict=[verdict(name, values, metric) for name, values in about["variants"].items()],
        facts=_facts(about, control, teacher, metric),
        tables=[_table(about, metric)],
        groups=[control, *variants.values()],
        teacher=teacher,
        student=student,
        favourites=variants[best],
        rivals=control,
        repeat=Repeat(
            commands=[about["command"], *([manifest["command"]] if manifest else [])],
            config=_config(folder),
            versions=manifest.get("versions", {}),
            artifacts=[
                path for group in (control, *variants.values()) for m in group.models for path in m.artifacts
            ],
        ),
        notes=_gone(teacher, [control, *variants.values()]),
        about=about,
        detail=f"Shown in detail: {best}, which has the best mean, with seed {about['seeds'][0]}.",
    )


def verdict(name: str, values: Mapping[str, Any], metric: Metric) -> str:
    """`kd BEATS the control by 1.20 points [0.80, 1.60]`: of a difference that is shown, its size."""
    numbers = [values[key] * metric.scale for key in ("difference", "low", "high")]
    if values["verdict"] != "NO DIFFERENCE":
        difference, low, high = map(abs, numbers)
        numbers = [difference, min(low, high), max(low, high)]
    difference, low, high = (f"{number:.{2 if metric.unit else 4}f}" for number in numbers)
    return f"{name} {SAID[values['verdict']]} {difference} {'points' if metric.unit else metric.name} [{low}, {high}]"


def _group(label: str, values: Mapping[str, Any], metric: Metric, runs: Path) -> Group:
    seeds = zip(values["scores"], values["predictions"], values["artifacts"], strict=True)
    return Group(label, [_model(label, values, metric, runs, *seed) for seed in seeds])


def _model(
    label: str,
    values: Mapping[str, Any],
    metric: Metric,
    runs: Path,
    score: float,
    answers: str,
    artifact: str,
) -> Model:
    """A model of one seed: its scores are those of the comparison, and of its evaluation where there is one."""
    known = {metric.key: score, "parameters": values["parameters"], "seconds": values["seconds"]}
    place = located(artifact, runs)
    there = [place] if (place / "manifest.json").is_file() else []
    beside = Artifact(place).beside("evaluation.json")
    if beside.is_file():
        known = {**list(read_json(beside)["models"].values())[-1], **known}
    return Model(label, known, there, located(answers, runs))


def _teacher(values: Mapping[str, Any], metric: Metric, runs: Path) -> Model:
    known = {metric.key: values["score"], "parameters": values["parameters"], "seconds": values["seconds"]}
    return Model(values["title"], known, predictions=located(values["predictions"], runs))


def _facts(
    about: Mapping[str, Any], control: Group, teacher: Model | None, metric: Metric
) -> list[tuple[str, str]]:
    found = [
        ("seeds", str(len(about["seeds"]))),
        ("test images", f"{about['test_images']:,}"),
        ("confidence", f"{100 * about['confidence']:g} %"),
        (f"{metric.name}, control", metric.text(control.mean(metric))),
    ]
    if teacher is not None:
        found.append((f"{metric.name}, teacher", metric.text(teacher.values[metric.key])))
    return found


def _table(about: Mapping[str, Any], metric: Metric) -> Table:
    """A line for each variant, and for the control and the teacher."""
    columns = [
        "",
        "n",
        metric.label,
        "difference",
        "verdict",
        "of the gap",
        "parameters",
        "seconds",
        "settings",
    ]
    rows = [_row(name, values, metric) for name, values in about["variants"].items()]
    rows.append(_row(about["control"]["title"], about["control"], metric))
    if (teacher := about["teacher"]) is not None:
        size, seconds = f"{teacher['parameters']:,}", f"{teacher['seconds']:.1f}"
        rows.append([teacher["title"], 1, metric.number(teacher["score"]), "", "", "", size, seconds, ""])
    share = f"{100 * about['confidence']:g} %"
    note = f"difference: from the control, with its {share} interval; of the gap: share of the way to the teacher"
    return Table(f"{about['dataset']}: {about['test_images']:,} test images", columns, rows, note)


def _row(name: str, values: Mapping[str, Any], metric: Metric) -> list[object]:
    difference = ""
    if "difference" in values:
        low, high = metric.difference(values["low"]), metric.difference(values["high"])
        difference = f"{metric.difference(values['difference'])} [{low}, {high}]"
    closed = values.get("gap_closed")
    return [
        name,
        len(values["scores"]),
        f"{metric.number(values['mean'])} ± {metric.number(values['std'])}",
        difference,
        values.get("verdict", "control"),
        "" if closed is None else f"{100 * closed:.0f} %",
        f"{values['parameters']:,}",
        f"{values['seconds']:.1f}",
        " ".join(values["words"]),
    ]


def _config(folder: Path) -> str:
    """What all arms have in common."""
    file = folder / ".hydra" / "config.yaml"
    return file.read_text() if file.is_file() else ""


def _gone(teacher: Model | None, groups: list[Group]) -> list[str]:
    models = [*([teacher] if teacher else []), *(model for group in groups for model in group.models)]
    gone = [model for model in models if model.predictions is not None and not model.predictions.is_dir()]
    if not gone:
        return []
    return [
        f"The predictions of {len(gone)} of {len(models)} models are gone: what is made from them is left out."
    ]
