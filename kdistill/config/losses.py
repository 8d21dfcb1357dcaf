"""The `loss` section: one loss on logits with its weights, and any number of feature terms.

`alpha` weighs the labels and `beta` the teacher, in every method; `T` is the temperature. A method's own
weights have names of their own. Each field may say `null` only where its description says what that means.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from kdistill import plugins
from kdistill.config.features import Feature
from kdistill.config.section import PositiveValue, Ramp, Section, Value, largest, need_weight
from kdistill.errors import ConfigError, did_you_mean

# --- losses on logits ---


class _Loss(Section):
    kind: str
    features: dict[str, Feature] = Field(description="terms on features, by name: see the group feature")

    @property
    def weighs_features(self) -> bool:
        """Whether any feature term ever counts."""
        return any(largest(term.weight) for term in self.features.values())

    @property
    def soft_weight(self) -> float | Ramp:
        """Weight of the loss between student's and teacher's logits."""
        return 0.0

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's own settings, by the names that its function takes."""
        return self.model_dump(exclude={"kind", "alpha", "beta", "features"})


class _Teacherless(_Loss):
    """A control: it takes no terms that would bring a teacher in."""

    @model_validator(mode="after")
    def _stays_a_control(self) -> _Teacherless:
        if self.features:
            raise ValueError(
                f"{self.kind} is a control without a teacher and takes no feature term (got"
                f" {', '.join(self.features)}); use loss=features"
            )
        return self


class CELoss(_Teacherless):
    """CE(student, labels) alone: the control, which no teacher reaches."""

    kind: Literal["ce"]

    @property
    def alpha(self) -> float:
        return 1.0


class FeaturesLoss(_Loss):
    """alpha * CE(student, labels) + feature terms: nothing on the teacher's logits."""

    kind: Literal["features"]
    alpha: Value = Field(description="weight of the cross entropy with the labels, or {start,end,until}")

    @model_validator(mode="after")
    def _has_terms(self) -> FeaturesLoss:
        if not self.features:
            raise ValueError(
                "features has no feature term: choose some, for example feature=at or feature=[at,sp]"
            )
        if not (largest(self.alpha) or self.weighs_features):
            raise ValueError("alpha and the weights of all features are 0: there is nothing to learn from")
        return self


class LogitLoss(_Loss):
    """alpha * CE(student, labels) + beta * a loss on logits."""

    alpha: Value = Field(description="weight of the cross entropy with the labels, or {start,end,until}")
    beta: Value = Field(description="weight of the loss on logits, or {start,end,until}")

    @model_validator(mode="after")
    def _learns(self) -> LogitLoss:
        if not (largest(self.alpha) or largest(self.soft_weight) or self.weighs_features):
            raise ValueError("alpha and beta are both 0: there is nothing to learn from")
        return self

    @property
    def soft_weight(self) -> float | Ramp:
        return self.beta


class _WithT(LogitLoss):
    T: PositiveValue = Field(
        description="temperature: both sets of logits are divided by it; or {start,end,until}"
    )


class _Standardisable(_WithT):
    standardise: bool = Field(description="z-score each sample's logits before T (logit standardisation)")


class KDLoss(_Standardisable):
    """alpha * CE(student, labels) + beta * T^2 * KL(teacher at T || student at T)."""

    kind: Literal["kd"]
    beta: Value | None = Field(  # type: ignore[assignment]
        description="weight of the soft term, or {start,end,until}; null: 1 - alpha"
    )

    @model_validator(mode="after")
    def _beta_null(self) -> KDLoss:
        if self.beta is None and largest(self.alpha) > 1:
            raise ValueError(
                f"beta=null means 1 - alpha, so alpha must be at most 1 (got {largest(self.alpha):g}); set loss.beta"
            )
        return self

    @property
    def soft_weight(self) -> float | Ramp:
        """`beta`, with null read as `1 - alpha`."""
        if self.beta is not None:
            return self.beta
        if isinstance(self.alpha, Ramp):
            return Ramp(start=1 - self.alpha.start, end=1 - self.alpha.end, until=self.alpha.until)
        return 1 - self.alpha


class DivergenceLoss(_WithT):
    """Other distances between the two softmaxes at T than KD's."""

    kind: Literal["reverse_kl", "js", "soft_ce"]


