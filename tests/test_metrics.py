"""The metrics: values by hand, and against scikit-learn and torchmetrics."""

import math

import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    multilabel_confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)
from torch import Tensor
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError
from torchmetrics.functional import kl_divergence

from kdistill.metrics import calibration, multilabel, regression
from kdistill.metrics import classification as metrics


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


def test_the_mean_over_samples_is_the_headline() -> None:
    """Of each task, also where many samples score the same, a class is nobody's, a value never varies."""
    logits = random(60, 4)
    some = (random(60, 4, seed=1) > torch.tensor([0.0, 0.5, 1.5, 9.0])).double()
    values = random(60, 4, seed=2) * torch.tensor([1.0, 2.0, 0.5, 0.0])

    assert metrics.by_sample(logits, some[:, 0].long()).mean().item() == metrics.top1(
        logits, some[:, 0].long()
    )
    for scores in (logits, logits.round()):
        assert multilabel.by_sample(scores, some).mean().item() == pytest.approx(
            multilabel.mean_average_precision(scores, some)
        )
    assert multilabel.by_sample(logits, torch.zeros(60, 4)).tolist() == [0] * 60
    assert regression.by_sample(logits, values).mean().item() == pytest.approx(regression.r2(logits, values))


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_what_a_sample_brings_to_average_precision_is_what_is_lost_without_it(steps: int) -> None:
    """Against leaving each one out in turn; `steps` different scores, so that some are equal."""
    scores = (steps * torch.rand(40, generator=torch.Generator().manual_seed(steps))).round()
    relevant = random(40, seed=3) > 0.5
    whole = multilabel.average_precision(scores, relevant)
    losses = []
    for i in range(40):
        others = torch.arange(40) != i
        losses.append(39 * (whole - multilabel.average_precision(scores[others], relevant[others])))
    gains = multilabel.by_sample(scores[:, None], relevant[:, None].double())

    assert (gains - gains.mean()).tolist() == pytest.approx(
        (torch.tensor(losses) - sum(losses) / 40).tolist(), abs=1e-5
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


# --- the whole evaluation, of one of several classes ---


def test_top_k_and_brier_by_hand() -> None:
    """Second of three counts among two; (1/4)^2 + (1/4)^2 for probabilities 3/4 and 1/4."""
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    sure = torch.tensor([[math.log(3.0), 0.0]])

    assert [metrics.top_k(logits, torch.tensor([k]), 2) for k in range(3)] == [1, 1, 0]
    assert metrics.brier(sure, torch.tensor([0])) == pytest.approx(2 / 16)
    assert metrics.brier(sure, torch.tensor([1])) == pytest.approx(2 * 9 / 16)


def test_divergence_by_hand() -> None:
    """KL of (1/2, 1/2) from (3/4, 1/4): log(1/2 / 3/4) / 2 + log(1/2 / 1/4) / 2; 0 from itself."""
    even, sure = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])

    assert metrics.divergence(sure, even) == pytest.approx((math.log(2 / 3) + math.log(2)) / 2)
    assert metrics.divergence(sure, sure + 7) == pytest.approx(0, abs=1e-12)


def test_confusion_and_accuracy_of_each_class_by_hand() -> None:
    """Rows are labels. A class without a sample has no accuracy."""
    logits = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    labels = torch.tensor([0, 0, 1])

    assert metrics.confusion_matrix(logits, labels).tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert metrics.by_class(logits, labels)[:2].tolist() == [0.5, 0]
    assert metrics.by_class(logits, labels)[2].isnan()


