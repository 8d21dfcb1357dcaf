"""What every loss on logits promises, whatever its formula; each method's values are in its own file."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdistill.losses.controls import smoothed_ce_loss, teacher_free_loss
from kdistill.losses.correlation import dist_loss, mlkd_loss
from kdistill.losses.decoupled import dkd_loss, nkd_loss
from kdistill.losses.matching import ofa_loss, ttm_loss, wttm_loss
from kdistill.losses.soft import (
    binary_kd_loss,
    hard_label_loss,
    js_loss,
    kd_loss,
    logit_mse_loss,
    regression_mse_loss,
    reverse_kl_loss,
    soft_ce_loss,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "kd": lambda s, t, y: kd_loss(s, t, T=3),
    "kd_standardised": lambda s, t, y: kd_loss(s, t, T=2, standardise=True),
    "reverse_kl": lambda s, t, y: reverse_kl_loss(s, t, T=3),
    "js": lambda s, t, y: js_loss(s, t, T=3),
    "soft_ce": lambda s, t, y: soft_ce_loss(s, t, T=3),
    "logit_mse": lambda s, t, y: logit_mse_loss(s, t),
    "hard_label": lambda s, t, y: hard_label_loss(s, t),
    "binary_kd": lambda s, t, y: binary_kd_loss(s, t, T=3),
    "regression_mse": lambda s, t, y: regression_mse_loss(s, t),
    "dkd": lambda s, t, y: dkd_loss(s, t, y, T=3, tckd_weight=1, nckd_weight=8),
    "dkd_standardised": lambda s, t, y: dkd_loss(
        s, t, y, T=2, tckd_weight=1, nckd_weight=8, standardise=True
    ),
    "nkd": lambda s, t, y: nkd_loss(s, t, y, T=3, non_target_weight=3.5),
    "dist": lambda s, t, y: dist_loss(s, t, T=3, inter_weight=1, intra_weight=2),
    "mlkd": lambda s, t, y: mlkd_loss(
        s, t, temperatures=(2, 4), class_weight=0.5, batch_weight=0.7, instance_weight=1
    ),
    "ttm": lambda s, t, y: ttm_loss(s, t, power=0.2),
    "wttm": lambda s, t, y: wttm_loss(s, t, power=0.2),
    "ofa": lambda s, t, y: ofa_loss(s, t, y, power=1.5, T=2),
    "smoothed_ce": lambda s, t, y: smoothed_ce_loss(s, y, smoothing=0.1),
    "teacher_free": lambda s, t, y: teacher_free_loss(s, y, T=5, confidence=0.9),
}
BY_NAME = pytest.mark.parametrize("name", LOSSES)

#: those that couple the samples of a batch
COUPLED = {"dist", "mlkd"}
#: zero, and nowhere lower, where the student's logits are the teacher's
ZERO_AT_EQUALITY = [
    "kd", "kd_standardised", "reverse_kl", "js", "logit_mse", "binary_kd", "regression_mse", "dkd",
    "dkd_standardised", "mlkd",
]  # fmt: skip


def batch(n: int = 6, k: int = 5, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits and labels, the same each time, in float64."""
    random = torch.Generator().manual_seed(n * k)
    student, teacher = scale * torch.randn(2, n, k, generator=random, dtype=torch.float64)
    return student, teacher, torch.randint(k, (n,), generator=random)


@BY_NAME
def test_gradient_matches_finite_differences_and_spares_the_teacher(name: str) -> None:
    """Autograd's gradient is the loss's slope, and the teacher gets none."""
    student, teacher, labels = batch(n=4)
    student.requires_grad_()
    teacher.requires_grad_()

    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher, labels), student)
    LOSSES[name](student, teacher, labels).backward()
    assert student.grad is not None
    assert student.grad.norm() > 0
    assert teacher.grad is None


@BY_NAME
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_on_extreme_logits(name: str, dtype: torch.dtype) -> None:
    """Logits of +-1e4, all equal, and all zero, against each other: finite values and gradients."""
    extreme = torch.tensor(
        [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [5.3, 5.3, 5.3], [0.0, 0.0, 0.0], [1e4, 1e4, 1e4]], dtype=dtype
    )
    students = [extreme, torch.zeros(5, 3, dtype=dtype), torch.full((5, 3), 0.1, dtype=dtype)]
    teachers = [extreme, extreme.flip(0), extreme.flip(1), extreme.roll(1, 0), torch.zeros(5, 3, dtype=dtype)]
    labels = torch.tensor([0, 0, 1, 2, 1])
    for values in students:
        for teacher in teachers:
            student = values.clone().requires_grad_()
            loss = LOSSES[name](student, teacher, labels)
            loss.backward()

            assert torch.isfinite(loss)
            assert student.grad is not None
            assert torch.isfinite(student.grad).all()


