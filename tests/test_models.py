"""Networks by name: shapes, sizes by hand, torchvision and timm, and what is said when one cannot be had."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdistill.config.models import MODELS
from kdistill.errors import ModelError
from kdistill.models import BUILDERS, Classifier, build_classifier, build_network, check_name, normalisation
from kdistill.models.external import arguments

#: parameters that keep every own architecture small
SMALL: dict[str, dict[str, Any]] = {name: {"width": 4} for name in BUILDERS}
SMALL |= {"cnn": {"channels": [4, 8]}, "mlp": {"hidden": [8, 8]}, "wrn_28_10": {"width": 1}}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Networks this small are faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(
    name: str, colours: int = 3, size: int = 32, classes: int = 10, seed: int = 0, **params: Any
) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(name, params, classes=classes, channels=colours, image_size=(size, size))


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_config_and_builders_know_the_same_names() -> None:
    """What the schema accepts can be built, and the other way round."""
    assert BUILDERS.keys() == MODELS.keys()


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 28), (3, 32), (2, 1)])
def test_every_architecture_trains_on_any_images(name: str, channels: int, size: int) -> None:
    """Logits are [N, K], and every parameter gets a finite gradient, at any channel count and image size."""
    network = build(name, channels, size, classes=5, **SMALL[name])
    logits = network(torch.randn(4, channels, size, size))
    assert logits.shape == (4, 5)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        # stem 3*16*9 + 32; stage 1: 6 convs 16*16*9, 6 norms 32; stage 2: 16*32*9 + 5*32*32*9, 6 norms 64,
        # shortcut 16*32 + 64; stage 3: 32*64*9 + 5*64*64*9, 6 norms 128, shortcut 32*64 + 128; head 640 + 10
        ("resnet20", 10, 464 + 14_016 + (50_688 + 384 + 576) + (202_752 + 768 + 2_176) + 650),
        # each depth step of 6 adds two convs with their norms to each stage: 4 672 + 18 560 + 73 984
        ("resnet56", 10, 272_474 + 6 * (4_672 + 18_560 + 73_984)),
        ("resnet110", 10, 272_474 + 15 * (4_672 + 18_560 + 73_984)),
        # the numbers that papers on distillation give for CIFAR-100
        ("resnet20", 100, 278_324),
        ("resnet8x4", 100, 1_233_540),
        ("resnet32x4", 100, 7_433_860),
        ("wrn_16_2", 100, 703_284),
        # with a 3x3 stem, as public code for CIFAR has it
        ("resnet18", 10, 11_173_962),
        ("resnet34", 10, 21_282_122),
        ("wrn_40_1", 100, 569_780),
        ("wrn_40_2", 100, 2_255_156),
    ],
)
def test_parameter_count_is_the_published_one(name: str, classes: int, expected: int) -> None:
    """The architectures are those of the literature, to the last parameter."""
    assert count(build(name, size=8, classes=classes)) == expected


def test_wrn_16_2_by_hand() -> None:
    """Pre-activation: norms belong to the input of a convolution, and shortcuts have none."""
    stem = 3 * 16 * 9
    stage1 = (32 + 16 * 32 * 9 + 64 + 32 * 32 * 9 + 16 * 32) + (64 + 32 * 32 * 9 + 64 + 32 * 32 * 9)
    stage2 = (64 + 32 * 64 * 9 + 128 + 64 * 64 * 9 + 32 * 64) + (128 + 64 * 64 * 9 + 128 + 64 * 64 * 9)
    stage3 = (128 + 64 * 128 * 9 + 256 + 128 * 128 * 9 + 64 * 128) + 2 * (256 + 128 * 128 * 9)
    head = 256 + 128 * 10 + 10
    assert count(build("wrn_16_2", size=8)) == stem + stage1 + stage2 + stage3 + head == 691_674


def test_cnn_and_mlp_by_hand() -> None:
    """CNN: bias-free convolutions with norms; MLP: plain linear layers on the flattened image."""
    assert count(build("cnn", 1, 28, channels=[16, 32])) == 144 + 32 + 4608 + 64 + 330 == 5178
    assert count(build("mlp", 1, 8, hidden=[32])) == 64 * 32 + 32 + 32 * 10 + 10 == 2410
    assert count(build("mlp", 3, 8, hidden=[])) == 3 * 64 * 10 + 10  # softmax regression


def test_width_scales_every_stage() -> None:
    """`width` is the first stage's channels; the stem keeps its share of it."""
    narrow = build("resnet8x4", size=8, width=16)
    assert [stage[0].conv1.out_channels for stage in narrow.stages] == [16, 32, 64]
    assert narrow.stem[0].out_channels == 8  # published: 32 before 64
    wide = build("wrn_16_2", size=8, width=8)
    assert [stage[0].conv1.out_channels for stage in wide.stages] == [16, 32, 64]
    assert wide.stem.out_channels == 8


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "cnn", "mlp"])
def test_module_names_are_tidy(name: str) -> None:
    """Features are tapped by these names."""
    known = {key.split(".")[0] for key, _ in build(name, size=8).named_modules()} - {""}
    assert known <= {"stem", "stages", "norm", "pool", "flatten", "head"}
    if name in ("resnet20", "wrn_16_2"):
        build(name, size=8).get_submodule("stages.0.1.conv1")


