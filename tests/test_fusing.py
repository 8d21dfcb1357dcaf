"""Convolutions that add and rectify what they write: the same answers, or the network as it was."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdistill.engine import Engine
from kdistill.models import Classifier, build_classifier, rewriting
from kdistill.models.folding import fold_batch_norm
from kdistill.models.fusing import FusedConv2d, fuse_relu
from kdistill.teachers import LiveTeacher
from tests.cases.answers import Net, images, trained

CPU = Engine(torch.device("cpu"), "fp32")
BF16 = Engine(torch.device("cpu"), "bf16")
supports_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this processor"
)


def fused_of(network: Classifier) -> list[tuple[bool, bool]]:
    """Of each fused convolution, in their order: does it add, does it rectify."""
    if not isinstance(network.net, torch.fx.GraphModule):
        return []
    layers = {node: network.net.get_submodule(node.target) for node in calls(network)}
    return [
        (len(node.args) > 1, layer.relu) for node, layer in layers.items() if isinstance(layer, FusedConv2d)
    ]


def calls(network: Classifier) -> list[torch.fx.Node]:
    return [node for node in network.net.graph.nodes if node.op == "call_module"]


def network_of(name: str, params: dict | None = None, size: int = 16) -> Classifier:
    """In the memory layout that networks have on a CPU."""
    torch.manual_seed(0)
    shape = {"channels": 3, "image_size": (size, size), "mean": [0.4] * 3, "std": [0.3] * 3}
    network = build_classifier(name, params or {}, classes=5, **shape)
    return trained(network).to(memory_format=torch.channels_last)


def ask(network: Classifier, shown: Tensor) -> Tensor:
    with torch.no_grad():
        return network(shown)


def test_a_sum_and_a_relu_by_hand() -> None:
    """relu(2 x - 3 + 4): of x = -1 it is 0, of x = 5 it is 11; it is written where the 4s were."""
    conv = nn.Conv2d(1, 1, 1)
    conv.weight.data.fill_(2)
    conv.bias.data.fill_(-3)
    x, other = torch.tensor([-1.0, 5.0]).view(1, 1, 1, 2), torch.full((1, 1, 1, 2), 4.0)
    with torch.no_grad():
        assert FusedConv2d(conv, relu=True)(x).flatten().tolist() == [0, 7]
        assert FusedConv2d(conv, relu=False)(x, other.clone()).flatten().tolist() == [-1, 11]
        assert FusedConv2d(conv, relu=True)(x, other).flatten().tolist() == [0, 11]
    assert other.flatten().tolist() == [0, 11]


@pytest.mark.parametrize(
    ("name", "params", "adding", "rectifying"),
    [
        ("cnn", {"channels": [4, 8]}, 0, 2),
        # the stem, and two in each block, of which the second one adds; a shortcut's convolution does it for its block
        ("resnet8", {"width": 4}, 3, 7),
        ("resnet18", {"width": 4}, 8, 17),
        ("wrn_16_2", {}, 6, 7),  # blocks that rectify first: what they add stays as it is
        ("torchvision/resnet18", {}, 8, 17),
        ("torchvision/mobilenet_v2", {}, 10, 0),  # its ReLU6 is another function
        ("torchvision/densenet121", {}, 0, 59),
    ],
)
def test_answers_are_the_same(name: str, params: dict, adding: int, rectifying: int) -> None:
    """For networks of many kinds, up to rounding."""
    own = network_of(name, params, size=64)
    fused = fuse_relu(fold_batch_norm(own, images(size=64)), images(size=64))

    found = fused_of(fused)
    assert (sum(adds for adds, _ in found), sum(relu for _, relu in found)) == (adding, rectifying)
    expected = ask(own, images(4, 64))
    assert (ask(fused, images(4, 64)) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_network_itself_keeps_its_own() -> None:
    own = network_of("resnet8", {"width": 4})
    before = ask(own, images())
    fuse_relu(fold_batch_norm(own, images()), images())

    assert not any(isinstance(module, FusedConv2d) for module in own.modules())
    assert torch.equal(ask(own, images()), before)


class Block(Net):
    """What two convolutions make of the first one's result is added to it; the cases differ in how."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.third = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.identity = nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.out(F.relu(self.branch(h) + self.identity(h)))

    def branch(self, h: Tensor) -> Tensor:
        return self.third(self.second(h))


class AddsInPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        out = self.branch(h)
        out += h
        return self.out(torch.relu(out))


class AddsTheOtherWayRound(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.out(F.relu(torch.add(h, self.branch(h))))


class RectifiedBefore(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x))
        return self.out(F.relu(self.branch(h) + h))


def block(net: type[Block]) -> Classifier:
    torch.manual_seed(0)
    return Classifier(net(), [0.5] * 3, [0.25] * 3).eval().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("net", [Block, AddsInPlace, AddsTheOtherWayRound, RectifiedBefore])
def test_what_is_added_may_be_written_over(net: type[Block]) -> None:
    network = block(net)
    fused = fuse_relu(network, images())

    assert fused_of(fused)[-1] == (True, True)
    torch.testing.assert_close(ask(fused, images()), ask(network, images()), rtol=1e-5, atol=1e-5)


