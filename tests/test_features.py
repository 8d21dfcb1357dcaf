"""Tapping layers by name, and finding those that are worth tapping, in networks of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdistill.errors import ConfigError
from kdistill.features import Layer, all_layers, candidates, check_layer, observe
from kdistill.models import build_classifier
from kdistill.models.classifier import Classifier


def network(name: str, size: tuple[int, int] = (16, 16), **params: Any) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(name, params, classes=5, channels=1, image_size=size, mean=[0.5], std=[0.3])


def images(size: tuple[int, int] = (16, 16), channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, channels, *size), generator=generator, dtype=torch.uint8)


def wrapped(net: nn.Module) -> Classifier:
    return Classifier(net, [0.5], [0.3])


def hooks_left(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# --- observe ---


def test_features_are_what_the_layers_give() -> None:
    """The named stage's output, what goes into the head, and the logits, as running the parts by hand gives."""
    model = network("resnet8").eval()
    with torch.no_grad():
        seen = observe(model, images(), ["stages.1", "head@in"])
        x = (images().float() / 255 - 0.5) / 0.3
        stage = model.net.stages[:2](model.net.stem(x))
        embedding = model.net.pool(model.net.stages[2](stage))
        logits = model(images())
    assert list(seen.features) == ["stages.1", "head@in"]
    assert torch.equal(seen.features["stages.1"], stage)
    assert torch.equal(seen.features["head@in"], embedding)
    assert torch.equal(seen.logits, logits)


def test_nothing_is_left_behind() -> None:
    """Hooks live for one call, also when the network fails."""
    model = network("resnet8")
    observe(model, images(), ["stages.1", "head@in"])
    assert hooks_left(model) == 0
    with pytest.raises(RuntimeError):
        observe(model, images(channels=2), ["stages.1", "head@in"])
    assert hooks_left(model) == 0


def test_without_layers_it_is_a_plain_call() -> None:
    """Any module will do, and there are no features."""
    seen = observe(nn.Linear(3, 2), torch.ones(4, 3), [])
    assert seen.logits.shape == (4, 2)
    assert seen.features == {}


def test_gradients_flow_through_features_and_batch_norm_learns() -> None:
    """A loss on a feature reaches the layers before it, and none behind; training mode stays."""
    model = network("resnet8").train()
    before = model.net.stem[1].running_mean.clone()
    observe(model, images(), ["stages.1"]).features["stages.1"].sum().backward()
    assert model.net.stem[0].weight.grad.abs().sum() > 0
    assert model.net.stages[2][0].conv1.weight.grad is None
    assert not torch.equal(model.net.stem[1].running_mean, before)


def test_features_under_autocast_are_in_its_type() -> None:
    """bfloat16 inside, float32 outside."""
    model = network("cnn").eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = observe(model, images(), ["stages.1", "head@in"])
    exact = observe(model, images(), ["stages.1"])
    assert low.features["stages.1"].dtype == low.features["head@in"].dtype == torch.bfloat16
    assert torch.allclose(low.features["stages.1"].float(), exact.features["stages.1"], atol=0.1)