def test_stages_halve_the_image() -> None:
    """32 x 32 images leave the three stages at 32, 16 and 8 pixels; the pool gives one vector per image."""
    network = build("resnet8", width=4)
    h = network.stem(torch.zeros(1, 3, 32, 32))
    sizes = []
    for stage in network.stages:
        h = stage(h)
        sizes.append(tuple(h.shape[1:]))
    assert sizes == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]
    assert network.pool(h).shape == (1, 16)


def test_initialisation_is_hes() -> None:
    """A 3x3 convolution's weights have the variance 2 / (9 * channels out); norms start as the identity."""
    network = build("resnet8", size=8, width=64)
    conv = network.stages[0][0].conv2.weight
    assert conv.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert network.stages[0][0].bn2.weight.unique().tolist() == [1.0]
    hidden = build("mlp", size=8, hidden=[256]).stages[0][0]
    assert hidden.weight.std().item() == pytest.approx((2 / 192) ** 0.5, rel=0.02)
    assert hidden.bias.unique().tolist() == [0.0]


def test_the_seed_alone_decides_the_weights() -> None:
    """The same global seed gives the same network, and building draws only for the initialisation."""

    def seeded(name: str) -> tuple[dict[str, Tensor], Tensor]:
        network = build(name, size=8, seed=7)
        return network.state_dict(), torch.rand(1)

    for name in ("resnet8", "mlp"):
        (first, after_first), (second, after_second) = seeded(name), seeded(name)
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert torch.equal(after_first, after_second)


