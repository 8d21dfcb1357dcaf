"""Sample by sample losses on logits: values written out with plain loops, limits, and near misses."""

import math
from collections.abc import Callable
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.losses.soft import (
    STANDARDISE_EPS,
    binary_kd_loss,
    hard_label_loss,
    js_loss,
    kd_loss,
    logit_mse_loss,
    regression_mse_loss,
    reverse_kl_loss,
    soft_ce_loss,
    standardised,
)
from tests.cases.by_hand import kl, softmax

STUDENT = [[1.0, -0.5, 2.0], [0.3, 0.1, -1.2]]
TEACHER = [[3.0, 0.2, -1.0], [-0.4, 2.5, 0.6]]


def tensors() -> tuple[Tensor, Tensor]:
    return torch.tensor(STUDENT, dtype=torch.float64), torch.tensor(TEACHER, dtype=torch.float64)


def wide_batch(k: int = 100, n: int = 16) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(k)
    student, teacher = 3 * torch.randn(2, n, k, generator=random, dtype=torch.float64)
    return student, teacher


def test_reverse_kl_by_hand() -> None:
    """T^2 KL(student || teacher): the arguments of KD the other way round, mean of the two samples."""
    T = 2.0
    expected = sum(kl(softmax(s, T), softmax(t, T)) for s, t in zip(STUDENT, TEACHER, strict=True)) / 2

    student, teacher = tensors()
    assert reverse_kl_loss(student, teacher, T).item() == pytest.approx(T**2 * expected)
    assert kd_loss(teacher, student, T).item() == pytest.approx(T**2 * expected)
    assert abs(kd_loss(student, teacher, T).item() - T**2 * expected) > 0.1


def test_reverse_kl_seeks_modes() -> None:
    """With two likely classes, choosing one costs less than adding a third; with KD it is the reverse."""
    teacher = torch.tensor([[5.0, 5.0, -5.0]])
    one_mode, spread = torch.tensor([[5.0, -5.0, -5.0]]), torch.tensor([[5.0, 5.0, 5.0]])

    assert reverse_kl_loss(one_mode, teacher, T=1) < reverse_kl_loss(spread, teacher, T=1)
    assert kd_loss(one_mode, teacher, T=1) > kd_loss(spread, teacher, T=1)


def test_js_by_hand() -> None:
    """T^2 times the mean divergence from the mixture (p + q) / 2; symmetric; at most T^2 ln 2."""
    T = 2.0
    expected = 0.0
    for s, t in zip(STUDENT, TEACHER, strict=True):
        p, q = softmax(t, T), softmax(s, T)
        mixture = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        expected += (kl(p, mixture) + kl(q, mixture)) / 2 / 2

    student, teacher = tensors()
    assert js_loss(student, teacher, T).item() == pytest.approx(T**2 * expected)
    assert js_loss(teacher, student, T).item() == pytest.approx(T**2 * expected)
    disjoint = torch.tensor([[1e4, -1e4]])
    assert js_loss(disjoint, -disjoint, T).item() == pytest.approx(4 * math.log(2))


def test_soft_ce_by_hand_is_kd_plus_entropy() -> None:
    """T^2 times -sum p log q: KD's gradient, and a value larger by T^2 times the teacher's entropy."""
    T = 3.0
    expected = entropy = 0.0
    for s, t in zip(STUDENT, TEACHER, strict=True):
        p, q = softmax(t, T), softmax(s, T)
        expected -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / 2
        entropy -= sum(a * math.log(a) for a in p) / 2

    student, teacher = tensors()
    student.requires_grad_()
    cross_entropy, divergence = soft_ce_loss(student, teacher, T), kd_loss(student, teacher, T)
    (slope,) = torch.autograd.grad(cross_entropy, student)
    (kd_slope,) = torch.autograd.grad(divergence, student)

    assert cross_entropy.item() == pytest.approx(T**2 * expected)
    assert (cross_entropy - divergence).item() == pytest.approx(T**2 * entropy)
    torch.testing.assert_close(slope, kd_slope)


def test_logit_mse_by_hand() -> None:
    """Differences (2, 0, 1), centred (1, -1, 0): (1 + 1 + 0) / (2 * 3) = 1/3."""
    student, teacher = torch.tensor([[2.0, 0.0, 1.0]]), torch.zeros(1, 3)

    assert logit_mse_loss(student, teacher).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(("loss", "share"), [(kd_loss, 1), (reverse_kl_loss, 1), (js_loss, 1 / 4)])
def test_high_temperature_tends_to_the_squared_error_of_centred_logits(
    loss: Callable[..., Tensor], share: float
) -> None:
    """T^2 KL in either direction tends to `logit_mse_loss`, T^2 JS to a quarter of it."""
    student, teacher = wide_batch()
    limit = share * logit_mse_loss(student, teacher)

    assert loss(student, teacher, T=1e4).item() == pytest.approx(limit.item(), rel=1e-3)
    assert loss(student, teacher, T=1).item() != pytest.approx(limit.item(), rel=0.1)


def test_near_miss_mean_over_classes() -> None:
    """`reduction="mean"` divides by K as well: with 100 classes a hundredth of the loss."""
    student, teacher = wide_batch(k=100)
    averaged = (
        16 * F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="none").mean()
    )

    assert kd_loss(student, teacher, T=4).item() == pytest.approx(100 * averaged.item())