@BY_NAME
def test_finite_at_twenty_times_normal_logits(name: str) -> None:
    """100 classes with logits of size 20, where log(softmax(.)) in float32 is -inf: nothing overflows.

    The value is that of float64, so nothing was clamped either.
    """
    exact_student, exact_teacher, labels = batch(n=16, k=100, scale=20)
    student = exact_student.float().requires_grad_()
    loss = LOSSES[name](student, exact_teacher.float(), labels)
    loss.backward()

    exact = LOSSES[name](student.detach().double(), exact_teacher.float().double(), labels)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-5)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@BY_NAME
def test_half_precision_is_computed_in_float32(name: str) -> None:
    """bfloat16 logits give the float32 loss of the values they hold; float64 stays float64."""
    student, teacher, labels = batch()
    half = LOSSES[name](student.bfloat16(), teacher.bfloat16(), labels)

    assert half.dtype == torch.float32
    assert half.shape == ()
    assert half == LOSSES[name](student.bfloat16().float(), teacher.bfloat16().float(), labels)
    assert LOSSES[name](student, teacher, labels).dtype == torch.float64


@BY_NAME
def test_order_of_samples_and_of_classes_does_not_matter(name: str) -> None:
    """The loss of a batch in another order, or with its classes renumbered, is the same."""
    student, teacher, labels = batch()
    value = LOSSES[name](student, teacher, labels)
    samples, classes = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([2, 4, 0, 1, 3])
    number = classes.argsort()  # the new number of each class

    torch.testing.assert_close(LOSSES[name](student[samples], teacher[samples], labels[samples]), value)
    torch.testing.assert_close(LOSSES[name](student[:, classes], teacher[:, classes], number[labels]), value)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"binary_kd", "regression_mse"}))
def test_blind_to_a_constant_added_to_a_samples_logits(name: str) -> None:
    """Only differences between the logits of a sample count, as in a softmax."""
    student, teacher, labels = batch()
    shift = torch.arange(6.0, dtype=torch.float64).unsqueeze(1)

    value = LOSSES[name](student, teacher, labels)
    torch.testing.assert_close(LOSSES[name](student + shift, teacher - 3 * shift, labels), value)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - COUPLED))
def test_mean_over_samples_so_a_batch_of_one_is_right(name: str) -> None:
    """The loss of a batch is the mean of the losses of its samples, each a batch of one."""
    student, teacher, labels = batch()
    one_by_one = [LOSSES[name](student[i : i + 1], teacher[i : i + 1], labels[i : i + 1]) for i in range(6)]

    torch.testing.assert_close(LOSSES[name](student, teacher, labels), torch.stack(one_by_one).mean())


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_the_correlation_losses_are_not_means_over_samples(name: str) -> None:
    """A batch in two halves gives another loss: accumulating gradients changes these methods."""
    student, teacher, labels = batch()
    halves = [LOSSES[name](student[i : i + 3], teacher[i : i + 3], labels[i : i + 3]) for i in (0, 3)]

    assert abs(LOSSES[name](student, teacher, labels) - torch.stack(halves).mean()) > 1e-2


@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
def test_zero_and_flat_at_equality_and_positive_elsewhere(name: str) -> None:
    """Divergences vanish with their gradient where student and teacher agree."""
    student, teacher, labels = batch()
    same = teacher.clone().requires_grad_()
    loss = LOSSES[name](same, teacher, labels)
    loss.backward()

    assert abs(loss.item()) < 1e-14
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-8
    assert LOSSES[name](student, teacher, labels) > 1e-2


@pytest.mark.parametrize("name", ["soft_ce", "hard_label", "nkd", "ofa", "smoothed_ce", "teacher_free"])
def test_the_others_are_not_zero_at_equality(name: str) -> None:
    """Cross entropies, and losses whose target is not the teacher's distribution, stay positive."""
    _, teacher, labels = batch()

    assert LOSSES[name](teacher, teacher, labels) > 1e-2
