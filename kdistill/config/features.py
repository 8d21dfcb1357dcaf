"""The terms of `loss.features`: one section for each method on features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdistill.config.section import Section, Value, need_weight


class LayerPair(Section):
    student: str = Field(description="name of a layer of the student; NAME@in: what goes into it")
    teacher: str = Field(description="name of a layer of the teacher; NAME@in: what goes into it")


class _Feature(Section):
    weight: Value = Field(description="weight of the term, or {start,end,until}")
    layers: list[LayerPair] | None = Field(
        min_length=1,
        description="pairs of layers, such as [{student:stages.1,teacher:stages.1}]; null: proposed",
    )


class PlainFeature(_Feature):
    """Methods without settings of their own."""

    kind: Literal["hint", "sp", "pkt", "nst", "review_kd"]


class AttentionTransfer(_Feature):
    kind: Literal["at"]
    p: float = Field(ge=1, description="power of the activations that make the attention map")


class RKD(_Feature):
    kind: Literal["rkd"]
    distance_weight: float = Field(ge=0, description="weight of the distances between pairs of samples")
    angle_weight: float = Field(ge=0, description="weight of the angles in triples of samples")

    @model_validator(mode="after")
    def _weighs_something(self) -> RKD:
        return need_weight(self, "distance_weight", "angle_weight")


class VID(_Feature):
    kind: Literal["vid"]
    initial_variance: float = Field(gt=0, description="variance of each channel at the start")


class CRD(_Feature):
    kind: Literal["crd"]
    negatives: int = Field(ge=1, description="other samples that each sample is contrasted with")
    T: float = Field(gt=0, description="temperature of the contrast (not the loss's T)")
    momentum: float = Field(ge=0, lt=1, description="how much of a bank's old entry is kept")
    dim: int = Field(ge=1, description="size of the embedding")


class SimKD(_Feature):
    kind: Literal["simkd"]
    factor: int = Field(ge=1, description="how many times narrower the projector is than the teacher's map")


Feature = Annotated[
    PlainFeature | AttentionTransfer | RKD | VID | CRD | SimKD,
    Field(discriminator="kind"),
]