class Odd(nn.Module):
    """Runs a module twice, has one that gives a tuple, one that gives no tensor, and one that never runs."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[None, list[Tensor]]:
            return None, [x + 1, x + 2]

    class Text(nn.Module):
        def forward(self, *, word: str) -> str:
            return word

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.twice, self.unused, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.pair, self.text = Odd.Pair(), Odd.Text()

    def forward(self, x: Tensor) -> Tensor:
        self.text(word="x")
        h = self.twice(self.twice(self.flatten(x)))
        logits: Tensor = self.head(self.pair(x=h)[1][0])
        return logits


def test_a_module_that_runs_twice_gives_its_last_output() -> None:
    """Twice applied."""
    model = wrapped(Odd())
    pixels = torch.rand(3, 1, 2, 2)
    twice = model.net.twice
    expected = twice(twice(((pixels - 0.5) / 0.3).flatten(1)))
    assert torch.equal(observe(model, pixels, ["twice"]).features["twice"], expected)


def test_of_several_outputs_it_takes_the_first_tensor() -> None:
    """Also inside lists, behind None, and of inputs that are given by name."""
    seen = observe(wrapped(Odd()), torch.rand(3, 1, 2, 2), ["pair", "pair@in", "twice"]).features
    assert torch.equal(seen["pair"], seen["twice"] + 1)
    assert torch.equal(seen["pair@in"], seen["twice"])


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        ("text", "layer 'text' gives no tensor and cannot be tapped"),
        ("text@in", "layer 'text@in' gives no tensor and cannot be tapped"),
        ("unused", "layer 'unused' does not run: the network uses it otherwise, and it cannot be tapped"),
        ("twise", "network has no layer 'twise'. Did you mean 'twice'? `kdistill list layers` shows them"),
    ],
)
def test_layers_that_cannot_be_tapped(layer: str, text: str) -> None:
    """One line that says why, and no hook left."""
    model = wrapped(Odd())
    with pytest.raises(ConfigError) as caught:
        observe(model, torch.rand(3, 1, 2, 2), ["twice", layer])
    assert str(caught.value) == text
    assert hooks_left(model) == 0


@pytest.mark.parametrize("inner", [False, True])
def test_a_compiled_network_is_refused(inner: bool) -> None:
    """Hooks added after compiling are ignored without a word; a compiled part counts. Looking needs no compiling."""
    model = network("cnn")
    holder = nn.Sequential()
    holder.net, holder.student = model.net, model
    (model if inner else holder).compile()
    with pytest.raises(ConfigError) as caught:
        observe(holder, images(), ["stages.1"])
    assert str(caught.value) == (
        "feature losses need device.compile=false: a compiled network does not show its layers"
    )
    assert [layer.name for layer in candidates(model, images())] == ["stages.0", "stages.1", "head@in"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "stage.1",
            "student has no layer 'stage.1'. Did you mean 'stages.1' or 'stages.0'?"
            " `kdistill list layers` shows them",
        ),
        ("zzz@in", "student has no layer 'zzz@in'. `kdistill list layers` shows them"),
        ("", "student has no layer ''. `kdistill list layers` shows them"),
    ],
)
def test_an_unknown_layer_is_told_with_near_matches(name: str, text: str) -> None:
    """The empty name, which torch gives the whole network, is no layer."""
    known = ["", "stages.0", "stages.1", "head"]
    check_layer("stages.1", known, "student")
    check_layer("head@in", known, "student")
    with pytest.raises(ConfigError) as caught:
        check_layer(name, known, "student")
    assert str(caught.value) == text


# --- candidates ---


@pytest.mark.parametrize(
    ("name", "params", "size", "expected"),
    [
        (
            "resnet20",
            {"width": 4},
            (16, 16),
            {"stages.0": (4, 16, 16), "stages.1": (8, 8, 8), "stages.2": (16, 4, 4), "head@in": (16,)},
        ),
        (
            "resnet8x4",
            {"width": 8},
            (16, 12),
            {"stages.0": (8, 16, 12), "stages.1": (16, 8, 6), "stages.2": (32, 4, 3), "head@in": (32,)},
        ),
        (
            "wrn_16_2",
            {"width": 4},
            (16, 16),
            {"stages.0": (8, 16, 16), "stages.1": (16, 8, 8), "norm": (32, 4, 4), "head@in": (32,)},
        ),
        ("cnn", {}, (8, 8), {"stages.0": (16, 4, 4), "stages.1": (32, 2, 2), "head@in": (32,)}),
        ("cnn", {"channels": [4]}, (8, 8), {"stages": (4, 4, 4), "head@in": (4,)}),
        ("mlp", {"hidden": [12, 7]}, (8, 8), {"stages.0": (12,), "stages.1": (7,), "head@in": (7,)}),
        ("mlp", {"hidden": []}, (8, 8), {"head@in": (64,)}),
        (
            "torchvision/resnet18",
            {},
            (64, 64),
            {
                "layer1": (64, 16, 16),
                "layer2": (128, 8, 8),
                "layer3": (256, 4, 4),
                "layer4": (512, 2, 2),
                "fc@in": (512,),
            },
        ),
        (
            "torchvision/mobilenet_v3_small",
            {},
            (64, 64),
            {
                "features.0": (16, 32, 32),
                "features.1": (16, 16, 16),
                "features.3": (24, 8, 8),
                "features.8": (48, 4, 4),
                "features.12": (576, 2, 2),
                "classifier.3@in": (1024,),
            },
        ),
        pytest.param(
            "torchvision/vit_b_16",
            {},
            (32, 32),
            {f"encoder.layers.encoder_layer_{i}": (5, 768) for i in (2, 5, 8, 11)}
            | {"heads.head@in": (768,)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "torchvision/densenet121",
            {},
            (64, 64),
            {
                "features.denseblock1": (256, 16, 16),
                "features.denseblock2": (512, 8, 8),
                "features.denseblock3": (1024, 4, 4),
                "features.norm5": (1024, 2, 2),
                "classifier@in": (1024,),
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "torchvision/convnext_tiny",
            {},
            (64, 64),
            {
                "features.1": (96, 16, 16),
                "features.3": (192, 8, 8),
                "features.5": (384, 4, 4),
                "features.7": (768, 2, 2),
                "classifier.2@in": (768,),
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(  # its blocks give [H, W, C], which are no maps
            "torchvision/swin_t",
            {},
            (64, 64),
            {"features.0.0": (96, 16, 16), "permute": (768, 2, 2), "head@in": (768,)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_stages_blocks_and_embedding(
    name: str, params: dict[str, Any], size: tuple[int, int], expected: dict[str, tuple[int, ...]]
) -> None:
    """Stages, not every convolution; four of twelve blocks; hidden layers after their activation; and X@in."""
    model = network(name, size, **params)
    found = candidates(model, images(size))
    assert {layer.name: layer.shape for layer in found} == expected
    assert [layer.name for layer in found] == list(expected)
    seen = observe(model, images(size), list(expected)).features
    assert {layer: tuple(feature.shape[1:]) for layer, feature in seen.items()} == expected


def test_pooled_points_count_only_where_the_stages_get_there() -> None:
    """32 x 32 images shrink to 1 x 1 in torchvision's ResNet: layer4 it is, and not the pool behind it."""
    found = candidates(network("torchvision/resnet18", (32, 32)), images((32, 32)))
    assert found[-2] == Layer("layer4", (512, 1, 1))


