"""The metrics: values by hand, and against scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from kdistill import metrics


def test_top1_and_agreement_by_hand() -> None:
    """Two of three right; student and teacher agree on one of three."""
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])

    assert metrics.top1(logits, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    assert metrics.agreement(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])) == pytest.approx(
        1 / 3
    )


def test_calibration_error_by_hand() -> None:
    """Confidence 3/4 on four samples, two right: the gap is 1/4. Certain and always right: no gap."""
    sure = torch.tensor([[math.log(3.0), 0.0]]).repeat(4, 1)

    assert metrics.calibration_error(sure, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.25)
    assert metrics.calibration_error(1e4 * torch.eye(3), torch.arange(3)) == 0


def test_calibration_error_weighs_bins_by_their_samples() -> None:
    """Three samples at confidence 3/4 (all right) and one at 9/10 (wrong): (3 * 1/4 + 9/10) / 4."""
    logits = torch.tensor([[math.log(3.0), 0.0]] * 3 + [[math.log(9.0), 0.0]])

    assert metrics.calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(
        (3 * 0.25 + 0.9) / 4
    )


def test_against_scikit_learn() -> None:
    """Top-1 and NLL are what scikit-learn computes."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        2 * torch.randn(200, 5, generator=generator),
        torch.randint(5, (200,), generator=generator),
    )
    summary = metrics.summarise(logits, labels, logits)

    assert accuracy_score(labels, logits.argmax(1)) == pytest.approx(summary["top1"])
    assert log_loss(labels, logits.double().softmax(1)) == pytest.approx(summary["nll"])
    assert summary["agreement"] == 1
