"""TTM, WTTM and OFA: values from powers of probabilities in plain loops, special cases, and near misses."""

import math

import pytest
import torch
from torch import Tensor

from kdistill.losses.matching import ofa_loss, ttm_loss, wttm_loss
from kdistill.losses.soft import kd_loss, soft_ce_loss
from tests.cases.by_hand import softmax

STUDENT = [[1.0, -0.5, 2.0], [0.3, 0.1, -1.2]]
TEACHER = [[3.0, 0.2, -1.0], [-0.4, 2.5, 0.6]]
LABELS = [0, 2]


def tensors() -> tuple[Tensor, Tensor]:
    return torch.tensor(STUDENT, dtype=torch.float64), torch.tensor(TEACHER, dtype=torch.float64)


@pytest.mark.parametrize("power", [0.1, 0.5, 1.0, 2.0])
def test_ttm_and_wttm_by_hand(power: float) -> None:
    """Powers of the teacher's probabilities, renormalised; WTTM multiplies each sample by the normaliser."""
    plain = weighted = 0.0
    for s, t in zip(STUDENT, TEACHER, strict=True):
        powers = [p**power for p in softmax(t)]
        target = [p / sum(powers) for p in powers]
        divergence = sum(a * math.log(a / b) for a, b in zip(target, softmax(s), strict=True))
        plain += divergence / 2
        weighted += sum(powers) * divergence / 2

    assert ttm_loss(*tensors(), power=power).item() == pytest.approx(plain)
    assert wttm_loss(*tensors(), power=power).item() == pytest.approx(weighted)


def test_power_one_is_kd_at_temperature_one() -> None:
    """Untransformed: both are KD at T = 1, and all WTTM weights are 1."""
    student, teacher = tensors()
    expected = kd_loss(student, teacher, T=1)

    torch.testing.assert_close(ttm_loss(student, teacher, power=1), expected)
    torch.testing.assert_close(wttm_loss(student, teacher, power=1), expected)


def test_ttm_is_zero_at_the_transformed_teacher() -> None:
    """Its minimum is power * teacher_logits, not the teacher's logits: the student is not softened."""
    _, teacher = tensors()
    for loss in (ttm_loss, wttm_loss):
        assert abs(loss(0.3 * teacher, teacher, power=0.3).item()) < 1e-14
        assert loss(teacher, teacher, power=0.3) > 1e-2


def test_near_miss_ttm_softens_the_teacher_only() -> None:
    """KD with T = 1 / power softens both and is T^2 times as large: another loss."""
    student, teacher = tensors()

    assert abs(ttm_loss(student, teacher, power=0.25) - kd_loss(student, teacher, T=4)) > 0.1
    assert abs(ttm_loss(student, teacher, power=0.25) - kd_loss(student, teacher, T=4) / 16) > 0.1


def test_wttm_weight_is_one_for_a_sure_teacher_and_large_for_an_ignorant_one() -> None:
    """Sum of p^power: 1 when one class has everything, K^(1 - power) when all are alike."""
    student = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    sure, ignorant = torch.tensor([[1e4, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)

    torch.testing.assert_close(wttm_loss(student, sure, 0.1), ttm_loss(student, sure, 0.1))
    torch.testing.assert_close(wttm_loss(student, ignorant, 0.1), 4**0.9 * ttm_loss(student, ignorant, 0.1))


def test_wttm_weight_is_large_even_for_a_confident_teacher() -> None:
    """0.99 on one of 100 classes at power 0.1: 0.99^0.1 + 99 * (0.01 / 99)^0.1, about 40 times TTM."""
    teacher = torch.tensor([[0.99] + 99 * [0.01 / 99]]).log()
    student = torch.linspace(-1, 1, 100).unsqueeze(0)

    ratio = wttm_loss(student, teacher, 0.1) / ttm_loss(student, teacher, 0.1)
    assert ratio.item() == pytest.approx(0.99**0.1 + 99 * (0.01 / 99) ** 0.1, rel=1e-4)
    assert 40 < ratio < 41


@pytest.mark.parametrize(("power", "T"), [(0.8, 1.0), (1.5, 1.0), (1.5, 3.0)])
def test_ofa_by_hand(power: float, T: float) -> None:
    """-sum of ((p + 1_y)^power - 1_y) log q, mean of the two samples, no T^2."""
    expected = 0.0
    for s, t, y in zip(STUDENT, TEACHER, LABELS, strict=True):
        for k, (p, q) in enumerate(zip(softmax(t, T), softmax(s, T), strict=True)):
            is_label = 1 if k == y else 0
            expected -= ((p + is_label) ** power - is_label) * math.log(q) / 2

    assert ofa_loss(*tensors(), torch.tensor(LABELS), power=power, T=T).item() == pytest.approx(expected)


def test_ofa_default_temperature_is_one() -> None:
    """T may be left out: the published losses do not soften."""
    labels = torch.tensor(LABELS)

    assert ofa_loss(*tensors(), labels, power=1.5) == ofa_loss(*tensors(), labels, power=1.5, T=1.0)
    assert ofa_loss(*tensors(), labels, power=1.5) != ofa_loss(*tensors(), labels, power=1.5, T=2.0)


def test_ofa_with_power_one_is_soft_cross_entropy() -> None:
    """(p + 1)^1 - 1 is p: the label makes no difference."""
    student, teacher = tensors()
    for labels in (torch.tensor([0, 2]), torch.tensor([1, 0])):
        torch.testing.assert_close(
            ofa_loss(student, teacher, labels, power=1), soft_ce_loss(student, teacher, T=1)
        )


def test_ofa_strengthens_the_label() -> None:
    """More `power`, more pull towards the label and less towards other classes."""
    student, teacher = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[1.0, 0.5, 0.0]]).double()
    student.requires_grad_()

    def pull(power: float) -> Tensor:
        loss = ofa_loss(student, teacher, torch.tensor([0]), power=power)
        return -torch.autograd.grad(loss, student)[0][0]

    assert pull(1.5)[0] > pull(1.0)[0]
    assert pull(1.5)[1] < pull(1.0)[1]


def test_ofa_keeps_tiny_probabilities_of_the_label() -> None:
    """p[y] = e^-20 in float32: (1 + p)^1.5 - 1 is 1.5 p, where 1 + p alone rounds to 1."""
    teacher = torch.tensor([[0.0, 20.0]])
    student = torch.tensor([[0.0, 0.0]], requires_grad=True)
    loss = ofa_loss(student, teacher, torch.tensor([0]), power=1.5)

    p = math.exp(-20) / (1 + math.exp(-20))
    other = (1 - p) ** 1.5
    # gradient at the label, from weights w: sum(w) q[y] - w[y], with q = (1/2, 1/2)
    (slope,) = torch.autograd.grad(loss, student)
    assert slope[0, 0].item() == pytest.approx((1.5 * p + other) / 2 - 1.5 * p, rel=1e-6)
    sure_student = torch.tensor([[-1e4, 1e4]])
    assert ofa_loss(sure_student, teacher, torch.tensor([0]), 1.5).item() == pytest.approx(
        1.5 * p * 2e4, rel=1e-3
    )
