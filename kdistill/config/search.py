"""What `kdistill tune` varies (the group `search`) and how it goes about it (`tune`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdistill.config.section import Section, Seed

#: a value of a setting, or the name of a config group's option
Scalar = bool | int | float | str | None


class _Interval(Section):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ascends(self) -> _Interval:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        return self

    @property
    def samples(self) -> list[Scalar]:
        """Values that stand for all others where they are checked."""
        return [self.low, self.high]


class FloatRange(_Interval):
    type: Literal["float"] = Field(description="numbers between two ends")
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


class LogRange(_Interval):
    """Every factor is as likely as every other of its size: 1 to 4 as often as 4 to 16."""

    type: Literal["log"] = Field(description="numbers between two ends, by their logarithm")
    low: float = Field(gt=0, description="smallest value, greater than 0")
    high: float = Field(description="largest value")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, log"


class IntRange(_Interval):
    type: Literal["int"] = Field(description="whole numbers between two ends")
    low: int = Field(description="smallest value")
    high: int = Field(description="largest value")

    def __str__(self) -> str:
        return f"{self.low} to {self.high}, whole"


class Choice(Section):
    """Values of a setting, or options of a config group."""

    type: Literal["choice"] = Field(description="one of several")
    choices: list[Scalar] = Field(min_length=1, description="values, or options of a config group")

    @model_validator(mode="after")
    def _distinct(self) -> Choice:
        texts = [str(choice) for choice in self.choices]
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise ValueError(f"{twice} is there twice")
        return self

    @property
    def samples(self) -> list[Scalar]:
        return self.choices

    def __str__(self) -> str:
        return ", ".join(map(str, self.choices))


Range = Annotated[FloatRange | LogRange | IntRange | Choice, Field(discriminator="type")]


class Tune(Section):
    """A study: how many trials of the search, which ones, and what they are judged by."""

    name: str | None = Field(
        pattern=r"^\w[\w.-]*$",
        description="letters, digits, _, - and . after the first one; null: a name made from the settings",
    )
    trials: int = Field(ge=1, description="trials in total, those of earlier starts included")
    minutes: float | None = Field(gt=0, description="no trial is begun later than this; null: no limit")
    workers: int = Field(ge=1, description="processes that run trials at the same time")
    sampler: Literal["tpe", "random"] = Field(description="tpe: learns from the trials before; or random")
    seed: Seed = Field(description="seed of the sampler")
    pruner: Literal["median", "hyperband", "none"] | None = Field(
        description="what ends a bad trial early; null: median, and none with `against`"
    )
    metric: str | None = Field(description="validation score to be best; null: the task's own, such as top1")
    against: Literal["parameters", "bytes", "flops", "latency"] | None = Field(
        description="what is to be small besides: the result is a Pareto front; null: nothing"
    )
    final: bool = Field(description="judge the best student on the test split at the end")

    @model_validator(mode="after")
    def _fits_together(self) -> Tune:
        if self.against is not None and self.pruner not in (None, "none"):
            raise ValueError(
                f"pruner={self.pruner} needs one score to end a trial by, and against={self.against} makes it two:"
                " take out tune.pruner or tune.against"
            )
        if self.against == "latency" and self.workers > 1:
            raise ValueError(
                f"workers={self.workers} would slow each other down while latency is measured: take out tune.workers,"
                " or use tune.against=flops"
            )
        return self

    @property
    def prunes(self) -> str:
        """The pruner that is meant."""
        return self.pruner or ("none" if self.against else "median")


def flat(node: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """Ranges by the dotted key of their setting: what is no mapping in a mapping belongs to its range.

    >>> flat({"loss": {"type": "choice", "choices": ["kd", "dkd"], "T": {"type": "int"}}})
    {'loss': {'type': 'choice', 'choices': ['kd', 'dkd']}, 'loss.T': {'type': 'int'}}
    """
    own = {name: value for name, value in node.items() if not isinstance(value, Mapping)}
    found: dict[str, Any] = {key: own} if key and own else own
    for name, value in node.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}.{name}".lstrip("."))
    return found
