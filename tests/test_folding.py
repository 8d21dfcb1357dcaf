"""Folded batch norm: the same answers from fewer operations, or the network as it was."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdistill import make_soft_targets, train_teacher
from kdistill.config.schema import Config
from kdistill.engine import Engine
from kdistill.models import Classifier, build_classifier
from kdistill.models.folding import fold_batch_norm
from kdistill.models.fusing import FusedConv2d
from kdistill.stages.job import Job
from kdistill.stages.signals import asked
from kdistill.teachers import LiveTeacher
from tests.cases.answers import Net, images, trained

Tiny = Callable[..., Config]
CPU = Engine(torch.device("cpu"), "fp32")


def classifier(net: nn.Module) -> Classifier:
    return trained(Classifier(net, [0.5] * 3, [0.25] * 3))


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def test_a_convolution_takes_the_scale_and_the_shift() -> None:
    """By hand: 2 x, less the mean 1, over the deviation 2, times 3, plus 5, is 3 x + 3.5."""
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0)
    conv.weight.data.fill_(2)
    norm.running_mean.fill_(1)
    norm.running_var.fill_(4)
    norm.weight.data.fill_(3)
    norm.bias.data.fill_(5)
    network = Classifier(nn.Sequential(conv, norm, nn.Flatten()), [0.0], [1.0])

    folded = fold_batch_norm(network, torch.rand(4, 1, 2, 2))

    (layer,) = (module for module in folded.net.modules() if isinstance(module, nn.Conv2d))
    assert (layer.weight.item(), layer.bias.item()) == (3.0, 3.5)
    assert conv.weight.item() == 2  # the network itself keeps its own


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resnet8", {"width": 8}),
        ("resnet18", {"width": 4}),
        ("cnn", {"channels": [4, 8]}),
        ("wrn_16_2", {}),
        ("torchvision/mobilenet_v3_small", {}),
        ("torchvision/densenet121", {}),
        ("torchvision/efficientnet_b0", {}),
    ],
)
def test_answers_are_the_same(name: str, params: dict) -> None:
    """For networks of many kinds, up to rounding; batch norms that come before their convolution stay."""
    torch.manual_seed(0)
    own = trained(
        build_classifier(
            name, params, classes=5, channels=3, image_size=(64, 64), mean=[0.4] * 3, std=[0.3] * 3
        )
    )
    folded = fold_batch_norm(own, images(size=64))

    with torch.no_grad():
        expected, got = own(images(4, 64)), folded(images(4, 64))
    assert norms(folded) < norms(own) or norms(own) == 0
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_all_of_a_resnet_s_are_folded() -> None:
    network = build_classifier(
        "resnet8", {"width": 4}, classes=5, channels=3, image_size=(16, 16), mean=[0.4] * 3, std=[0.3] * 3
    )
    assert norms(network) == 9
    assert norms(fold_batch_norm(trained(network), images())) == 0


def test_a_linear_layer_takes_it_too() -> None:
    network = classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    )
    folded = fold_batch_norm(network, images())

    assert norms(folded) == 0
    torch.testing.assert_close(folded(images()), network(images()), rtol=1e-5, atol=1e-5)


class AlsoWithoutNorm(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.out(self.bn(h) + h)


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bn(self.conv(x))) + self.out(self.conv(x))


class NormFirst(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(self.bn(x)))


class Own(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class OwnConvolution(Net):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Own(3, 4, 3)


class BatchStatistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4, track_running_stats=False)


@pytest.mark.parametrize("net", [AlsoWithoutNorm, Twice, NormFirst, OwnConvolution, BatchStatistics])
def test_a_norm_that_cannot_be_folded_stays(net: type[Net]) -> None:
    """Where the convolution's output is wanted as it is, the norm is not behind one, or each batch has its own."""
    torch.manual_seed(0)
    network = classifier(net())
    folded = fold_batch_norm(network, images())

    assert norms(folded) == 1
    assert torch.equal(folded(images()), network(images()))