def test_the_dry_forward_leaves_no_trace() -> None:
    """Building tries the network on two black images, and its statistics are still untouched."""
    network = build("resnet8", width=4)
    assert network.training
    assert all(module.training for module in network.modules())
    assert network.stem[1].running_var.unique().tolist() == [1.0]
    assert network.stem[1].num_batches_tracked == 0


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet8", "wrn_16_1"])
def test_architecture_sources_import_only_torch(name: str) -> None:
    """A student's folder gets a copy of the file, so the file must stand alone."""
    module = inspect.getmodule(BUILDERS[name])
    assert module is not None
    imported: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    assert {top.split(".")[0] for top in imported} - {"__future__", "collections", "typing"} == {"torch"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet21", "no model 'resnet21'. Did you mean 'resnet"),
        ("resnet50", "no model 'resnet50'. Did you mean 'torchvision/resnet50'?"),
        ("torchvison/resnet18", "unknown family 'torchvison'. Did you mean 'torchvision'?"),
        ("torchvision/resnet19", "torchvision has no classifier 'resnet19'. Did you mean 'resnet1"),
        ("torchvision/fcn_resnet50", "no classifier 'fcn_resnet50'. Did you mean 'resnet50'"),
    ],
)
def test_an_unknown_name_gets_near_matches(name: str, text: str) -> None:
    """`check_name` costs no network, and says what was probably meant."""
    with pytest.raises(ModelError) as error:
        check_name(name)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("name", "params", "text"),
    [
        ("resnet20", {"widht": 8}, "resnet20 has no parameter 'widht'. Did you mean 'width'? It has: width"),
        ("torchvision/resnet18", {"foo": 1}, "torchvision/resnet18 has no parameter 'foo'"),
        ("torchvision/resnet18", {"num_classes": 3}, "params.num_classes cannot be set"),
        ("torchvision/vit_b_16", {}, "torchvision/vit_b_16 cannot be built so: Input shape indivisible"),
    ],
)
def test_wrong_parameters_are_named(name: str, params: dict[str, Any], text: str) -> None:
    """A parameter that the builder does not take is named; kdistill's own cannot be set twice."""
    with pytest.raises(ModelError) as error:
        build_network(name, params, classes=10, channels=3, image_size=(30, 30))
    assert text in str(error.value)


@pytest.mark.parametrize(
    "param",
    ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "weights"],
)
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_weights_come_by_one_way_only(name: str, param: str) -> None:
    """A builder's own parameters for weights would get past the checks of the file and the teacher's key."""
    with pytest.raises(ModelError) as error:
        arguments(name, {param: "some.pth"}, classes=10, channels=3, image_size=(32, 32))
    assert str(error.value) == (
        f"{name}: params.{param} cannot be set, kdistill sets it itself:"
        " use teacher.weights=FILE, or student.weights=FILE"
    )


def test_own_networks_have_no_published_weights() -> None:
    """`weights=DEFAULT` is for torchvision and timm."""
    with pytest.raises(ModelError, match=r"resnet20 has no published weights\. Expected weights=null"):
        build_network("resnet20", {}, classes=10, channels=3, image_size=(8, 8), weights="DEFAULT")


# --- Classifier ---


def test_classifier_normalises_uint8_images() -> None:
    """logits = net((images / 255 - mean) / std)."""
    classifier = Classifier(nn.Flatten(), mean=[0.5, 0.0], std=[0.5, 2.0])
    images = torch.tensor([[[[0, 255]], [[0, 255]]]], dtype=torch.uint8)
    assert classifier(images).tolist() == [[-1.0, 1.0, 0.0, 0.5]]


def test_classifiers_state_is_the_networks() -> None:
    """Normalisation is no part of the weights, and moves with the module."""
    classifier = Classifier(build("cnn", 1, 8), mean=[0.5], std=[0.25])
    assert {key.removeprefix("net.") for key in classifier.state_dict()} == set(classifier.net.state_dict())
    assert classifier.double().mean.dtype == torch.float64


def test_grey_images_are_repeated_for_a_colour_network() -> None:
    """torchvision's networks take three channels: grey gives the same logits as its three equal colours."""
    torch.manual_seed(0)
    grey = build_classifier(
        "torchvision/squeezenet1_1", {}, classes=4, channels=1, image_size=(32, 32), mean=[0.3], std=[0.2]
    ).eval()
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    assert grey.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    assert torch.equal(grey(images), grey(images.repeat(1, 3, 1, 1)))


def test_normalisation_follows_the_weights() -> None:
    """Published weights were trained on their own normalisation; random ones use the data's."""
    data = ([0.1], [0.9])
    assert normalisation("resnet20", None, 1, *data) == data
    assert normalisation("torchvision/resnet18", None, 1, *data) == ([0.1] * 3, [0.9] * 3)
    assert normalisation("torchvision/resnet18", None, 1, [0.1] * 3, [0.9] * 3) == ([0.1] * 3, [0.9] * 3)
    imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert normalisation("torchvision/resnet18", "DEFAULT", 1, *data) == imagenet
    assert normalisation("torchvision/inception_v3", "DEFAULT", 3, *data) == ([0.5] * 3, [0.5] * 3)


