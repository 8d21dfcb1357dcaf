"""The losses: values by hand, invariants, and the formula that adds them up."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdistill import kd_loss
from kdistill.config.losses import CELoss, KDLoss
from kdistill.data import Batch
from kdistill.losses import Objective, Outputs, build_objective
from kdistill.losses.formula import SoftLoss


def logits(n: int = 8, k: int = 10, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(labels: torch.Tensor) -> Batch:
    return Batch(torch.empty(len(labels)), labels, torch.arange(len(labels)))


def kd(**values: Any) -> KDLoss:
    return KDLoss(kind="kd", standardise=False, features={}, **values)


def test_kd_loss_by_hand_two_classes() -> None:
    """Teacher p = (3/4, 1/4), student q = (1/2, 1/2) at T=1: KL = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)

    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)

    assert expected == pytest.approx(kd_loss(student, teacher, T=1).item(), rel=1e-6)


def test_kd_loss_by_hand_with_temperature() -> None:
    """At T=2, teacher logits (2 ln 3, 0) give the same (3/4, 1/4); the value is 2^2 times the divergence."""
    teacher, student = torch.tensor([[2 * math.log(3.0), 0.0]]), torch.zeros(1, 2)

    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))

    assert expected == pytest.approx(kd_loss(student, teacher, T=2).item(), rel=1e-6)


def test_kd_loss_is_the_mean_over_samples() -> None:
    """A sample with no difference halves the value of the one beside it."""
    teacher = torch.tensor([[math.log(3.0), 0.0], [1.0, 2.0]])
    student = torch.tensor([[0.0, 0.0], [1.0, 2.0]])

    assert kd_loss(student[:1], teacher[:1], T=1).item() / 2 == pytest.approx(
        kd_loss(student, teacher, T=1).item()
    )


@settings(deadline=None, max_examples=30)
@given(T=st.floats(0.5, 64), shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_kd_loss_invariants(T: float, shift: float, seed: int) -> None:
    """Zero at equality, positive elsewhere, blind to a constant added to all logits and to the order of classes."""
    student, teacher = logits(seed=seed), logits(seed=seed + 100)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    value = kd_loss(student, teacher, T)

    assert kd_loss(teacher, teacher, T).item() == 0
    assert value > 0
    torch.testing.assert_close(kd_loss(student + shift, teacher - shift, T), value)
    torch.testing.assert_close(kd_loss(student[:, order], teacher[:, order], T), value)


@pytest.mark.parametrize("T", [1, 2, 4, 8, 16, 32, 64])
def test_gradient_size_hardly_depends_on_T(T: float) -> None:
    """T^2 does its work: for T from 1 to 64 the gradient stays within a factor of 3 of its limit.

    The limit for large T is (z_s - z_t) / K on centred logits, divided by the number of samples.
    """
    student, teacher = logits(seed=1, scale=1.0).requires_grad_(), logits(seed=2, scale=1.0)
    kd_loss(student, teacher, T).backward()
    difference = (student - teacher).detach()
    limit = (difference - difference.mean(1, keepdim=True)) / 10 / 8

    assert student.grad is not None
    assert 1 / 3 < (student.grad.norm() / limit.norm()).item() < 3


def test_gradient_matches_finite_differences() -> None:
    """Autograd's gradient is the loss's slope; none flows to the teacher."""
    student, teacher = logits(4, 5).requires_grad_(), logits(4, 5, seed=3).requires_grad_()

    assert torch.autograd.gradcheck(lambda s: kd_loss(s, teacher, 3.0), student)
    kd_loss(student, teacher, 3.0).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_finite_on_extreme_logits(dtype: torch.dtype, T: float) -> None:
    """Logits of +-1e4, all equal, and all zero give finite losses and gradients, also in half precision."""
    extreme = torch.tensor(
        [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0]], dtype=dtype
    )
    for teacher in (extreme, extreme.flip(0), extreme.flip(1)):
        student = extreme.clone().requires_grad_()
        loss = kd_loss(student, teacher, T)
        loss.backward()

        assert torch.isfinite(loss)
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


def test_formula_weighs_terms() -> None:
    """alpha * CE + beta * T^2 KL, each under its name, from float64 arithmetic written out here."""
    student, teacher, labels = logits(seed=1), logits(seed=2), torch.arange(8)
    objective = build_objective(kd(alpha=0.3, beta=0.5, T=2), label_smoothing=0.0)
    q, p = (student / 2).softmax(1), (teacher / 2).softmax(1)
    soft = 4 * (p * (p.log() - q.log())).sum(1).mean()
    hard = -student.log_softmax(1)[torch.arange(8), labels].mean()

    terms = objective(Outputs(student), batch(labels), Outputs(teacher))

    assert list(terms) == ["hard", "soft"]
    torch.testing.assert_close(terms["hard"].double(), hard, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["soft"], soft)
    assert objective.weights == {"hard": 0.3, "soft": 0.5}


def test_a_term_of_weight_zero_is_not_computed() -> None:
    """Neither of labels nor of the teacher; with no weight at all the labels' term is there, and counts nothing."""
    student, teacher, labels = logits(seed=1), logits(seed=2), torch.arange(8)
    soft = SoftLoss(kd_loss)
    for alpha, beta, names in ((1, 0, ["hard"]), (0, 1, ["soft"])):
        objective = Objective(alpha=alpha, beta=beta, soft=soft, T=2.0)
        assert (
            list(objective(Outputs(student), batch(labels), Outputs(teacher)))
            == names
            == list(objective.weights)
        )
    assert Objective(alpha=0).weights == {"hard": 0}


def test_beta_null_means_one_minus_alpha() -> None:
    """`beta: null` is read as 1 - alpha, and a given beta as it stands."""
    assert kd(alpha=0.1, beta=None, T=4).soft_weight == pytest.approx(0.9)
    assert kd(alpha=0.1, beta=2, T=4).soft_weight == 2


def test_no_soft_term_asks_no_teacher() -> None:
    """With beta=0 the objective is cross entropy and needs no teacher logits."""
    student, labels = logits().float(), torch.arange(8)
    for loss in (kd(alpha=1, beta=0, T=4), CELoss(kind="ce", features={})):
        objective = build_objective(loss, label_smoothing=0.1)

        assert not objective.needs_teacher
        assert objective(Outputs(student), batch(labels))["hard"] == F.cross_entropy(
            student, labels, label_smoothing=0.1
        )


def test_label_smoothing_by_hand() -> None:
    """Smoothing eps puts eps/K on every class: for uniform logits the cross entropy stays ln K."""
    objective = Objective(label_smoothing=0.2)

    terms = objective(Outputs(torch.zeros(3, 4)), batch(torch.tensor([0, 1, 2])))

    assert math.log(4) == pytest.approx(terms["hard"].item())
