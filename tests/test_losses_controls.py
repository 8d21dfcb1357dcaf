"""The controls: label smoothing and Tf-KD_reg by hand, and how their authors' weights convert."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.losses.controls import smoothed_ce_loss, teacher_free_loss
from tests.cases.by_hand import softmax

STUDENT = [[1.0, -0.5, 2.0], [0.3, 0.1, -1.2]]
LABELS = [0, 2]


def tensors() -> tuple[Tensor, Tensor]:
    return torch.tensor(STUDENT, dtype=torch.float64), torch.tensor(LABELS)


def wide_batch(k: int, n: int = 16) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(k)
    logits = 2 * torch.randn(n, k, generator=random, dtype=torch.float64)
    return logits, torch.randint(k, (n,), generator=random)


def test_smoothed_ce_by_hand() -> None:
    """0.3 over 3 classes: 0.8 on the label, 0.1 on each other class."""
    expected = 0.0
    for s, y in zip(STUDENT, LABELS, strict=True):
        for k, q in enumerate(softmax(s)):
            expected -= (0.8 if k == y else 0.1) * math.log(q) / 2

    assert smoothed_ce_loss(*tensors(), smoothing=0.3).item() == pytest.approx(expected)


def test_smoothing_zero_is_cross_entropy() -> None:
    """Nothing is moved away from the label."""
    torch.testing.assert_close(smoothed_ce_loss(*tensors(), smoothing=0.0), F.cross_entropy(*tensors()))


@pytest.mark.parametrize("k", [3, 10])
def test_near_miss_smoothing_of_wrong_classes_only(k: int) -> None:
    """eps / (K - 1) on the wrong classes is another loss, that of eps * K / (K - 1) here."""
    logits, labels = wide_batch(k)
    eps = 0.1
    target = torch.full_like(logits, eps / (k - 1)).scatter(1, labels.unsqueeze(1), 1 - eps)
    theirs = -(target * logits.log_softmax(1)).sum(1).mean()

    assert abs(smoothed_ce_loss(logits, labels, smoothing=eps) - theirs) > 1e-3
    torch.testing.assert_close(smoothed_ce_loss(logits, labels, smoothing=eps * k / (k - 1)), theirs)


@pytest.mark.parametrize(("T", "confidence"), [(1.0, 0.6), (20.0, 0.99)])
def test_teacher_free_by_hand(T: float, confidence: float) -> None:
    """The made-up probabilities are divided by T and put through softmax; the student stays at T = 1."""
    expected = 0.0
    for s, y in zip(STUDENT, LABELS, strict=True):
        made_up = [confidence if k == y else (1 - confidence) / 2 for k in range(3)]
        p, q = softmax(made_up, T), softmax(s)
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2

    assert teacher_free_loss(*tensors(), T=T, confidence=confidence).item() == pytest.approx(expected)


def test_teacher_free_is_zero_at_its_made_up_teacher() -> None:
    """Logits u / T have the target's softmax: no loss, and no T^2 to enlarge it."""
    labels = torch.tensor([1, 0])
    made_up = torch.tensor([[0.05, 0.9, 0.05], [0.9, 0.05, 0.05]], dtype=torch.float64)

    assert abs(teacher_free_loss(made_up / 7, labels, T=7, confidence=0.9).item()) < 1e-14


def test_teacher_free_without_knowledge_asks_for_the_uniform_distribution() -> None:
    """confidence = 1 / K, or a very high T, is a uniform target: the label does not matter."""
    logits, labels = wide_batch(10)
    uniform = -(logits.log_softmax(1).mean(1) + math.log(10)).mean()

    torch.testing.assert_close(teacher_free_loss(logits, labels, T=1, confidence=0.1), uniform)
    torch.testing.assert_close(
        teacher_free_loss(logits, labels, T=1e9, confidence=0.99), uniform, rtol=1e-6, atol=0
    )
    assert abs(teacher_free_loss(logits, labels, T=1, confidence=0.99) - uniform) > 1e-2


def test_authors_weights_convert() -> None:
    """Their (1 - a) CE + a * 100 * mean over samples and classes is alpha = 0.9, beta = 0.1 for 100 classes."""
    logits, labels = wide_batch(100)
    a, multiplier, T, confidence = 0.1, 100.0, 20.0, 0.99
    made_up = torch.full_like(logits, (1 - confidence) / 99).scatter(1, labels.unsqueeze(1), confidence)
    target = (made_up / T).softmax(1)
    elementwise = target * (target.log() - logits.log_softmax(1))
    theirs = (1 - a) * F.cross_entropy(logits, labels) + a * multiplier * elementwise.mean()

    ours = 0.9 * F.cross_entropy(logits, labels) + 0.1 * teacher_free_loss(logits, labels, T, confidence)

    torch.testing.assert_close(ours, theirs)