def test_building_for_a_stored_state_reads_no_weights() -> None:
    """`load=False` gives the normalisation of the published weights and downloads nothing."""
    classifier = build_classifier(
        "torchvision/mobilenet_v3_small",
        {},
        classes=4,
        channels=3,
        image_size=(32, 32),
        mean=[0.0] * 3,
        std=[1.0] * 3,
        weights="DEFAULT",
        load=False,
    )
    assert classifier.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


# --- torchvision ---


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", "resnet18", "squeezenet1_0", "densenet121", "vit_b_32", "shufflenet_v2_x0_5"],
)
def test_torchvision_families_get_the_datas_head(name: str) -> None:
    """One network per kind of head gives logits for the data's classes, for colour and small images."""
    network = build(f"torchvision/{name}", size=32, classes=7)
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_inception_needs_large_images_and_has_no_auxiliary_head() -> None:
    """Too small an image is refused in words when the network is built; large ones give one tensor."""
    with pytest.raises(ModelError) as error:
        build("torchvision/inception_v3", size=8)
    assert "torchvision/inception_v3 cannot take 8 x 8 images: " in str(error.value)
    assert "Choose a network that takes any size (such as resnet20" in str(error.value)
    network = build("torchvision/inception_v3", size=75)
    assert network(torch.zeros(2, 3, 75, 75)).shape == (2, 10)  # in training mode


def test_torchvision_takes_grey_or_colour_only() -> None:
    """A network for three channels cannot take five."""
    with pytest.raises(ModelError, match="takes grey or colour images; the data has 5 channels"):
        build("torchvision/resnet18", colours=5)


def test_vision_transformers_take_square_images() -> None:
    """torchvision's have one number for height and width."""
    with pytest.raises(ModelError, match="takes square images; the data has 32 x 64"):
        build_network("torchvision/vit_b_32", {}, classes=10, channels=3, image_size=(32, 64))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Tensor]]:
    """Stand in for the download: a fresh 1000-class state of a torchvision network."""
    from torchvision import models

    def stand_in(name: str, **keywords: Any) -> dict[str, Tensor]:
        torch.manual_seed(99)
        state = models.get_model(name, weights=None, **keywords).state_dict()

        def get_state_dict(self: object, *, weights_only: bool, **_: Any) -> dict[str, Tensor]:
            assert weights_only
            return dict(state)

        monkeypatch.setattr(type(models.get_model_weights(name).DEFAULT), "get_state_dict", get_state_dict)
        return state

    return stand_in


@pytest.mark.parametrize(
    ("name", "size", "head", "keywords"),
    [
        ("resnet18", 32, ["fc.weight", "fc.bias"], {}),
        ("squeezenet1_1", 32, ["classifier.1.weight", "classifier.1.bias"], {}),
        ("mnasnet0_5", 32, ["classifier.1.weight", "classifier.1.bias"], {}),
        ("googlenet", 32, ["fc.weight", "fc.bias"], {"init_weights": False}),  # the file has auxiliary heads
    ],
)
def test_published_weights_under_a_new_head(
    published: Callable[..., dict[str, Tensor]],
    name: str,
    size: int,
    head: list[str],
    keywords: dict[str, Any],
) -> None:
    """DEFAULT fills all but the head, which is new for the data's classes, whatever kind of layer it is."""
    state = published(name, **keywords)
    torch.manual_seed(1)
    network = build_network(
        f"torchvision/{name}", {}, classes=7, channels=3, image_size=(size, size), weights="DEFAULT"
    )
    loaded = network.state_dict()
    assert [key for key in loaded if not torch.equal(loaded[key], state[key])] == head
    assert loaded[head[0]].shape[0] == 7


