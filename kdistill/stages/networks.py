"""Networks for a data set: built as a section of the config says, or read, and how they are shown its images."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from kdistill.artifacts import Artifact
from kdistill.config.schema import Model
from kdistill.data import Data, InputView
from kdistill.errors import ConfigError, ModelError
from kdistill.interface import Interface
from kdistill.models import Classifier, build_classifier, fit_state, load_state, multiply_adds, rebuild
from kdistill.stages.given import Role


def new_network(role: Role, section: Model, data: Data, shown: InputView) -> Classifier:
    """A network with random, published or the user's weights, on the CPU; `shown` is what it sees of the data's images.

    Raises `ModelError` as `build_classifier` does, and `ConfigError` for a normalisation of other channels or for
    convolutions over rows of numbers.
    """
    channels, image_size = shown.shape(data.channels, data.image_size)
    mean, std = (shown.of_channels(values) for values in (data.mean, data.std))
    network = build_classifier(
        section.name,
        section.params,
        classes=len(data.classes),
        channels=channels,
        image_size=image_size,
        mean=mean,
        std=std,
        weights=section.weights,
    )
    if not data.is_images and any(isinstance(module, nn.Conv2d) for module in network.modules()):
        raise ConfigError(
            f"{role}={section.name} looks for patterns in images, and this data set has rows of numbers:"
            f" use {role}=mlp, as experiment=diabetes does"
        )
    if section.mean is not None and section.std is not None:
        if len(section.mean) != len(network.mean):
            raise ConfigError(
                f"{role}.mean has {len(section.mean)} channels, {section.name} takes {len(network.mean)} here"
            )
        network = Classifier(network.net, section.mean, section.std)
    if (channels, image_size) != (data.channels, data.image_size):
        network.view = shown
    return network


def stored_network(artifact: Artifact) -> Classifier:
    """The network of a finished artifact, on the CPU, its weights verified against their checksum.

    Draws random numbers. Raises `ModelError` where there is no network in it.
    """
    network = rebuild(description(artifact))
    path = artifact.file("model.safetensors")
    fit_state(network.net, load_state(path), str(path))
    return network


def interface_of(artifact: Artifact) -> Interface:
    """What the network of a finished artifact takes and gives; raises `ModelError` where there is none in it."""
    return Interface.read(description(artifact), str(artifact.folder))


def description(artifact: Artifact) -> dict[str, Any]:
    """The `model.json` of a finished artifact; raises `ModelError` where there is none in it."""
    if "model.json" not in artifact.manifest["files"]:
        raise ModelError(
            f"{artifact.folder} holds no network: it is an artifact of kind {artifact.manifest['kind']} without"
            " model.json. Expected the folder of a teacher, student or finetuned network"
        )
    about: dict[str, Any] = json.loads(artifact.file("model.json").read_text())
    return about


def size_of(section: Model, data: Data, shown: InputView) -> float:
    """Multiply-adds of the network for one image of the data."""
    channels, image_size = shown.shape(data.channels, data.image_size)
    classes = len(data.classes)
    return multiply_adds(
        section.name, section.params, classes=classes, channels=channels, image_size=image_size
    )


def view_for(channels: int, image_size: tuple[int, int], data: Data, dataset: str) -> InputView | None:
    """How a network that was made for such images is shown this data's; raises `ModelError` where it cannot be."""
    theirs, ours = (channels, image_size), (data.channels, data.image_size)
    if theirs == ours:
        return None
    if channels not in (1, 3) or ours[0] not in (1, 3) or image_size[0] != image_size[1]:
        raise ModelError(
            f"a network for images of {channels} x {image_size[0]} x {image_size[1]} cannot be shown those of"
            f" {dataset}, {ours[0]} x {ours[1][0]} x {ours[1][1]}"
        )
    size = image_size[0] if image_size != ours[1] else None
    return InputView(size=size, grey=channels == 1 and ours[0] == 3)
