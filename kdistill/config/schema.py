"""The one tree that every config is checked against, before any work starts.

YAML is the only source of values: fields have no defaults here, so a key that is taken out (`~loss.T`)
is an error and not a silent other value. Unknown keys are refused. All problems are reported at once.
This module must not import torch: `kdistill --help` and `--cfg job` stay fast.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kdistill.config.models import check_params

Stage = Literal["train-teacher", "soft-targets", "distill", "finetune", "eval", "run"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of the config: immutable, no unknown keys, no nan or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- optimisation: mounted at teacher.optim, student.optim and finetune.optim ---


class Constant(Section):
    kind: Literal["constant"]


class Cosine(Section):
    kind: Literal["cosine"]
    final: float = Field(ge=0, le=1, description="learning rate at the end, as a fraction of lr")


class MultiStep(Section):
    kind: Literal["multistep"]
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        description="when to multiply the learning rate by gamma, as fractions of the training"
    )
    gamma: float = Field(gt=0, le=1, description="factor at each milestone")

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, milestones: list[float]) -> list[float]:
        if milestones != sorted(set(milestones)):
            raise ValueError("must be ascending, for example [0.5, 0.75]")
        return milestones


Schedule = Annotated[Constant | Cosine | MultiStep, Field(discriminator="kind")]


class _Optim(Section):
    lr: float = Field(gt=0, description="peak learning rate, for one batch of batch_size samples")
    weight_decay: float = Field(ge=0, description="weight decay, on all weights that have two or more axes")
    schedule: Schedule
    warmup_epochs: float = Field(ge=0, description="epochs of linear warm-up from 0 to lr")
    clip_norm: float | None = Field(gt=0, description="largest norm of the gradient; null: no clipping")
    accumulate: int = Field(ge=1, description="parts that a batch is split into to save memory")
    ema: float | None = Field(gt=0, lt=1, description="decay of the moving average of weights; null: none")
    early_stopping: int | None = Field(ge=1, description="epochs without a better validation; null: never")


class SGD(_Optim):
    kind: Literal["sgd"]
    momentum: float = Field(ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(description="Nesterov momentum")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs momentum > 0")
        return self


class AdamW(_Optim):
    kind: Literal["adamw"]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        description="decay of the first and second moment"
    )


Optim = Annotated[SGD | AdamW, Field(discriminator="kind")]


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

    @model_validator(mode="after")
    def _mean_with_std(self) -> Model:
        if (self.mean is None) != (self.std is None) or len(self.mean or []) != len(self.std or []):
            raise ValueError(
                "mean and std go together, one number each per channel, for example mean=[0.5] std=[0.25]"
            )
        return self

    @model_validator(mode="after")
    def _params_fit_name(self) -> Model:
        check_params(self.name, self.params)
        return self


# --- data ---


class Augment(Section):
    crop: int = Field(ge=0, description="pixels of zero padding before a random crop; 0: no crop")
    flip: bool = Field(description="flip left and right with probability 1/2")


class _Dataset(Section):
    validation: float = Field(gt=0, lt=1, description="share of the training data kept for validation")
    split_seed: Seed = Field(description="seed of the cut between training and validation")
    train_samples: int | None = Field(ge=1, description="use only so many training samples, per class alike")
    augment: Augment


class Digits(_Dataset):
    name: Literal["digits"]


class Downloaded(_Dataset):
    name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100"]
    root: str | None = Field(description="folder of the data set's files; null: look in the usual places")
    download: bool = Field(description="download the files when they are not found")


class ImageFolder(_Dataset):
    name: Literal["image_folder"]
    root: str = Field(description="a folder per class, or train/, val/, test/ with a folder per class each")
    image_size: int = Field(ge=4, description="height and width in pixels that images are brought to")
    channels: Literal[1, 3] = Field(description="1: grey, 3: colour")
    test: float = Field(gt=0, lt=1, description="share kept for the test split when there is no test/ folder")
    on_error: Literal["raise", "skip"] = Field(description="a corrupt image: stop, or count it and go on")


class Synthetic(_Dataset):
    name: Literal["synthetic"]
    classes: int = Field(ge=2, description="number of classes")
    channels: int = Field(ge=1, description="image channels")
    image_size: int = Field(ge=2, description="height and width in pixels")
    samples: int = Field(ge=8, description="training samples, before validation is cut off")
    test_samples: int = Field(ge=1, description="test samples")
    noise: float = Field(ge=0, description="standard deviation of the noise, where class patterns have 1")
    seed: Seed = Field(description="seed of the images")


Dataset = Annotated[Digits | Downloaded | ImageFolder | Synthetic, Field(discriminator="name")]


# --- distillation ---


class KDLoss(Section):
    """alpha * CE(student, labels) + beta * T^2 * KL(teacher at T || student at T)."""

    kind: Literal["kd"]
    alpha: float = Field(ge=0, description="weight of the cross entropy with the labels (hard term)")
    beta: float | None = Field(ge=0, description="weight of the soft term; null: 1 - alpha")
    T: float = Field(gt=0, description="temperature: both sets of logits are divided by it")

    @model_validator(mode="after")
    def _weights(self) -> KDLoss:
        if self.beta is None and self.alpha > 1:
            raise ValueError(
                f"beta=null means 1 - alpha, so alpha must be at most 1 (got {self.alpha:g}); set loss.beta"
            )
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0: there is nothing to learn from")
        return self

    @property
    def soft_weight(self) -> float:
        """`beta`, with null read as `1 - alpha`."""
        return 1 - self.alpha if self.beta is None else self.beta


class CELoss(Section):
    """CE(student, labels) alone: the control, which no teacher reaches."""

    kind: Literal["ce"]

    @property
    def alpha(self) -> float:
        return 1.0

    @property
    def soft_weight(self) -> float:
        return 0.0


Loss = Annotated[KDLoss | CELoss, Field(discriminator="kind")]


class SoftTargets(Section):
    mode: Literal["auto", "stored", "live"] = Field(
        description="stored: teacher logits from disk; live: the teacher runs in every step"
    )
    views: int | None = Field(ge=1, description="augmented views per sample; null: one per student epoch")
    dtype: Literal["float16", "float32"] = Field(description="number format of stored logits")
    batch_size: int = Field(ge=1, description="the teacher always runs on batches of exactly this size")
    seed: Seed = Field(description="seed of the augmented views")


class Finetune(Training):
    """Fine-tuning of the distilled student on the labels alone; `epochs=0` keeps it as it is."""


class Device(Section):
    name: str = Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        description="number format of the network's work"
    )
    workers: int = Field(ge=0, description="processes that decode image files; 0: none")
    threads: int | None = Field(ge=1, description="CPU threads; null: PyTorch's choice")
    compile: bool = Field(description="compile the networks with torch.compile")
    memory_gb: float = Field(ge=0, description="image folders up to this size, decoded, are kept in memory")


class Config(Section):
    """The whole config: one tree for all stages, so that every command computes the same keys."""

    stage: Stage
    runs: str = Field(min_length=1, description="folder for artifacts and run logs")
    force: bool = Field(description="make the stage's artifact again even when it is there")
    dataset: Dataset
    teacher: Model
    student: Model
    loss: Loss
    soft_targets: SoftTargets
    finetune: Finetune
    device: Device
