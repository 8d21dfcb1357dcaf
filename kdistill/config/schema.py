"""The one tree that every config is checked against, before any work starts.

YAML is the only source of values: fields have no defaults here, so a key that is taken out (`~loss.T`)
is an error and not a silent other value. Unknown keys are refused. All problems are reported at once.
This module must not import torch: `kdistill --help` and `--cfg job` stay fast.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from kdistill.config.data import Dataset
from kdistill.config.losses import Loss
from kdistill.config.models import EnsembleParams, check_params, kind_of
from kdistill.config.optim import Optim
from kdistill.config.search import Range, Tune
from kdistill.config.section import Section, Seed
from kdistill.config.trackers import Tracker
from kdistill.errors import did_you_mean

#: YAML reads the name of a class that is a number as one
ClassName = Annotated[str, BeforeValidator(lambda name: str(name) if type(name) is int else name)]
Stage = Literal[
    "train-teacher", "soft-targets", "distill", "finetune", "eval", "export", "run", "compare", "tune"
]


class Training(Section):
    """What the training loop needs to know; the same for teacher, student and fine-tuning."""

    epochs: int = Field(ge=0, description="passes over the training split")
    batch_size: int = Field(ge=1, description="samples per optimizer step")
    label_smoothing: float = Field(ge=0, lt=1, description="smoothing of the labels in the hard term")
    keep: Literal["best", "last"] = Field(description="which state is kept: best on validation, or last")
    optim: Optim

    @model_validator(mode="after")
    def _batch_splits(self) -> Training:
        if self.batch_size % self.optim.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be split into"
                f" optim.accumulate={self.optim.accumulate} equal parts"
            )
        return self


class Input(Section):
    """What a network is shown of the data set's images."""

    size: int | None = Field(
        ge=2, description="height and width that images are resized to; null: as they are"
    )
    grey: bool = Field(description="show colour images in grey")
    augment: bool = Field(
        description="false: show clean images while the student learns, without augmentation"
    )


class Model(Training):
    """A network and how it is trained: the teacher's or the student's section."""

    name: str = Field(description="architecture: see `kdistill list models`")
    params: dict[str, Any] = Field(description="the architecture's own parameters, such as width")
    weights: str | None = Field(description="null: random; DEFAULT: published weights; or a file's path")
    mean: list[float] | None = Field(
        description="mean of each channel that the weights expect, for pixels in [0, 1]; null: the data's"
    )
    std: list[Annotated[float, Field(gt=0)]] | None = Field(
        description="standard deviation of each channel that the weights expect; null: the data's"
    )
    seed: Seed = Field(description="seed of initialisation and order of the samples")
    input: Input

    @model_validator(mode="after")
    def _mean_with_std(self) -> Model:
        if (self.mean is None) != (self.std is None) or len(self.mean or []) != len(self.std or []):
            raise ValueError(
                "mean and std go together, one number each per channel, for example mean=[0.5] std=[0.25]"
            )
        return self

    @model_validator(mode="after")
    def _params_fit_name(self) -> Model:
        if isinstance(self, Teacher) or kind_of(self.name) == "network":  # other students are refused as such
            check_params(self.name, self.params)
        return self