def test_published_head_is_kept_for_as_many_classes(published: Callable[..., dict[str, Tensor]]) -> None:
    """1000 classes are ImageNet's: the published head goes with them."""
    state = published("squeezenet1_1")
    network = build_network(
        "torchvision/squeezenet1_1", {}, classes=1000, channels=3, image_size=(32, 32), weights="DEFAULT"
    )
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


def test_old_densenet_files_fit(
    published: Callable[..., dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published DenseNet files call a layer `norm.1` that the network calls `norm1`."""
    from torchvision import models

    state = published("densenet121")
    old = {
        key.replace("norm1", "norm.1").replace("conv2", "conv.2") if "denselayer" in key else key: tensor
        for key, tensor in state.items()
    }
    assert old.keys() != state.keys()
    weights = type(models.DenseNet121_Weights.DEFAULT)
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **_: old)
    network = build_network(
        "torchvision/densenet121", {}, classes=7, channels=3, image_size=(32, 32), weights="DEFAULT"
    )
    loaded = network.state_dict()
    assert torch.equal(
        loaded["features.denseblock1.denselayer1.norm1.weight"],
        state["features.denseblock1.denselayer1.norm1.weight"],
    )


def test_a_failed_download_says_which_file_to_place_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines without a network are helped: the file's name, its folder, and the two other ways."""
    from torchvision import models

    def offline(self: object, **_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(ModelError) as error:
        build_network(
            "torchvision/resnet18", {}, classes=10, channels=3, image_size=(32, 32), weights="DEFAULT"
        )
    text = str(error.value)
    assert "cannot download the published weights of torchvision/resnet18: no route to host." in text
    assert "Place resnet18-" in text
    assert "checkpoints, or set weights=PATH of a state dict for 10 classes, or weights=null" in text


def test_published_transformers_are_for_one_image_size() -> None:
    """Positions are learned, so published weights need the images that they were trained on."""
    with pytest.raises(ModelError) as error:
        build_network(
            "torchvision/vit_b_16", {}, classes=10, channels=3, image_size=(32, 32), weights="DEFAULT"
        )
    assert "torchvision/vit_b_16 are for 224 x 224 images; the data has 32 x 32." in str(error.value)
    assert "dataset.image_size=224" in str(error.value)


@pytest.mark.slow
def test_every_torchvision_classifier_builds() -> None:
    """All that torchvision lists (but two giants) take 64 x 64 images, or say which they need."""
    from kdistill.models.external import torchvision_names

    sizes = {"inception_v3": 75, "maxvit_t": 224}
    for name in torchvision_names():
        if name not in ("regnet_y_128gf", "vit_h_14"):  # 0.6 and 0.8 billion parameters
            build(f"torchvision/{name}", size=sizes.get(name, 64), classes=7)


# --- timm ---


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without timm, its names say how to get it."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError) as error:
        check_name("timm/efficientnet_b0")
    assert str(error.value) == "timm/efficientnet_b0 needs the extra 'timm': pip install 'kdistill[timm]'"


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 1), ("vit_tiny_patch16_224", 3)])
def test_timm_networks_fit_the_data(name: str, channels: int) -> None:
    """timm builds for the data's channels, classes and, where the network is made for one, image size."""
    pytest.importorskip("timm")
    network = build(f"timm/{name}", channels, 32, classes=7)
    assert network.eval()(torch.zeros(1, channels, 32, 32)).shape == (1, 7)


def test_timm_names_and_parameters_are_checked() -> None:
    """The same messages as for torchvision."""
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=r"timm has no classifier 'resnet19'\. Did you mean 'resnet1"):
        check_name("timm/resnet19")
    with pytest.raises(ModelError, match="timm/resnet18 has no parameter 'foo'"):
        build("timm/resnet18", foo=1)
    with pytest.raises(ModelError, match=r"params\.in_chans cannot be set"):
        build("timm/resnet18", in_chans=1)
