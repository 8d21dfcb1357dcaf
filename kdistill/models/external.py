"""torchvision's and timm's classifiers by name: `torchvision/resnet18`, `timm/efficientnet_b0`.

Both libraries are imported on use: torchvision takes seconds and timm is an extra. What is built depends on
the name and the parameters, not on the weights, so a stored state always fits a network built anew.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kdistill.errors import ModelError, did_you_mean, first_line
from kdistill.models.weights import fit_state, load_weights

log = logging.getLogger("kdistill")

#: these two renormalise their input when they have published weights; kdistill leaves that to the Classifier
_RENORMALISING = ("googlenet", "inception_v3")
#: what the builders know about weights: those come by `weights` alone, where their file is checked
_ABOUT_WEIGHTS = (
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "progress",
    "weights",
)


def build(
    name: str,
    params: Mapping[str, Any],
    *,
    classes: int,
    channels: int,
    image_size: tuple[int, int],
    weights: str | None,
) -> nn.Module:
    """Build `family/name`; see `kdistill.models.build.build_network`."""
    family, _, rest = name.partition("/")
    keywords = arguments(name, params, classes=classes, channels=channels, image_size=image_size)
    if family == "timm":
        return _timm_network(name, keywords, weights)
    from torchvision import models

    if weights == "DEFAULT":
        _check_published(name, image_size)
    net = _call(name, models.get_model, rest, weights=None, **keywords)
    if weights == "DEFAULT":
        _load_published(net, rest, classes)
    elif weights is not None:
        load_weights(net, weights, rename=_current_keys)
    return net


def check_name(name: str) -> None:
    """Raise `ModelError` with near matches for a name that the family does not have."""
    family, _, rest = name.partition("/")
    if family == "timm":
        timm = _timm(name)
        known, names = timm.is_model(rest), timm.list_models
    else:
        known, names = rest in torchvision_names(), torchvision_names
    if not known:
        raise ModelError(f"{family} has no classifier {rest!r}.{did_you_mean(rest, names())}")


def torchvision_names() -> list[str]:
    """All of torchvision's image classifiers."""
    from torchvision import models

    return models.list_models(module=models)


def arguments(
    name: str, params: Mapping[str, Any], *, classes: int, channels: int, image_size: tuple[int, int]
) -> dict[str, Any]:
    """All keyword arguments of the library's builder: what kdistill sets, and the user's `params`."""
    if about := sorted(params.keys() & set(_ABOUT_WEIGHTS)):
        raise ModelError(
            f"{name}: params.{about[0]} cannot be set, kdistill sets it itself:"
            " use teacher.weights=FILE, or student.weights=FILE"
        )
    family, _, rest = name.partition("/")
    fixed: dict[str, Any] = {"num_classes": classes}
    if family == "timm":
        fixed["in_chans"] = channels
        published = _timm(name).get_pretrained_cfg(rest)
        if published is not None and published.fixed_input_size:
            fixed["img_size"] = list(image_size)
    else:
        fixed |= _torchvision_arguments(name, channels, image_size)
    if clash := sorted(fixed.keys() & params.keys()):
        raise ModelError(f"{name}: params.{clash[0]} cannot be set, kdistill sets it itself")
    return {**fixed, **params}


def published_normalisation(name: str, channels: int) -> tuple[list[float], list[float]] | None:
    """Mean and std that the published weights were trained with, without downloading them; None if none."""
    family, _, rest = name.partition("/")
    if family == "timm":
        published = _timm(name).get_pretrained_cfg(rest)
        if published is None:
            return None
        mean, std = list(published.mean), list(published.std)
        if channels == 1:  # timm sums the published filters over the colours: the mean colour stands for grey
            mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
        return mean, std
    if rest in _RENORMALISING:
        return [0.5] * 3, [0.5] * 3
    from torchvision import models

    transforms = models.get_model_weights(rest).DEFAULT.transforms()
    return list(transforms.mean), list(transforms.std)