class Teacher(Model):
    """What teaches: a network, or another source of logits that its name stands for."""

    class_map: dict[ClassName, ClassName] | None = Field(
        description="teacher's class: student's class, where their names differ; null: by name"
    )

    @property
    def kind(self) -> str:
        """`network`, `ensemble`, `estimator`, `folder` or `file`."""
        return kind_of(self.name)

    @model_validator(mode="after")
    def _source_is_given(self) -> Teacher:
        if self.kind in ("folder", "file") and self.weights in (None, "DEFAULT"):
            what = "a folder with a trained network" if self.kind == "folder" else "a file of its outputs"
            raise ValueError(f"{self.name} needs {what}: set teacher.weights=PATH")
        if self.kind in ("ensemble", "estimator") and self.weights is not None:
            raise ValueError(f"{self.name} takes no weights (got weights={self.weights})")
        return self

    @model_validator(mode="after")
    def _members_fit(self) -> Teacher:
        _ = self.members
        return self

    @property
    def members(self) -> dict[str, Teacher]:
        """The members of an ensemble: each has the teacher's settings but for what it sets itself."""
        if self.kind != "ensemble":
            return {}
        params = EnsembleParams.model_validate(self.params)
        for name, own in params.members.items():
            if own.get("name", "ensemble") == "ensemble":
                raise ValueError(
                    f"params.members.{name}.name={own.get('name', 'null')}: name a network or another teacher, for"
                    f" example {{{name}: {{name: resnet20, seed: 1}}}}; an ensemble has no ensembles as members"
                )
        members = {
            name: derived(self, own, f"params.members.{name}") for name, own in sorted(params.members.items())
        }
        for name, member in members.items():
            if member.input.augment != self.input.augment:
                raise ValueError(
                    f"params.members.{name}.input.augment: all members are shown the same views; set input.augment"
                )
        return members


def derived(section: Any, own: dict[str, Any], where: str) -> Any:
    """A section with some settings of its `own`, which may be nested; raises `ValueError`.

    `params` are replaced together with the `name` that they belong to.
    """
    base = section.model_dump(mode="json")
    if "name" in own:
        base["params"] = {}
    try:
        return type(section).model_validate(_merged(base, own))
    except ValidationError as ex:
        raise ValueError(_told(ex.errors()[0], base, where)) from None


def _told(problem: Any, known: Any, where: str) -> str:
    """A problem in one line; `known` are settings as they may be. The tags of unions are no part of the path."""
    path = [where]
    for part in problem["loc"]:
        if isinstance(known, dict) and part not in known and problem["type"] != "extra_forbidden":
            continue
        if problem["type"] == "extra_forbidden" and part == problem["loc"][-1]:
            return f"{'.'.join(path)}: no setting {part!r}.{did_you_mean(part, known)}"
        if not isinstance(known, dict) or part in known:
            path.append(str(part))
            known = known[part] if isinstance(known, dict) else None
    text = problem["msg"].removeprefix("Value error, ")
    given = "" if problem["type"] == "value_error" else f"={problem['input']}"
    return f"{'.'.join(path)}{given}: {text[0].lower()}{text[1:]}"


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    both = {**base, **own}
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            both[key] = _merged(base[key], value)
    return both


# --- distillation ---


class SoftTargets(Section):
    mode: Literal["auto", "stored", "live"] = Field(
        description="stored: teacher logits from disk; live: the teacher runs in every step"
    )
    views: int | None = Field(ge=1, description="augmented views per sample; null: one per student epoch")
    dtype: Literal["float16", "float32"] = Field(description="number format of stored logits")
    top_k: int | None = Field(
        ge=1, description="store each sample's k largest logits and the others' sum; null: store all"
    )
    batch_size: int = Field(ge=1, description="the teacher always runs on batches of exactly this size")
    seed: Seed = Field(description="seed of the augmented views")


class Mixing(Section):
    """Mixed images in the student's training: each with a share of another one and of its label."""

    kind: Literal["none", "mixup", "cutmix"]
    concentration: float = Field(
        gt=0, description="the share is drawn from Beta(concentration, concentration)"
    )


class Finetune(Training):
    """Fine-tuning of the distilled student on the labels alone; `epochs=0` keeps it as it is."""


class Device(Section):
    name: str = Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps")
    processes: int = Field(ge=1, description="processes that train together, each with its share of a batch")
    shard: bool = Field(description="each process holds only its part of every network (FSDP)")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(description="number format of networks")
    workers: int = Field(ge=0, description="processes that decode image files; 0: none")
    threads: int | None = Field(ge=1, description="CPU threads; null: PyTorch's choice")
    compile: bool = Field(description="compile the networks with torch.compile")
    memory_gb: float = Field(ge=0, description="image folders up to this size, decoded, are kept in memory")
    cache: str | None = Field(
        min_length=1,
        description="folder where image files are kept decoded for the next run; null: none",
    )


