"""A network by name: kdistill's own, torchvision's and timm's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kdistill.config.models import FAMILIES, check_params
from kdistill.errors import ModelError, did_you_mean, first_line
from kdistill.models import cnn, external, mlp, resnet, wrn
from kdistill.models.weights import load_weights

#: name -> `build(name, params, *, classes, channels, image_size)`; each module's source is self-contained
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    **dict.fromkeys(cnn.NAMES, cnn.build),
    **dict.fromkeys(mlp.NAMES, mlp.build),
    **dict.fromkeys(resnet.NAMES, resnet.build),
    **dict.fromkeys(wrn.NAMES, wrn.build),
}


def build_network(
    name: str,
    params: Mapping[str, Any],
    *,
    classes: int,
    channels: int,
    image_size: tuple[int, int],
    weights: str | None = None,
) -> nn.Module:
    """Build a plain network: float images `[N, C, H, W]` -> logits `[N, K]`, on the CPU, in training mode.

    `weights` is None for random ones, drawn from torch's global generator, "DEFAULT" for published ones
    under a new head, or a file's path. C is `input_channels(name, channels)`. Raises `ModelError` for an
    unknown name or parameter, weights that cannot be had or do not fit, and images that are too small.
    """
    check_name(name)
    if name in BUILDERS:
        if weights == "DEFAULT":
            raise ModelError(f"{name} has no published weights. Expected weights=null or weights=PATH")
        typed = complete_params(name, params)
        net = BUILDERS[name](name, typed, classes=classes, channels=channels, image_size=image_size)
        if weights is not None:
            load_weights(net, weights)
    else:
        net = external.build(
            name, params, classes=classes, channels=channels, image_size=image_size, weights=weights
        )
    _dry_forward(net, name, classes, input_channels(name, channels), image_size)
    return net


def multiply_adds(
    name: str, params: Mapping[str, Any], *, classes: int, channels: int, image_size: tuple[int, int]
) -> float:
    """Multiply-adds of the forward pass for one image: of convolutions and linear layers, which are most of them.

    Arguments and errors as in `build_network`. Not by torch's own counter, which loads torch's compiler: more
    than a second at every start.
    """
    counts: list[int] = []

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(module.weight, torch.Tensor)
        counts.append(output.numel() * module.weight[0].numel())  # each output is a sum over one filter

    with torch.random.fork_rng(devices=[]):
        net = build_network(name, params, classes=classes, channels=channels, image_size=image_size).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, input_channels(name, channels), *image_size))
    return sum(counts)


def check_name(name: str) -> None:
    """Raise `ModelError` with near matches for a name that no builder has."""
    if name in BUILDERS:
        return
    family, _, rest = name.partition("/")
    if family in FAMILIES:
        external.check_name(name)
    elif rest:
        raise ModelError(
            f"no model {name!r}: unknown family {family!r}.{did_you_mean(family, FAMILIES)}"
            f" Expected {' or '.join(f'{known}/NAME' for known in FAMILIES)}"
        )
    elif name in external.torchvision_names():
        raise ModelError(f"no model {name!r}. Did you mean 'torchvision/{name}'?")
    else:
        raise ModelError(f"no model {name!r}.{did_you_mean(name, BUILDERS)} `kdistill list models` shows all")


def complete_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Check an architecture's parameters and fill in its defaults; raises `ModelError`."""
    try:
        return check_params(name, dict(params)).model_dump()
    except ValueError as ex:
        raise ModelError(str(ex)) from None


def input_channels(name: str, channels: int) -> int:
    """How many channels the network takes for data of `channels`: torchvision's take grey images as three."""
    return 3 if name.startswith("torchvision/") and channels == 1 else channels


def normalisation(
    name: str, weights: str | None, channels: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Mean and std per input channel of the network, for pixels in [0, 1].

    Published weights bring their own; otherwise the data's `mean` and `std` are used, those of grey images
    repeated where the network takes colour.
    """
    if weights == "DEFAULT" and name not in BUILDERS:
        published = external.published_normalisation(name, channels)
        if published is not None:
            return published
    repeats = input_channels(name, channels) // len(mean)
    return list(mean) * repeats, list(std) * repeats


def _dry_forward(net: nn.Module, name: str, classes: int, channels: int, image_size: tuple[int, int]) -> None:
    """Try the network on two black images; it is left as it was, and so is the random generator."""
    height, width = image_size
    net.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = net(torch.zeros(2, channels, height, width))
    except Exception as ex:  # other people's networks: what they raise for a small image differs
        raise ModelError(
            f"{name} cannot take {height} x {width} images: {first_line(ex)}."
            " Choose a network that takes any size (such as resnet20, wrn_16_2, cnn), or larger images"
            " (an image folder's dataset.image_size)"
        ) from ex
    finally:
        net.train()
    shape = tuple(getattr(logits, "shape", ()))
    if shape != (2, classes):
        raise ModelError(
            f"{name} gives an output of shape {list(shape)} for 2 images; expected logits [2, {classes}]"
        )
