"""The optimizer's part of the schema: mounted at teacher.optim, student.optim and finetune.optim."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from kdistill.config.section import Section


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