def test_maps_are_told_by_what_the_network_is_shown() -> None:
    """Wide images that a view makes square have square maps."""
    model = network("resnet8")
    model.view = lambda pixels: pixels[:, :, :, :16]
    found = candidates(model, images((16, 64)))
    assert [layer.name for layer in found] == ["stages.0", "stages.1", "stages.2", "head@in"]


def test_flat_networks_give_the_last_layer_of_each_resolution() -> None:
    """Nothing but single layers: the activation before each pool, and what the last pool gives."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 5),
    )
    found = candidates(wrapped(net), images())
    assert found == [
        Layer("1", (4, 16, 16)),
        Layer("4", (6, 8, 8)),
        Layer("5", (6, 4, 4)),
        Layer("7@in", (96,)),
    ]


def test_a_network_without_a_linear_head_has_no_embedding() -> None:
    """Logits that are pooled class maps come from no linear layer."""
    net = nn.Sequential(nn.Conv2d(1, 5, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [layer.name for layer in candidates(wrapped(net), images())] == ["1"]


class Noisy(nn.Module):
    """Draws a random number in every mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * torch.rand(())


@pytest.mark.parametrize("look", [candidates, all_layers])
def test_looking_changes_nothing(look: Any) -> None:
    """Weights, batch statistics, the random generator, gradients, hooks, and every module's own mode are as before."""
    model = network("resnet8").train()
    model.net.stem.append(Noisy())
    model.net.stages[0].eval()  # a user's frozen stage
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    look(model, images())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks_left(model) == 0


def test_all_layers_are_every_module_that_gives_a_tensor() -> None:
    """In the order of running; what gives no tensor or never runs is not among them."""
    assert all_layers(wrapped(Odd()), torch.rand(3, 1, 2, 2)) == [
        Layer("flatten", (4,)),
        Layer("twice", (4,)),
        Layer("pair", (4,)),
        Layer("head", (2,)),
    ]
    names = [layer.name for layer in all_layers(network("resnet8"), images())]
    modules = {name for name, _ in network("resnet8").net.named_modules() if name}
    assert set(names) == modules
    assert names.index("stages.0.0.conv1") < names.index("stages.0.0") < names.index("stages.1.0.conv1")