class UntemperedLoss(LogitLoss):
    """Losses that know no temperature."""

    kind: Literal["logit_mse", "hard_label"]


class DKDLoss(_Standardisable):
    kind: Literal["dkd"]
    tckd_weight: float = Field(ge=0, description="weight of the target class against all others")
    nckd_weight: float = Field(ge=0, description="weight of the classes that are not the target")

    @model_validator(mode="after")
    def _weighs_something(self) -> DKDLoss:
        return need_weight(self, "tckd_weight", "nckd_weight")


class NKDLoss(_WithT):
    kind: Literal["nkd"]
    non_target_weight: float = Field(ge=0, description="weight of the normalised non-target term (gamma)")


class DISTLoss(_WithT):
    kind: Literal["dist"]
    inter_weight: float = Field(ge=0, description="weight of the correlation within each sample")
    intra_weight: float = Field(ge=0, description="weight of the correlation within each class")

    @model_validator(mode="after")
    def _weighs_something(self) -> DISTLoss:
        return need_weight(self, "inter_weight", "intra_weight")


class MLKDLoss(LogitLoss):
    kind: Literal["mlkd"]
    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="temperatures that the terms are averaged over"
    )
    instance_weight: float = Field(ge=0, description="weight of the loss on each sample")
    batch_weight: float = Field(ge=0, description="weight of the correlation between samples")
    class_weight: float = Field(ge=0, description="weight of the correlation between classes")

    @model_validator(mode="after")
    def _weighs_something(self) -> MLKDLoss:
        return need_weight(self, "instance_weight", "batch_weight", "class_weight")


class TTMLoss(LogitLoss):
    kind: Literal["ttm", "wttm"]
    power: float = Field(gt=0, description="power that the teacher's probabilities are raised to (1/T)")


class OFALoss(_WithT):
    kind: Literal["ofa"]
    power: float = Field(gt=0, description="exponent of the target's enhanced probability (epsilon)")


class LabelSmoothingLoss(_Teacherless):
    """CE with smoothed labels alone: a control, which no teacher reaches."""

    kind: Literal["label_smoothing"]
    smoothing: float = Field(gt=0, lt=1, description="share of each label that is spread over all classes")

    @property
    def alpha(self) -> float:
        return 1.0


class TeacherFreeLoss(_WithT, _Teacherless):
    kind: Literal["teacher_free"]
    confidence: float = Field(gt=0, lt=1, description="the virtual teacher's probability of the label")


class MutualLoss(_WithT):
    """Two students that teach each other; no teacher."""

    kind: Literal["dml"]


class OwnLoss(_WithT):
    """A loss of the user's, registered by a trusted file."""

    kind: Literal["own"]
    name: str = Field(description="name that the loss was registered under")
    params: dict[str, bool | int | float | str] = Field(description="the loss's own parameters")

    @field_validator("params")
    @classmethod
    def _typed_like_the_defaults(
        cls, params: dict[str, bool | int | float | str], info: ValidationInfo
    ) -> dict[str, bool | int | float | str]:
        """`power=1` is the same loss as `power=1.0`."""
        registered = plugins.losses().get(info.data.get("name", ""))
        floats = (
            [name for name, value in registered.params.items() if type(value) is float] if registered else []
        )
        return {
            name: float(value) if type(value) is int and name in floats else value
            for name, value in params.items()
        }

    @model_validator(mode="after")
    def _registered(self) -> OwnLoss:
        try:
            known = plugins.find(self.name).params
        except ConfigError as ex:
            raise ValueError(str(ex)) from None
        for name in self.params:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(
                    f"{self.name} has no parameter {name!r}.{hint} It has: {', '.join(known) or 'none'}"
                )
        return self


LogitLosses = (
    KDLoss
    | DivergenceLoss
    | UntemperedLoss
    | DKDLoss
    | NKDLoss
    | DISTLoss
    | MLKDLoss
    | TTMLoss
    | OFALoss
    | TeacherFreeLoss
    | MutualLoss
    | OwnLoss
)
Loss = Annotated[CELoss | LabelSmoothingLoss | FeaturesLoss | LogitLosses, Field(discriminator="kind")]