class Export(Section):
    format: Literal["onnx"] = Field(description="format of the exported file")
    tolerance: float = Field(
        gt=0, description="largest difference of any output from PyTorch's that is accepted"
    )


class Predict(Section):
    top: int = Field(ge=1, description="likeliest classes that are shown of each image")
    format: Literal["table", "json", "csv"] = Field(description="how predictions are written")


class Eval(Section):
    """What `eval`, and the end of `run`, measure besides scores."""

    cost: bool = Field(description="measure FLOPs, memory, latency and throughput")
    runs: int = Field(ge=1, description="single images that latency is measured on, within 10 seconds")


class Compare(Section):
    """What `compare` trains beside the control, how often, and how sure it is to be."""

    losses: list[str] = Field(description="options of `loss` to compare, such as [kd,dkd]")
    variants: dict[str, str] = Field(description="name: overrides that make it, such as {hot: 'loss.T=8'}")
    seeds: int = Field(description="students of each: of student.seed and the seeds that follow it")
    confidence: float = Field(
        ge=0.5, lt=1, description="share of comparisons in which no verdict is to be wrong"
    )

    @field_validator("seeds")
    @classmethod
    def _show_a_spread(cls, seeds: int) -> int:
        if seeds < 2:
            raise ValueError(
                f"{seeds} cannot show how far results differ by chance: give at least 2, better 5"
            )
        return seeds


class Config(Section):
    """The whole config: one tree for all stages, so that every command computes the same keys."""

    stage: Stage
    runs: str = Field(min_length=1, description="folder for artifacts and run logs")
    force: bool = Field(description="make the stage's artifact again even when it is there")
    model: str | None = Field(
        min_length=1,
        description="eval, export, predict: a trained network's folder; eval: or a file of weights of a `student`;"
        " predict: or an exported file; null: the student of these settings",
    )
    dataset: Dataset
    teacher: Teacher
    assistant: dict[str, Any] | None = Field(
        description="a network between teacher and student: the student's settings but for these; null: none"
    )
    student: Model
    generations: int = Field(
        ge=1, description="students trained one after another, each taught by the one before"
    )
    loss: Loss
    mixing: Mixing
    soft_targets: SoftTargets
    finetune: Finetune
    export: Export
    predict: Predict
    eval: Eval
    compare: Compare
    tune: Tune
    search: dict[str, Range] = Field(description="what `kdistill tune` varies, by setting or config group")
    device: Device
    tracker: Tracker

    @model_validator(mode="after")
    def _students_are_networks(self) -> Config:
        for role, section in (("student", self.student), ("assistant", self.assistant_model)):
            if section is not None and kind_of(section.name) != "network":
                raise ValueError(f"{role}.name={section.name}: only a network can be trained as {role}")
        return self

    @property
    def assistant_model(self) -> Model | None:
        """The assistant's whole section: its own settings over the student's."""
        if self.assistant is None:
            return None
        assistant: Model = derived(self.student, self.assistant, "assistant")
        return assistant

    @property
    def steps(self) -> list[Config]:
        """The chain that `assistant` and `generations` stand for, as plain configs; the last is the student's own.

        Each step's student teaches the next one. Generations differ in their seed: `student.seed` and on.
        """
        plain = self.model_copy(update={"assistant": None, "generations": 1})
        steps = []
        if self.assistant_model is not None:
            steps.append(plain.model_copy(update={"student": self.assistant_model}))
        for generation in range(self.generations):
            seeded = self.student.model_copy(update={"seed": self.student.seed + generation})
            steps.append(plain.model_copy(update={"student": seeded}))
        return steps