class WantedAgain(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.out(F.relu(self.branch(h) + h) - h)


class ReadAgain(Block):
    """Who reads it later makes something new of it, but of what is there by then."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.out(F.relu(self.branch(h) + h)) + self.out(self.last(h))


class WantedAsAView(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        part = h[:, :2]
        return self.out(F.relu(self.branch(h) + h)) + self.out(h.detach()) * 0 + part.mean()


class OfAView(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        view = h.flatten(1).view(-1, 4, 14, 14)
        return self.out(F.relu(self.branch(h) + view) - h)


class OfAnotherSize(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.out(F.relu(self.branch(h) + self.pool(h)))


class OfAMean(OfAnotherSize):
    """One number for each channel, in memory of its own that a sum does not fit into."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(14)


class AddedToItself(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(self.conv(x))
        return self.out(F.relu(h + h))


class Scaled(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.out(F.relu(torch.add(self.branch(h), h, alpha=3)))


class OfImages(Block):
    def __init__(self) -> None:
        super().__init__()
        self.second, self.third = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.branch(x) + x))


class OfWhatIsRead(Block):
    """The convolution would read what it has written over already."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.out(F.relu(self.second(h) + h))


class SumWantedAgain(Block):
    def forward(self, x: Tensor) -> Tensor:
        total = self.branch(self.conv(x)) + 1
        return self.out(F.relu(total) - total)


@pytest.mark.parametrize(
    "net",
    [
        WantedAgain,
        ReadAgain,
        WantedAsAView,
        OfAView,
        OfAnotherSize,
        AddedToItself,
        Scaled,
        OfImages,
        OfWhatIsRead,
        SumWantedAgain,
    ],
)
def test_a_sum_stays_where_nothing_may_be_written_over(
    net: type[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls themselves say so: no difference of answers is needed to find out."""
    monkeypatch.setattr(rewriting, "ROUNDING", math.inf)
    network = block(net)
    fused = fuse_relu(network, images())

    assert fused_of(fused) == []
    assert torch.equal(ask(fused, images()), ask(network, images()))


def test_a_sum_that_does_not_fit_stays() -> None:
    """What is added has memory of its own, but one number for each channel: trying it shows that."""
    network = block(OfAMean)
    assert fuse_relu(network, images()) is network


class Own(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flatten = nn.Conv2d(3, 3, 3, padding=1), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        return self.flatten(F.relu(self.conv(F.relu(self.conv(x)))))


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(Own(3, 4, 3), nn.ReLU(), nn.Flatten()),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.Flatten()),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten()),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten()),
        Twice(),
    ],
    ids=["a class of its own", "padding by name", "another padding", "no ReLU", "called twice"],
)
def test_a_convolution_that_is_not_plain_stays(net: nn.Module) -> None:
    network = Classifier(net, [0.5] * 3, [0.25] * 3)
    assert fuse_relu(network, images()) is network


def test_without_the_operators_the_network_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("resnet8", {"width": 4})

    def missing(*args: object) -> Tensor:
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", missing)
    folded = fold_batch_norm(network, images())
    assert fuse_relu(folded, images()) is folded


def test_a_processor_that_has_them_for_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.ops.mkldnn._convolution_pointwise

    def only_float32(x: Tensor, *args: object) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("bf16 path needs the cpu support avx512bw, avx512vl and avx512dq")
        return real(x, *args)

    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", only_float32)
    folded = fold_batch_norm(network_of("resnet8", {"width": 4}), images())
    assert fuse_relu(folded, images(), BF16.autocast) is folded
    assert fuse_relu(folded, images(), CPU.autocast) is not folded


@supports_bf16
def test_in_bfloat16_it_answers_as_autocast_does() -> None:
    """Sums and ReLUs of a convolution's own accumulator round once instead of thrice: no further from float32."""
    own = network_of("resnet20", {"width": 8})
    shown, exact = images(64), ask(own, images(64))
    folded = fold_batch_norm(own, images())
    fused = fuse_relu(folded, images(), BF16.autocast)
    with BF16.autocast():
        expected, got = ask(folded, shown), ask(fused, shown)

    assert len(fused_of(fused)) == 19
    assert got.dtype == expected.dtype == torch.bfloat16
    errors = [(answer.float() - exact).square().mean().sqrt() for answer in (got, expected)]
    assert errors[0] < 1.2 * errors[1] < 0.05 * exact.abs().max()


def test_a_sample_s_logits_are_the_same_bits_in_any_batch() -> None:
    """Stored or live, a teacher says the same."""
    network = fold_batch_norm(network_of("resnet20", {"width": 8}), images())
    fused = fuse_relu(network, images())
    assert len(fused_of(fused)) == 19
    live = LiveTeacher(fused, batch_size=16, engine=CPU)
    shown = images(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))

    assert torch.equal(live.logits(shown)[order], torch.cat([live.logits(shown[p]) for p in order.split(7)]))