def test_hard_label_by_hand() -> None:
    """Teacher's classes are 0 and 1: -log of the student's probability of them; teacher's sureness is nothing."""
    expected = -(math.log(softmax(STUDENT[0])[0]) + math.log(softmax(STUDENT[1])[1])) / 2

    student, teacher = tensors()
    assert hard_label_loss(student, teacher).item() == pytest.approx(expected)
    assert hard_label_loss(student, 100 * teacher) == hard_label_loss(student, teacher)


def test_binary_kd_by_hand() -> None:
    """T^2 times the divergence of yes/no probabilities, mean over all 2 * 3 of them."""
    T = 2.0
    expected = 0.0
    for s, t in zip(chain(*STUDENT), chain(*TEACHER), strict=True):
        p, q = 1 / (1 + math.exp(-t / T)), 1 / (1 + math.exp(-s / T))
        expected += kl([p, 1 - p], [q, 1 - q]) / 6

    assert binary_kd_loss(*tensors(), T).item() == pytest.approx(T**2 * expected)


def test_binary_kd_is_a_two_class_kd_per_class() -> None:
    """A sigmoid is a softmax over (z, 0); each class is a task of its own, so logits may not be shifted."""
    student, teacher = tensors()
    as_pairs = [torch.stack([z.flatten(), torch.zeros(6, dtype=z.dtype)], 1) for z in (student, teacher)]

    torch.testing.assert_close(binary_kd_loss(student, teacher, 3.0), kd_loss(*as_pairs, 3.0))
    assert binary_kd_loss(teacher + 1, teacher, 3.0) > 1e-2


def test_binary_kd_gradient_hardly_depends_on_T() -> None:
    """Its limit for large T is the mean of (z_s - z_t)^2 / 8."""
    student, teacher = wide_batch(k=10)

    limit = (student - teacher).square().mean() / 8
    assert binary_kd_loss(student, teacher, T=1e4).item() == pytest.approx(limit.item(), rel=1e-3)


def test_regression_mse_by_hand() -> None:
    """Differences 1, -2, 0, 3: (1 + 4 + 0 + 9) / 4, a mean over samples and outputs."""
    student, teacher = torch.tensor([[1.0, 0.0], [2.0, 5.0]]), torch.tensor([[0.0, 2.0], [2.0, 2.0]])

    assert regression_mse_loss(student, teacher).item() == pytest.approx(3.5)


def test_standardised_by_hand() -> None:
    """(1, 2, 6): mean 3, squared deviations 4 + 1 + 9 = 14, std sqrt(14 / 2); 1e-7 is added to the std."""
    std = math.sqrt(7)
    expected = [[-2 / (std + 1e-7), -1 / (std + 1e-7), 3 / (std + 1e-7)]]

    torch.testing.assert_close(
        standardised(torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-14,
        atol=0,
    )


@pytest.mark.parametrize("k", [3, 10, 100])
def test_near_miss_std_of_standardised(k: int) -> None:
    """The std divides by K - 1 (torch's default), not by K: 0.5 % apart at 100 classes, 22 % at 3."""
    logits, _ = wide_batch(k)
    centred = logits - logits.mean(1, keepdim=True)

    torch.testing.assert_close(standardised(logits), centred / (logits.std(1, keepdim=True) + 1e-7))
    ratio = standardised(logits) / (centred / (logits.std(1, keepdim=True, correction=0) + 1e-7))
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.sqrt((k - 1) / k)), rtol=1e-6, atol=0)


def test_standardised_kd_ignores_scale() -> None:
    """Ten times the logits is the same sample for it; KD without it sees another."""
    student, teacher = wide_batch(k=10)
    value = kd_loss(student, teacher, T=2, standardise=True)

    torch.testing.assert_close(
        kd_loss(10 * student + 5, 0.1 * teacher, T=2, standardise=True), value, rtol=1e-5, atol=0
    )
    torch.testing.assert_close(kd_loss(standardised(student), standardised(teacher), T=2), value)
    assert abs(kd_loss(10 * student, 0.1 * teacher, T=2) - value) > 1


def test_standardised_leaves_only_the_sign_of_two_classes() -> None:
    """With K = 2 every z-score is +-1/sqrt(2): there is nothing left to learn but the order."""
    scores = standardised(torch.tensor([[3.0, 1.0], [-7.0, 20.0]]))

    torch.testing.assert_close(scores, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / math.sqrt(2))


@pytest.mark.parametrize("value", [0.0, 0.1, 5.3, 1e4, -3333.3])
@pytest.mark.parametrize("k", [3, 10, 1000])
def test_standardised_constant_logits(value: float, k: int) -> None:
    """All-equal logits, at which an untrained head may start, are zeros whatever the rounding of their mean.

    The gradient is the published one, of the order 1 / eps: finite, and steep.
    """
    student = torch.full((2, k), value, requires_grad=True)
    teacher = torch.randn(2, k, generator=torch.Generator().manual_seed(k))
    loss = kd_loss(student, teacher, T=2, standardise=True)
    loss.backward()

    assert standardised(student).abs().max() < 1e-3
    torch.testing.assert_close(
        loss, kd_loss(torch.zeros(2, k), standardised(teacher), T=2), rtol=1e-3, atol=0
    )
    assert student.grad is not None
    steep = student.grad.abs().max().item()
    assert 1e-4 / STANDARDISE_EPS < steep * k < 100 / STANDARDISE_EPS
