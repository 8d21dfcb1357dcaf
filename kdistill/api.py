"""The stages as Python functions, each the same step that the command of that name runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdistill.artifacts import Artifact
from kdistill.config import folders
from kdistill.config.compose import plan, users_words
from kdistill.config.schema import Config
from kdistill.errors import ConfigError, UserError
from kdistill.models import Classifier
from kdistill.stages.command import check_before, makers
from kdistill.stages.compare import compare as _compare
from kdistill.stages.distill import distill as _distill
from kdistill.stages.evaluate import evaluate as _evaluate
from kdistill.stages.export import export as _export
from kdistill.stages.finetune import finetune as _finetune
from kdistill.stages.job import Job
from kdistill.stages.networks import stored_network
from kdistill.stages.pipeline import run as _run
from kdistill.stages.soft_targets import make_soft_targets as _make_soft_targets
from kdistill.stages.tracking import check_untracked
from kdistill.stages.train_teacher import train_teacher as _train_teacher
from kdistill.stages.verdicts import content

__all__ = [
    "compare",
    "distill",
    "evaluate",
    "export",
    "finetune",
    "load_config",
    "load_network",
    "make_soft_targets",
    "run",
    "train_teacher",
]


def load_config(*overrides: str, config_dirs: Sequence[str | Path] = ()) -> Config:
    """The config that the command line would compose from these overrides, checked.

    `config_dirs` are folders of the user's own options, as with `--config-dir`. Raises `ConfigError`.
    """
    folders.use_folders([str(folder) for folder in config_dirs])
    return plan("run", list(overrides)).configs[0]


def train_teacher(config: Config) -> Artifact:
    """Train the teacher, or return it when it is there already; of an ensemble every member, and return the last."""
    return [_train_teacher(job) for job in makers(_job(config), "train-teacher")][-1]


def make_soft_targets(config: Config) -> Artifact:
    """Store the teacher's logits, of an ensemble every member's; raises `MissingArtifact` without a teacher."""
    return [_make_soft_targets(job) for job in makers(_job(config), "soft-targets")][-1]


def distill(config: Config) -> Artifact:
    """Train the student on soft targets and labels; raises `MissingArtifact` without a teacher."""
    return _distill(_job(config))


def finetune(config: Config) -> Artifact:
    """Fine-tune the distilled student on the labels; raises `MissingArtifact` without a student."""
    return _finetune(_job(config))


def evaluate(config: Config) -> dict[str, dict[str, Any]]:
    """Test metrics by name: `teacher`, `student` (distilled), `fine-tuned`, as far as they are there.

    With `model=PATH` in the config, of `teacher` and `model`. `top1`, `ece` and `agreement` are shares in [0, 1],
    `nll` is in nats, `bytes` is the file's size; `cost` has what `eval.cost` measures: seconds, bytes, operations.
    """
    return _evaluate(_job(config)).scores


def export(config: Config) -> Artifact:
    """Write the student, or the network that `model` names, to a file of `export.format`, tested on the test split.

    Raises `MissingArtifact` without a student, and `RunError` for a file that gives other outputs.
    """
    return _export(_job(config))


def run(config: Config) -> dict[str, dict[str, Any]]:
    """All stages in order, building what is missing; returns what `evaluate` returns.

    What cannot work together is refused before any training.
    """
    check_before([config])
    return _run(_job(config)).scores


def compare(*overrides: str) -> dict[str, Any]:
    """Train variants and their control over seeds, and judge each variant: the content of `comparison.json`.

    `overrides` are the words of `kdistill compare`, such as `compare.losses=[kd,dkd]`: the variants are made from them.
    """
    planned = plan("compare", list(overrides))
    (words,) = (users_words(job) for job in planned.jobs)
    check_before(planned.configs, [words])
    return content(_compare(planned.configs[0], words))


def _job(config: Config) -> Job:
    """The job of a config; raises `ConfigError` for several processes and trackers, which only the command starts."""
    if config.device.processes > 1:
        raise ConfigError(
            f"device.processes={config.device.processes}: only the command `kdistill` starts processes; from Python"
            " use device.processes=1"
        )
    check_untracked(config)
    return Job.open(config)


def load_network(folder: str | Path) -> Classifier:
    """The trained network of a teacher's or student's folder, in eval mode, on the CPU.

    It takes uint8 images `[N, C, H, W]` and gives logits `[N, K]`; normalisation is inside. Raises
    `DamagedArtifact` when the weights do not match their checksum.
    """
    artifact = Artifact(Path(folder))
    if not (artifact.folder / "model.json").is_file():
        raise UserError(f"{folder} does not hold a trained network: there is no model.json in it")
    return stored_network(artifact).eval()
