"""What a report tells, whatever it is about: models, groups of them, a verdict, tables, and how to repeat it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from kdistill.artifacts import Artifact, kind_of
from kdistill.predictions import FILE, Predictions, read_predictions
from kdistill.records import Table
from kdistill.tasks import Task

Kind = Literal["run", "sweep", "comparison", "study"]


@dataclass(frozen=True)
class Metric:
    """A score: its key, its name for a reader, and its unit, `%` of a share or nothing."""

    key: str
    name: str
    unit: str

    @classmethod
    def of(cls, task: Task, key: str) -> Metric:
        """The score of this key; what is no score of the task, such as `latency_p50`, has no unit."""
        heading = next((column.heading for column in task.columns if column.key == key), "")
        name, _, unit = heading.partition(" ")
        return cls(key, name or key.replace("_", " "), unit if unit == "%" else "")

    @property
    def scale(self) -> int:
        """What a value is multiplied with where its unit stands beside it."""
        return 100 if self.unit else 1

    @property
    def label(self) -> str:
        return f"{self.name} {self.unit}".rstrip()

    def number(self, value: float) -> str:
        if self.unit:
            return f"{100 * value:.2f}"
        if abs(value) >= 1e3:
            return f"{value:,.0f}"
        return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.3g}"

    def text(self, value: float) -> str:
        return f"{self.number(value)} {self.unit}".rstrip()

    def difference(self, value: float) -> str:
        """With its sign, and without a unit: `+1.2`."""
        return f"{100 * value:+.2f}" if self.unit else f"{value:+.4f}"


@dataclass(frozen=True)
class Model:
    """A model: its `values` are scores by name, `parameters`, `seconds` and, where it was measured, `cost`.

    `artifacts`: what it consists of; `predictions`: the folder of what it says of the test split.
    """

    title: str
    values: Mapping[str, Any]
    artifacts: Sequence[Path] = ()
    predictions: Path | None = None

    @cached_property
    def answers(self) -> Predictions | None:
        """Its predictions; None where they are not there. Raises `DamagedArtifact`."""
        if self.predictions is None or not self.predictions.is_dir():
            return None
        return read_predictions(Artifact(self.predictions).file(FILE))

    @cached_property
    def courses(self) -> list[list[dict[str, Any]]]:
        """The rows of metrics of its training, and then of its fine-tuning; empty of an ensemble, or what is gone."""
        return _courses(Artifact(self.artifacts[0])) if len(self.artifacts) == 1 else []

    @property
    def latency(self) -> float | None:
        """Median seconds for one image."""
        value: float | None = (self.values.get("cost") or {}).get("latency_p50")
        return value

    def by_class(self, task: Task) -> Tensor | None:
        """The score of each class `[K]`, nan where it has no sample."""
        return None if self.answers is None else task.by_class(self.answers.logits, self.answers.labels)


@dataclass(frozen=True)
class Group:
    """Models that differ in nothing but their seed; `settings` are what sets the group apart."""

    label: str
    models: Sequence[Model]
    settings: Mapping[str, str] = field(default_factory=dict)

    def scores(self, metric: Metric) -> list[float]:
        return [model.values[metric.key] for model in self.models if metric.key in model.values]

    def mean(self, metric: Metric) -> float:
        return statistics.fmean(self.scores(metric))

    def spread(self, metric: Metric) -> float:
        """Sample standard deviation over the seeds; 0 of one."""
        scores = self.scores(metric)
        return statistics.stdev(scores) if len(scores) > 1 else 0.0

    @property
    def average(self) -> Model:
        """A model with the mean of each score; what it costs is the first one's."""
        first = self.models[0].values
        known = {key: [model.values.get(key) for model in self.models] for key in first}
        floats = {key: [v for v in values if isinstance(v, float)] for key, values in known.items()}
        means = {key: statistics.fmean(v) for key, v in floats.items() if len(v) == len(self.models)}
        return Model(self.label, {**first, **means})


@dataclass(frozen=True)
class Repeat:
    """What it takes to have the same again."""

    commands: Sequence[str] = ()
    config: str = ""
    """The whole config, YAML; of several, that of the one that is shown in detail."""
    versions: Mapping[str, str] = field(default_factory=dict)
    artifacts: Sequence[Path] = ()


@dataclass(frozen=True)
class Findings:
    """All that a page is made of.

    `split`: what the scores are of. `groups`: who is compared, the control first where there is one. `student` is
    shown in detail; class by class, the `favourites` stand against the `rivals`.
    """

    kind: Kind
    folder: str
    title: str
    dataset: str
    task: Task
    metric: Metric
    split: str
    verdict: Sequence[str]
    facts: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    groups: Sequence[Group] = ()
    teacher: Model | None = None
    student: Model | None = None
    favourites: Group | None = None
    rivals: Group | None = None
    repeat: Repeat = Repeat()
    notes: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    """The content of a comparison's or a study's file."""
    detail: str = ""
    """Of several, which one is `student`."""
    folded: Sequence[Table] = ()
    """Tables for those who want to know it all."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The config in detail; empty where it is not known."""
        from omegaconf import OmegaConf

        content: Any = OmegaConf.to_container(OmegaConf.create(self.repeat.config or "{}"), resolve=True)
        return content if isinstance(content, dict) else {}


def located(written: str, runs: Path) -> Path:
    """Where a folder or file of the store lies that is `written` as a path from the working directory of its making.

    As it is written; else, as the runs may have been moved, of the same kind and name in the folder `runs`.
    """
    path = Path(written)
    return path if path.exists() else runs / "artifacts" / Path(*path.parts[-2:])


def parent(artifact: Artifact, role: str) -> Artifact | None:
    """What an artifact was made from; None where it has no parent of that role, or that is gone."""
    pin = artifact.parents.get(role)
    if pin is None:
        return None
    found = Artifact(artifact.folder.parent.parent / kind_of(role, pin) / pin["name"])
    return found if (found.folder / "manifest.json").is_file() else None


def _courses(artifact: Artifact) -> list[list[dict[str, Any]]]:
    before = parent(artifact, "student") if artifact.kind == "finetuned" else None
    rows = artifact.history
    return [*(_courses(before) if before else []), *([rows] if rows else [])]
