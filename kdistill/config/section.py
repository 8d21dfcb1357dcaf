"""What every section of the schema is built from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of the config: immutable, no unknown keys, no nan or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Ramp(Section):
    """A number that goes in a straight line from `start` to `end`, and stays there.

    It changes from epoch to epoch and reaches `end` after the share `until` of all epochs: with 240 epochs
    and `until=1/12`, epoch `e` (counted from 1) has `start + (end - start) * min(1, e / 20)`.
    """

    start: float = Field(ge=0, description="value at the start of the training")
    end: float = Field(ge=0, description="value from `until` on")
    until: float = Field(gt=0, le=1, description="share of the training after which it stays at `end`")


def _tag(value: Any) -> str:
    return "ramp" if isinstance(value, Mapping | Ramp) else "number"


class PositiveRamp(Ramp):
    start: float = Field(gt=0, description="value at the start of the training")
    end: float = Field(gt=0, description="value from `until` on")


#: a number of at least 0, or one that changes during the training
Value = Annotated[
    Annotated[Annotated[float, Field(ge=0)], Tag("number")] | Annotated[Ramp, Tag("ramp")],
    Discriminator(_tag),
]
PositiveValue = Annotated[
    Annotated[Annotated[float, Field(gt=0)], Tag("number")] | Annotated[PositiveRamp, Tag("ramp")],
    Discriminator(_tag),
]


def at(value: float | Ramp, progress: float) -> float:
    """The value after the share `progress` of the training, in (0, 1]."""
    if isinstance(value, Ramp):
        return value.start + (value.end - value.start) * min(1.0, progress / value.until)
    return value


def largest(value: float | Ramp) -> float:
    """The largest value that is reached in training: 0 means never."""
    return max(value.start, value.end) if isinstance(value, Ramp) else value


AnySection = TypeVar("AnySection", bound=Section)


def need_weight(section: AnySection, *names: str) -> AnySection:
    """Raise `ValueError` for a method of several parts of which none counts."""
    if not any(getattr(section, name) for name in names):
        raise ValueError(f"{', '.join(names[:-1])} and {names[-1]} are all 0: nothing of the method is left")
    return section
