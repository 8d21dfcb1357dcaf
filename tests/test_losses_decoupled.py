"""DKD and NKD: values from the papers' definitions in plain loops, the decomposition, and near misses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.losses.decoupled import dkd_loss, nkd_loss, without_target
from kdistill.losses.soft import kd_loss, standardised
from tests.cases.by_hand import kl, softmax

STUDENT = [[1.0, -0.5, 2.0, 0.4], [0.3, 0.1, -1.2, 0.9]]
TEACHER = [[3.0, 0.2, -1.0, 1.5], [-0.4, 2.5, 0.6, 0.0]]
LABELS = [0, 3]


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.tensor(STUDENT, dtype=torch.float64),
        torch.tensor(TEACHER, dtype=torch.float64),
        torch.tensor(LABELS),
    )


def without(row: list[float], y: int) -> list[float]:
    return [z for k, z in enumerate(row) if k != y]


def test_without_target_keeps_the_other_classes_in_order() -> None:
    """Each row loses the entry of its own label."""
    rows = torch.tensor([[10, 11, 12], [20, 21, 22], [30, 31, 32]])

    assert without_target(rows, torch.tensor([0, 1, 2])).tolist() == [[11, 12], [20, 22], [30, 31]]


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_dkd_by_hand(T: float) -> None:
    """T^2 (2 TCKD + 5 NCKD) from probabilities at T, mean of the two samples."""
    target = others = 0.0
    for s, t, y in zip(STUDENT, TEACHER, LABELS, strict=True):
        p, q = softmax(t, T)[y], softmax(s, T)[y]
        target += kl([p, 1 - p], [q, 1 - q]) / 2
        others += kl(softmax(without(t, y), T), softmax(without(s, y), T)) / 2

    loss = dkd_loss(*tensors(), T=T, tckd_weight=2, nckd_weight=5)

    assert loss.item() == pytest.approx(T**2 * (2 * target + 5 * others))


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_kd_is_target_plus_share_of_non_target(T: float) -> None:
    """The paper's identity, sample by sample: KL(p_t || p_s) = TCKD + (1 - p_t[y]) NCKD."""
    for s, t, y in zip(*tensors(), strict=True):
        sample = s.unsqueeze(0), t.unsqueeze(0), y.unsqueeze(0)
        share = 1 - (t / T).softmax(0)[y].item()

        torch.testing.assert_close(
            kd_loss(*sample[:2], T), dkd_loss(*sample, T=T, tckd_weight=1, nckd_weight=share)
        )


def test_dkd_weights_are_separate() -> None:
    """A weight of zero takes its part away; the parts add up."""
    target = dkd_loss(*tensors(), T=4, tckd_weight=1, nckd_weight=0)
    others = dkd_loss(*tensors(), T=4, tckd_weight=0, nckd_weight=1)

    torch.testing.assert_close(
        dkd_loss(*tensors(), T=4, tckd_weight=1, nckd_weight=8), 1 * target + 8 * others
    )
    assert target > 1e-2
    assert others > 1e-2


def test_dkd_of_two_classes_is_kd() -> None:
    """One other class holds all of the rest: NCKD is zero and TCKD is the whole divergence."""
    student, teacher = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])

    loss = dkd_loss(student, teacher, torch.tensor([0]), T=2, tckd_weight=1, nckd_weight=100)

    torch.testing.assert_close(loss, kd_loss(student, teacher, T=2))


def test_dkd_standardise_is_dkd_of_z_scores() -> None:
    """`standardise` compares z-scores, for both parts."""
    student, teacher, labels = tensors()

    torch.testing.assert_close(
        dkd_loss(student, teacher, labels, T=2, tckd_weight=1, nckd_weight=8, standardise=True),
        dkd_loss(standardised(student), standardised(teacher), labels, T=2, tckd_weight=1, nckd_weight=8),
    )


def test_near_miss_dkd_of_large_logits() -> None:
    """Where log(softmax(.)) is infinite and a mask of -1000 no mask, DKD is exact.

    The labelled class is at 5000 in both, so p[y] is 1 and TCKD is zero; the other classes are (2, 0)
    against the teacher's (0, 0), which is NCKD.
    """
    student = torch.tensor([[5000.0, 2.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[5000.0, 0.0, 0.0]])
    q = math.exp(2) / (math.exp(2) + 1)
    expected = kl([0.5, 0.5], [q, 1 - q])

    loss = dkd_loss(student, teacher, torch.tensor([0]), T=1, tckd_weight=1, nckd_weight=1)
    loss.backward()

    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    masked = F.softmax(teacher - 1000 * torch.tensor([[1.0, 0.0, 0.0]]), dim=1)
    assert masked[0, 0] == 1  # what the mask should have left out holds everything


@pytest.mark.parametrize("T", [1.0, 3.0])
def test_nkd_by_hand(T: float) -> None:
    """-p_t[y] log p_s[y] at T = 1, plus 3.5 T^2 times a cross entropy over the other classes at T."""
    expected = 0.0
    for s, t, y in zip(STUDENT, TEACHER, LABELS, strict=True):
        expected -= softmax(t)[y] * math.log(softmax(s)[y]) / 2
        p, q = softmax(without(t, y), T), softmax(without(s, y), T)
        expected -= 3.5 * T**2 * sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / 2

    assert nkd_loss(*tensors(), T=T, non_target_weight=3.5).item() == pytest.approx(expected)


def test_near_miss_nkd_leaves_the_label_out_of_the_others() -> None:
    """The non-target part has no gradient at the label; with the label inside its softmax it would."""
    student, teacher, labels = tensors()
    student.requires_grad_()

    def non_target_part(s: Tensor) -> Tensor:
        return nkd_loss(s, teacher, labels, 3.0, 1.0) - nkd_loss(s, teacher, labels, 3.0, 0.0)

    (slope,) = torch.autograd.grad(non_target_part(student), student)

    at_label = slope.gather(1, labels.unsqueeze(1))
    torch.testing.assert_close(at_label, torch.zeros_like(at_label), rtol=0, atol=1e-15)
    torch.testing.assert_close(slope.sum(1), torch.zeros(2, dtype=slope.dtype), rtol=0, atol=1e-12)
    assert slope.abs().max() > 1e-2


def test_nkd_target_term_goes_on_beyond_the_teacher() -> None:
    """At equality its gradient still raises the labelled class: it is a cross entropy, no divergence."""
    _, teacher, labels = tensors()
    student = teacher.clone().requires_grad_()
    nkd_loss(student, teacher, labels, T=3, non_target_weight=3.5).backward()

    assert student.grad is not None
    assert (student.grad.gather(1, labels.unsqueeze(1)) < 0).all()