def _torchvision_arguments(name: str, channels: int, image_size: tuple[int, int]) -> dict[str, Any]:
    rest = name.partition("/")[2]
    height, width = image_size
    if channels not in (1, 3):
        raise ModelError(f"{name} takes grey or colour images; the data has {channels} channels")
    if rest in _RENORMALISING:
        return {"aux_logits": False, "transform_input": False, "init_weights": True}
    if rest.startswith("vit_"):
        if height != width:
            raise ModelError(f"{name} takes square images; the data has {height} x {width}")
        return {"image_size": height}
    if rest.startswith("maxvit_"):
        return {"input_size": [height, width]}
    return {}


def _call(name: str, builder: Callable[..., nn.Module], *args: Any, **keywords: Any) -> nn.Module:
    """Call a library's builder; what it says about its arguments becomes a `ModelError`."""
    try:
        return builder(*args, **keywords)
    except (TypeError, ValueError, AssertionError) as ex:
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(ex)):
            raise ModelError(f"{name} has no parameter {unknown[1]!r}: its builder does not take it") from ex
        raise ModelError(f"{name} cannot be built so: {first_line(ex)}") from ex


def _check_published(name: str, image_size: tuple[int, int]) -> None:
    """A vision transformer's positions are learned for one size of image."""
    from torchvision import models

    rest = name.partition("/")[2]
    expected = tuple(models.get_model_weights(rest).DEFAULT.meta["min_size"])
    if rest.startswith(("vit_", "maxvit_")) and expected != tuple(image_size):
        raise ModelError(
            f"the published weights of {name} are for {expected[0]} x {expected[1]} images; the data has"
            f" {image_size[0]} x {image_size[1]}. Set an image folder's dataset.image_size={expected[0]},"
            " or weights=null"
        )


def _load_published(net: nn.Module, rest: str, classes: int) -> None:
    """Fill a torchvision network with its published weights; a head for other classes stays new."""
    from torchvision import models

    weights = models.get_model_weights(rest).DEFAULT
    file = weights.url.rsplit("/", 1)[-1]
    try:
        # torchvision's own loading would unpickle whatever lies in the cache folder
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError) as ex:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelError(
            f"cannot download the published weights of torchvision/{rest}: {first_line(ex)}."
            f" Place {file} in {folder}, or set weights=PATH of a state dict for {classes} classes,"
            " or weights=null"
        ) from ex
    own, state = net.state_dict(), _current_keys(state)
    published = len(weights.meta["categories"])
    head = [
        key
        for key, tensor in state.items()
        if key in own and tensor.shape != own[key].shape == (classes, *tensor.shape[1:])
        if len(tensor) == published
    ]
    fit_state(net, {**state, **{key: own[key] for key in head}}, file)
    new = f"; new for {classes} classes: {', '.join(head)}" if head else ""
    log.info("weights: %d of %d keys from %s%s", len(own) - len(head), len(own), file, new)


def _current_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop auxiliary heads (GoogLeNet, Inception); rename what old DenseNet files call `norm.1`."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): tensor
        for key, tensor in state.items()
        if not re.search(r"(^|\.)(aux1|aux2|AuxLogits)\.", key)
    }


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError as ex:
        raise ModelError(f"{name} needs the extra 'timm': pip install 'kdistill[timm]'") from ex
    return timm


def _timm_network(name: str, keywords: dict[str, Any], weights: str | None) -> nn.Module:
    create, rest = _timm(name).create_model, name.partition("/")[2]
    if weights != "DEFAULT":
        net = _call(name, create, rest, pretrained=False, **keywords)
        if weights is not None:
            load_weights(net, weights)
        return net
    try:
        return _call(name, create, rest, pretrained=True, **keywords)
    except (OSError, RuntimeError) as ex:
        raise ModelError(
            f"cannot get the published weights of {name}: {first_line(ex)}."
            f" Set weights=PATH of a state dict for {keywords['num_classes']} classes, or weights=null"
        ) from ex
