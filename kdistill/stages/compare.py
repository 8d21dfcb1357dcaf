"""Does distillation help? Variants against a control: the same student, seeds and order of data without a teacher."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdistill.config.schema import Config
from kdistill.predictions import FILE, read_predictions
from kdistill.stages.arms import Arm, arms, seeds_of
from kdistill.stages.job import Job
from kdistill.stages.pipeline import make
from kdistill.stages.predict import predict
from kdistill.stages.subjects import Subject, subjects
from kdistill.statistics import Paired, paired
from kdistill.tasks import Task

log = logging.getLogger("kdistill")
Verdict = Literal["BEATS", "NO DIFFERENCE", "WORSE"]


@dataclass(frozen=True)
class Trial:
    """A trained model, judged.

    `by_sample`: scores of the test samples, float64 `[N]`. `seconds`: of all training that is its own. `soft_targets`:
    folder -> the seconds that the teacher's answers took which it learnt from.
    """

    title: str
    by_sample: Tensor
    seconds: float
    parameters: int
    artifact: str
    predictions: str
    soft_targets: Mapping[str, float]

    @property
    def score(self) -> float:
        """The task's headline on the test split."""
        return self.by_sample.mean().item()


@dataclass(frozen=True)
class Side:
    """An arm with a trial for each seed."""

    arm: Arm
    trials: Sequence[Trial]

    @property
    def scores(self) -> list[float]:
        return [trial.score for trial in self.trials]

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)

    @property
    def spread(self) -> float:
        """Sample standard deviation over the seeds."""
        return statistics.stdev(self.scores)

    @property
    def seconds(self) -> float:
        """Training time, mean over the seeds."""
        return statistics.mean(trial.seconds for trial in self.trials)

    @property
    def by_sample(self) -> Tensor:
        """`[seeds, N]`"""
        return torch.stack([trial.by_sample for trial in self.trials])


@dataclass(frozen=True)
class Comparison:
    """All that was found. The variants' intervals hold together with `config.compare.confidence`."""

    job: Job
    teacher: Trial | None
    control: Side
    variants: Sequence[Side]

    @property
    def task(self) -> Task:
        return self.job.task

    @property
    def seeds(self) -> list[int]:
        return seeds_of(self.job.config)

    @property
    def samples(self) -> int:
        return len(self.control.trials[0].by_sample)

    @property
    def confidence(self) -> float:
        """Of each interval: what may be wrong is shared out among the variants (Bonferroni)."""
        return 1 - (1 - self.job.config.compare.confidence) / len(self.variants)

    @property
    def soft_targets_seconds(self) -> float:
        """What the teacher's stored answers took, those that arms and seeds share counted once."""
        sides = (self.control, *self.variants)
        return sum({k: v for side in sides for t in side.trials for k, v in t.soft_targets.items()}.values())

    def test(self, variant: Side) -> Paired:
        """The variant against the control, seed by seed and sample by sample."""
        return paired(self.control.by_sample, variant.by_sample)

    def verdict(self, variant: Side) -> Verdict:
        low, high = self.test(variant).interval(self.confidence)
        return "BEATS" if low > 0 else "WORSE" if high < 0 else "NO DIFFERENCE"

    def gap_closed(self, variant: Side) -> float | None:
        """The share of the way from the control to the teacher; None where the teacher is not better."""
        gap = self.teacher.score - self.control.mean if self.teacher else 0
        return (variant.mean - self.control.mean) / gap if gap > 0 else None


def compare(config: Config, overrides: Sequence[str]) -> Comparison:
    """Train the control and the variants over the seeds, as far as they are not there, and judge them.

    A whole seed comes after another: what is there when it is cut off is even, and the same command goes on with it.
    Raises `ConfigError` for what `arms` does.
    """
    found, seeds = arms(config, overrides), seeds_of(config)
    trials: dict[str, list[Trial]] = {arm.name: [] for arm in found}
    teacher = None
    for seed in seeds:
        for arm in found:
            count = sum(map(len, trials.values())) + 1
            log.info("seed %d, %s (%d of %d)", seed, arm.name, count, len(seeds) * len(found))
            job = arm.job(seed)
            make(job)
            trials[arm.name].append(_student(job))
            teacher = teacher or _teacher(job)
    control, *variants = (Side(arm, trials[arm.name]) for arm in found)
    return Comparison(Job.open(config, overrides), teacher, control, variants)


def _student(job: Job) -> Trial:
    """The last student of a job, with the time that all of its chain took."""
    trained = [subject for subject in subjects(job) if not subject.name.startswith("teacher")]
    soft_targets = {
        str(artifact.folder): artifact.manifest["seconds"]
        for step in job.chain
        for artifact in step.student_parents().values()
        if artifact.kind == "soft-targets"
    }
    return _trial(trained[-1], sum(subject.facts["seconds"] for subject in trained), soft_targets)


def _teacher(job: Job) -> Trial | None:
    """The teacher of the line's settings; None where it does not know all classes."""
    found = next((subject for subject in subjects(job) if subject.name == "teacher"), None)
    return _trial(found, found.facts["seconds"], {}) if found else None


def _trial(subject: Subject, seconds: float, soft_targets: Mapping[str, float]) -> Trial:
    kept = predict(subject)
    answers = read_predictions(kept.file(FILE))
    return Trial(
        title=subject.title,
        by_sample=subject.job.task.by_sample(answers.logits, answers.labels),
        seconds=seconds,
        parameters=subject.facts["parameters"],
        artifact=", ".join(str(artifact.folder) for artifact in subject.artifacts.values()),
        predictions=str(kept.folder),
        soft_targets=soft_targets,
    )
