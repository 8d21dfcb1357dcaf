"""SimKD's student at inference: inner map, projector, pooling, the teacher's head; and copying that head."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kdistill.errors import ConfigError
from kdistill.features import candidates, observe, teacher_head
from kdistill.losses.adapters import as_map as map_in_training
from kdistill.models import build_classifier
from kdistill.models.classifier import Classifier
from kdistill.models.projector import Projector
from kdistill.models.reused_head import ReusedHead, as_map
from kdistill.pairing import propose

IMAGES = torch.randint(0, 256, (4, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def network(name: str, classes: int = 5, **params: object) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(
        name, params, classes=classes, channels=1, image_size=(16, 16), mean=[0.5], std=[0.3]
    )


def reusing(layer: str = "stages.2") -> ReusedHead:
    """A narrow ResNet with the head of one twice as wide."""
    return ReusedHead(network("resnet8", width=4).net, layer, Projector(16, 32, (4, 4), 2), nn.Linear(32, 5))


def test_logits_are_the_heads_of_the_pooled_projected_map() -> None:
    """By hand: stem, stages, projector, mean over the pixels, weight @ x + bias."""
    student = reusing().eval()
    images = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        projected = student.projector(student.net.stages(student.net.stem(images)))
        expected = projected.mean((2, 3)) @ student.head.weight.T + student.head.bias
        assert torch.allclose(student(images), expected, atol=1e-6)


def test_the_head_is_frozen_and_stored() -> None:
    """The head takes no gradient and is in the state dict; net and projector are trained."""
    student = reusing().train()
    student(torch.randn(3, 1, 16, 16)).sum().backward()
    assert {name.partition(".")[0] for name in student.state_dict()} == {"net", "projector", "head"}
    assert student.head.weight.grad is None
    assert all(parameter.grad is not None for parameter in student.projector.parameters())
    assert student.net.stem[0].weight.grad is not None
    assert student.net.head.weight.grad is None  # the student's own head is out of use


def test_a_copy_looks_at_its_own_layers() -> None:
    """Averaged weights are a deep copy: changing the original afterwards does not change its logits."""
    student = reusing().eval()
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        again = copy.deepcopy(student)
        before = again(images)
        for parameter in student.parameters():
            parameter.zero_()
        assert torch.equal(again(images), before)
        assert not torch.equal(student(images), before)
    assert not any(module._forward_hooks for module in student.modules())


def test_an_input_of_a_module_can_be_projected() -> None:
    """`pool@in` is what stages.2 gives."""
    images = torch.randn(2, 1, 16, 16)
    by_output, by_input = reusing().eval(), reusing("pool@in").eval()
    by_input.load_state_dict(by_output.state_dict())
    with torch.no_grad():
        assert torch.equal(by_output(images), by_input(images))


def test_it_runs_in_bfloat16() -> None:
    """Under autocast the logits are bfloat16, near the float32 ones."""
    student = reusing().eval()
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        exact = student(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = student(images)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), exact, atol=0.1)


@pytest.mark.slow
def test_it_can_be_compiled() -> None:
    """A compiled student gives the same logits, call after call."""
    student = reusing().eval()
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        exact = student(images)
        student.compile()
        assert torch.allclose(student(images), exact, atol=1e-5)
        assert torch.allclose(student(images), exact, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3), (2, 9, 3), (2, 10, 3), (2, 1, 3), (2, 2, 3)])
def test_maps_are_made_as_in_training(shape: tuple[int, ...]) -> None:
    """This file cannot import the adapter that training uses, so it has its own: both are the same function."""
    features = torch.randn(shape)
    assert torch.equal(as_map(features), map_in_training(features))


# --- the teacher's head ---


def head_of(teacher: Classifier, images: Tensor = IMAGES) -> nn.Linear:
    layers = candidates(teacher, images)
    [(last, _)] = propose(layers, layers, "last")
    return teacher_head(teacher, images, last)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "cnn"])
def test_the_head_is_a_frozen_copy(name: str) -> None:
    """It gives the teacher's logits from the teacher's embedding, and shares no memory with the teacher."""
    teacher = network(name)
    teacher(IMAGES)
    head = head_of(teacher)
    teacher.eval()
    with torch.no_grad():
        seen = observe(teacher, IMAGES, ["head@in"])
        assert torch.equal(head(seen.features["head@in"]), seen.logits)
        teacher.net.head.weight.zero_()
    assert head.weight.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_a_head_without_bias_gets_a_zero_bias() -> None:
    """So that every reused head has the same keys."""
    teacher = network("resnet8")
    teacher.net.head = nn.Linear(64, 5, bias=False)
    head = head_of(teacher)
    assert torch.equal(head.bias, torch.zeros(5))
    assert torch.equal(head.weight, teacher.net.head.weight)


def test_a_teacher_with_a_hidden_layer_behind_the_pool_is_refused() -> None:
    """MobileNetV3 ends in two linear layers; the message says what SimKD needs and what is there."""
    torch.manual_seed(0)
    teacher = build_classifier(
        "torchvision/mobilenet_v3_small",
        {},
        classes=5,
        channels=1,
        image_size=(32, 32),
        mean=[0.5],
        std=[0.3],
    )
    with pytest.raises(ConfigError) as caught:
        head_of(teacher, torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    assert str(caught.value) == (
        "SimKD reuses the teacher's classifier: the teacher must end in global average pooling of the layer"
        " 'features.12' and one linear layer. It does not (features.12 is [576, 1, 1], classifier.3@in is [1024])"
    )


def test_a_pool_of_maxima_is_refused() -> None:
    """The shapes agree, the values do not."""
    teacher = network("resnet8")
    teacher.net.pool[0] = nn.AdaptiveMaxPool2d(1)
    with pytest.raises(ConfigError, match=r"stages\.2 is \[64, 4, 4\], head@in is \[64\]"):
        head_of(teacher)


def test_a_map_that_is_not_pooled_is_refused() -> None:
    """A pre-activation network pools what comes behind its last norm, not its last stage."""
    teacher = network("wrn_16_1")
    assert teacher_head(teacher, IMAGES, "norm").in_features == 64
    with pytest.raises(ConfigError, match=r"pooling of the layer 'stages\.2'"):
        teacher_head(teacher, IMAGES, "stages.2")


def test_logits_that_no_linear_layer_makes_are_refused() -> None:
    """SqueezeNet pools its logits at the end: there is no head to reuse."""
    torch.manual_seed(0)
    teacher = build_classifier(
        "torchvision/squeezenet1_1",
        {},
        classes=5,
        channels=1,
        image_size=(64, 64),
        mean=[0.5],
        std=[0.3],
    )
    with pytest.raises(ConfigError, match=r"It does not \(features is \[512, 3, 3\]\)"):
        teacher_head(teacher, torch.zeros(2, 1, 64, 64, dtype=torch.uint8), "features")


def test_a_teacher_without_maps_is_refused() -> None:
    """A multi-layer perceptron has nothing to pool."""
    with pytest.raises(ConfigError, match=r"must end in global average pooling of the layer 'stages\.1'"):
        head_of(network("mlp"))
