"""Names and parameters of the architectures, without torch: what the schema checks and `list` shows.

`kdistill.models.build` maps the same names to builders; a test keeps the two tables equal.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdistill.errors import did_you_mean


class Params(BaseModel):
    """Parameters of an architecture; a field left out takes the architecture's own default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ResNetParams(Params):
    width: int | None = Field(
        None, ge=1, description="channels of the first stage (later stages: x2, x4, ...)"
    )


class MLPParams(Params):
    hidden: list[Annotated[int, Field(ge=1)]] = Field([256, 256], description="units of each hidden layer")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after each hidden layer")


class CNNParams(Params):
    channels: list[Annotated[int, Field(ge=1)]] = Field(
        [16, 32], min_length=1, description="channels of each strided 3x3 convolution"
    )


class ExternalParams(Params):
    """torchvision's and timm's builders take keyword arguments of their own; those are passed on."""

    model_config = ConfigDict(extra="allow", frozen=True)


class EnsembleParams(Params):
    members: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name of each member -> its settings, where they are not the teacher's"
    )
    average: Literal["probabilities", "logits"] = Field(
        "probabilities", description="what is averaged: the probabilities at T, or the logits"
    )
    weights: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description="weight of each member by name; null: all alike"
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> EnsembleParams:
        if self.weights is not None and self.weights.keys() != self.members.keys():
            raise ValueError(
                f"weights name {', '.join(self.weights)}, but the members are {', '.join(self.members)}"
            )
        return self


class FileParams(Params):
    values: Literal["logits", "probabilities"] = Field("logits", description="what the file holds")


#: name -> (parameter schema, one line for `kdistill list`)
MODELS: dict[str, tuple[type[Params], str]] = {
    "cnn": (CNNParams, "strided 3x3 convolutions, global average pooling, a linear head"),
    "mlp": (MLPParams, "fully connected layers on the flattened image"),
    **{
        f"resnet{depth}": (ResNetParams, f"CIFAR-style ResNet of {depth} layers, 16-32-64 channels")
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    "resnet8x4": (ResNetParams, "CIFAR-style ResNet of 8 layers, 64-128-256 channels"),
    "resnet32x4": (ResNetParams, "CIFAR-style ResNet of 32 layers, 64-128-256 channels"),
    "resnet18": (ResNetParams, "ResNet of 18 layers with a CIFAR stem, 64-128-256-512 channels"),
    "resnet34": (ResNetParams, "ResNet of 34 layers with a CIFAR stem, 64-128-256-512 channels"),
    **{
        f"wrn_{depth}_{widen}": (ResNetParams, f"WideResNet of {depth} layers, {widen} times as wide")
        for depth, widen in ((16, 1), (16, 2), (16, 4), (28, 10), (40, 1), (40, 2), (40, 4))
    },
}
#: prefix -> (parameter schema, one line)
FAMILIES: dict[str, tuple[type[Params], str]] = {
    "torchvision": (ExternalParams, "any torchvision classifier, for example torchvision/mobilenet_v3_small"),
    "timm": (
        ExternalParams,
        "any timm classifier, for example timm/efficientnet_b0 (needs the extra 'timm')",
    ),
}
#: teachers that are no network of their own: name -> (parameter schema, one line)
SOURCES: dict[str, tuple[type[Params], str]] = {
    "ensemble": (EnsembleParams, "several teachers, averaged (teacher only)"),
    "folder": (Params, "a trained network in teacher.weights=FOLDER, with classes of its own (teacher only)"),
    "file": (FileParams, "logits or probabilities by sample in teacher.weights=FILE (teacher only)"),
}
ESTIMATORS = {
    "sklearn": (
        ExternalParams,
        "any scikit-learn classifier or regressor, for example sklearn/RandomForestClassifier (teacher only)",
    ),
}


def kind_of(name: str) -> str:
    """What a name stands for: `network`, `ensemble`, `estimator`, `folder` or `file`."""
    if name in SOURCES:
        return name
    return "estimator" if name.partition("/")[0] in ESTIMATORS else "network"


def params_schema(name: str) -> type[Params]:
    """Return the parameter schema of an architecture; `ValueError` with near matches if unknown."""
    family, _, rest = name.partition("/")
    if rest and family in FAMILIES | ESTIMATORS:
        return (FAMILIES | ESTIMATORS)[family][0]
    if name in MODELS | SOURCES:
        return (MODELS | SOURCES)[name][0]
    raise ValueError(
        f"no model {name!r}.{did_you_mean(name, MODELS)} `kdistill list models` shows all;"
        " torchvision's are named torchvision/NAME, timm's timm/NAME"
    )


def check_params(name: str, params: dict[str, Any]) -> Params:
    """Check `params` against the architecture `name` and return them typed; raises `ValueError`."""
    schema = params_schema(name)
    try:
        return schema.model_validate(params)
    except ValidationError as ex:
        problem = ex.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            description = schema.model_fields[key].description
            raise ValueError(f"{name} needs params.{key}: {description}") from None
        if problem["type"] == "extra_forbidden":
            known = ", ".join(schema.model_fields) or "none"
            hint = did_you_mean(key, schema.model_fields)
            raise ValueError(f"{name} has no parameter {key!r}.{hint} It has: {known}") from None
        text = problem["msg"].removeprefix("Value error, ")
        if not key:
            raise ValueError(f"params: {text}") from None
        raise ValueError(f"params.{key}={problem['input']}: {text[0].lower()}{text[1:]}") from None