def in_place(network: Classifier) -> list[bool]:
    """Of each ReLU of a folded network, in their order, whether it writes over its input."""
    nodes = network.net.graph.nodes
    return [bool(node.kwargs.get("inplace")) for node in nodes if node.target in (F.relu, "relu")]


def test_relus_of_a_resnet_work_in_place() -> None:
    """Behind a norm and behind a sum, which nobody else wants: one in the stem, two in each of three blocks."""
    network = build_classifier(
        "resnet8", {"width": 4}, classes=5, channels=3, image_size=(16, 16), mean=[0.4] * 3, std=[0.3] * 3
    )
    assert in_place(fold_batch_norm(trained(network), images())) == [True] * 7


class Rectified(Net):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()


class InputWantedAgain(Rectified):
    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.conv(x))
        return self.out(self.relu(h) - h)


class OfImages(Rectified):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bn(self.conv(self.relu(x) - x)))


class OfAView(Rectified):
    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.conv(x))
        return self.out(self.relu(h[:, :2]).sum(1, keepdim=True) - h)


@pytest.mark.parametrize("net", [InputWantedAgain, OfImages, OfAView])
def test_a_relu_leaves_what_others_want(net: type[Net]) -> None:
    torch.manual_seed(0)
    network = classifier(net())
    folded = fold_batch_norm(network, images())

    assert norms(folded) == 0
    assert in_place(folded) == [False]
    torch.testing.assert_close(folded(images()), network(images()), rtol=1e-5, atol=1e-5)


class LooksAtValues(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.conv(x))
        return self.out(h if h.mean() > 0 else -h)


class LooksAtTypes(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.conv(x))
        return self.out(h if isinstance(x, Tensor) else 2 * h)


@pytest.mark.parametrize("net", [LooksAtValues, LooksAtTypes])
def test_a_network_that_cannot_be_followed_stays(net: type[Net]) -> None:
    """Code that stops torch.fx, and code that does something else when it is followed."""
    torch.manual_seed(0)
    network = classifier(net())

    assert fold_batch_norm(network, images()) is network


def test_a_sample_s_logits_are_the_same_bits_in_any_batch() -> None:
    """As for a network that is not folded: stored or live, a teacher says the same."""
    torch.manual_seed(0)
    network = build_classifier(
        "resnet20", {"width": 8}, classes=5, channels=3, image_size=(16, 16), mean=[0.4] * 3, std=[0.3] * 3
    )
    live = LiveTeacher(fold_batch_norm(trained(network), images()), batch_size=16, engine=CPU)
    shown = images(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))

    assert torch.equal(live.logits(shown)[order], torch.cat([live.logits(shown[p]) for p in order.split(7)]))


def test_soft_targets_are_the_teacher_s_answers(tiny: Tiny) -> None:
    """What is stored of a teacher with batch norm is what it says itself, up to rounding."""
    config = tiny("dataset.augment.crop=0", "dataset.augment.flip=false", "soft_targets.dtype=float32")
    train_teacher(config)
    stored = np.load(next(Path(make_soft_targets(config).folder).glob("*.npy")))[0]
    job = Job.open(config)
    network = job.load(job.require_teacher()).eval()
    with torch.no_grad():
        logits = network(job.data.train.images)

    assert norms(network) == 9
    np.testing.assert_allclose(stored, logits, rtol=0, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize(
    ("words", "layers", "left", "fused"),
    [((), (), 0, 7), ((), ("stages.1",), 9, 0), (("device.compile=true",), (), 9, 0)],
    ids=["logits", "layers", "compiled"],
)
def test_whose_layers_are_wanted_is_asked_as_it_is(
    tiny: Tiny, words: tuple[str, ...], layers: tuple[str, ...], left: int, fused: int
) -> None:
    """Features are those of the network's own layers; a compiler sees the network itself. All others are rewritten."""
    job = Job.open(tiny(*words))
    network = asked(job, job.build("teacher"), layers)._network

    assert norms(network) == left
    assert sum(isinstance(module, FusedConv2d) for module in network.modules()) == fused