def test_judge_against_scikit_learn_and_torchmetrics() -> None:
    """Each score of an evaluation is what the others compute; top-5 only of more than five classes."""
    logits, labels, teacher = 2 * random(300, 7), random(300, 7, seed=1).argmax(1), random(300, 7, seed=2)
    scores = metrics.judge(logits, labels, teacher, T=2.0)
    p = logits.double().softmax(1)
    error = MulticlassCalibrationError(7, n_bins=15, norm="l1")

    assert scores["top5"] == pytest.approx(top_k_accuracy_score(labels, p, k=5))
    assert scores["brier"] == pytest.approx(brier_score_loss(labels, p, scale_by_half=False))
    assert scores["ece"] == pytest.approx(error(p, labels).item(), abs=1e-6)
    assert scores["nll_scaled"] == pytest.approx(log_loss(labels, (logits.double() / 2).softmax(1)))
    assert scores["ece_scaled"] == pytest.approx(
        error((logits.double() / 2).softmax(1), labels).item(), abs=1e-6
    )
    assert scores["kl"] == pytest.approx(kl_divergence(teacher.double().softmax(1), p).item())
    found = confusion_matrix(labels, logits.argmax(1))
    assert metrics.confusion_matrix(logits, labels).tolist() == found.tolist()
    recalls = recall_score(labels, logits.argmax(1), average=None)
    assert metrics.by_class(logits, labels).tolist() == pytest.approx(recalls.tolist())
    assert "top5" not in metrics.judge(logits[:, :5], labels % 5)


# --- temperature ---


def test_temperature_by_hand() -> None:
    """Three of four right at logits (log 9, 0): likeliest is probability 3/4, so T is log 9 / log 3 = 2."""
    logits, labels = torch.tensor([[math.log(9.0), 0.0]] * 4), torch.tensor([0, 0, 0, 1])

    assert calibration.class_temperature(logits, labels) == pytest.approx(2, rel=1e-6)
    assert calibration.binary_temperature(logits[:, :1], 1.0 - labels[:, None]) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_temperature_is_the_likeliest(scale: float) -> None:
    """NLL at T is below that of its neighbours, and T grows with the logits."""
    logits = 2 * random(500, 4)
    labels = torch.distributions.Categorical(logits=logits / 2).sample()
    T = calibration.class_temperature(scale * logits, labels)
    assert T is not None
    best = metrics.nll(scale * logits / T, labels)

    assert all(best < metrics.nll(scale * logits / other, labels) for other in (0.97 * T, 1.03 * T, scale))
    assert T / scale == pytest.approx(calibration.class_temperature(logits, labels), rel=1e-5)


def test_there_may_be_no_temperature() -> None:
    """All right, NLL falls with T for ever; all wrong, it falls as T grows."""
    logits = torch.eye(3)

    assert calibration.class_temperature(logits, torch.arange(3)) is None
    assert calibration.class_temperature(logits, torch.tensor([1, 2, 0])) is None


# --- several classes at once, and numbers ---


def test_judging_several_classes_against_scikit_learn_and_torchmetrics() -> None:
    """Brier, calibration error over all decisions, counts and average precision of each class."""
    logits, teacher = 2 * random(200, 4), random(200, 4, seed=1)
    labels = (logits + 3 * random(200, 4, seed=2) > 1).float()
    scores = multilabel.judge(logits, labels, teacher, T=2.0)
    p, y = logits.double().sigmoid(), labels.long()

    assert scores["brier"] == pytest.approx(sum(brier_score_loss(y[:, k], p[:, k]) for k in range(4)) / 4)
    assert scores["ece"] == pytest.approx(
        BinaryCalibrationError(n_bins=15, norm="l1")(p.flatten(), y.flatten()).item(), abs=1e-6
    )
    assert scores["nll_scaled"] == pytest.approx(multilabel.nll(logits / 2, labels))
    q = teacher.double().sigmoid()
    both = [torch.stack([x.flatten(), 1 - x.flatten()], 1) for x in (q, p)]
    assert scores["kl"] == pytest.approx(kl_divergence(*both).item())
    found = multilabel_confusion_matrix(y, (logits > 0).long())
    assert multilabel.confusion_matrices(logits, labels).tolist() == found.tolist()
    precisions = average_precision_score(y, logits, average=None)
    assert multilabel.by_class(logits, labels).tolist() == pytest.approx(precisions.tolist())


def test_distance_to_the_teacher_is_in_own_units() -> None:
    """(1, 3) apart in units of 10: the root of 5, times 10."""
    scores = regression.judge(
        torch.tensor([[1.0], [3.0]]), random(2, 1), torch.zeros(2, 1), target_std=[10.0]
    )

    assert scores["distance"] == pytest.approx(10 * math.sqrt(5))
    assert regression.by_value(random(5, 2), random(5, 2)).tolist() == [1, 1]
