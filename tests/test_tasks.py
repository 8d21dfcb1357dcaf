"""The tasks: each one's loss by hand and against plain loops, its scores against scikit-learn, its order."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.metrics import classification, multilabel, regression
from kdistill.tasks import CLASSIFICATION, MULTILABEL, REGRESSION, TASKS, Task, task_of

NAN = float("nan")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(task: Task, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    loss = task.hard_loss(logits, labels, smoothing)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


# --- classification ---


PARTLY = task_of("classification", all_labelled=False)


@pytest.mark.parametrize("task", [CLASSIFICATION, PARTLY])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_of_labelled_samples_is_pytorch_s_to_the_bit(
    task: Task, smoothing: float, dtype: torch.dtype
) -> None:
    """Loss and gradient have the bits of F.cross_entropy in float32, also where samples might lack a label."""
    labels = torch.arange(50) % 7
    loss, grad = gradient(task, random(50, 7).to(dtype), labels, smoothing)
    logits = random(50, 7).to(dtype).requires_grad_()
    expected = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    expected.backward()

    assert torch.equal(loss, expected.detach())
    assert torch.equal(grad, logits.grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_unlabelled_samples_are_left_out_of_cross_entropy(smoothing: float) -> None:
    """The mean is over the labelled ones; the others get no gradient."""
    logits, labels = random(5, 3), torch.tensor([2, -1, 0, -1, 1])
    loss, grad = gradient(PARTLY, logits, labels, smoothing)
    known = labels >= 0

    assert loss == pytest.approx(CLASSIFICATION.hard_loss(logits[known], labels[known], smoothing).item())
    assert not grad[~known].any()
    assert grad[known].abs().min() > 0
    assert PARTLY.hard_loss(logits, torch.full((5,), -1), smoothing) == 0


def test_distributions_by_hand() -> None:
    """Even logits over two classes cost ln 2 per unit of label; a row of 0.5 counts half, zeros not at all."""
    labels = torch.tensor([[1.0, 0.0], [0.25, 0.25], [0.0, 0.0]])

    assert CLASSIFICATION.hard_loss(torch.zeros(3, 2), labels).item() == pytest.approx(
        (1 + 0.5) * math.log(2) / 2
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_distributions_agree_with_labels_and_with_pytorch(smoothing: float) -> None:
    """One-hot rows are labels, rows of zeros are -1; whole rows are what F.cross_entropy takes."""
    logits, labels = random(6, 4), torch.tensor([3, -1, 0, 1, -1, 2])
    rows = F.one_hot(labels.clamp(min=0), 4) * (labels >= 0).float()[:, None]
    whole = random(6, 4, seed=1).softmax(1)

    as_rows, as_labels = (PARTLY.hard_loss(logits, x, smoothing).item() for x in (rows, labels))
    assert as_rows == pytest.approx(as_labels)
    expected = F.cross_entropy(logits, whole, label_smoothing=smoothing)
    assert CLASSIFICATION.hard_loss(logits, whole, smoothing).item() == pytest.approx(expected.item())


def test_classification_scores_are_the_metrics() -> None:
    """summarise gives what it always gave: top-1, NLL, calibration error, agreement."""
    logits, labels = random(40, 5), torch.arange(40) % 5
    scores = CLASSIFICATION.summarise(logits, labels, logits)

    assert scores == classification.summarise(logits, labels, logits)
    assert list(scores) == ["top1", "nll", "ece", "agreement"]
    assert scores["top1"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))


# --- several labels ---


def test_binary_cross_entropy_by_loops() -> None:
    """Mean over samples and classes of -y log p - (1 - y) log(1 - p), labels moved towards 1/2."""
    logits, labels = random(4, 3), (random(4, 3, seed=1) > 0).float()
    for smoothing in (0.0, 0.2):
        total = 0.0
        for z, y in zip(logits.double().flatten().tolist(), labels.flatten().tolist(), strict=True):
            p, y = 1 / (1 + math.exp(-z)), y * (1 - smoothing) + smoothing / 2
            total -= y * math.log(p) + (1 - y) * math.log(1 - p)

        assert MULTILABEL.hard_loss(logits, labels, smoothing).item() == pytest.approx(total / 12)


@pytest.mark.parametrize("unknown", [-1.0, NAN])
def test_unlabelled_samples_are_left_out_of_binary_cross_entropy(unknown: float) -> None:
    """Rows of -1 or nan: the mean is over the other rows, and no gradient comes from them."""
    logits, labels = random(4, 3), torch.tensor([[1.0, 0, 1], [unknown] * 3, [0, 0, 0], [unknown] * 3])
    loss, grad = gradient(MULTILABEL, logits, labels)

    assert loss == pytest.approx(F.binary_cross_entropy_with_logits(logits[[0, 2]], labels[[0, 2]]).item())
    assert not grad[[1, 3]].any()
    assert grad[[0, 2]].abs().min() > 0


def test_multilabel_scores_against_scikit_learn() -> None:
    """mAP over the classes that occur, with ties; micro F1; subset accuracy; mean of the classes' log losses."""
    logits = (2 * random(60, 4)).round()  # many equal scores
    labels = (logits + 3 * random(60, 4, seed=1) > 1).float()
    labels[:, 2] = 0  # a class that never occurs
    scores = MULTILABEL.summarise(logits, labels, -logits)
    found, occurring = (logits > 0).long(), [0, 1, 3]

    assert scores["map"] == pytest.approx(
        average_precision_score(labels[:, occurring], logits[:, occurring], average="macro")
    )
    assert scores["f1"] == pytest.approx(f1_score(labels, found, average="micro"))
    assert scores["exact"] == pytest.approx(accuracy_score(labels, found))
    losses = [log_loss(labels[:, k], logits[:, k].double().sigmoid(), labels=[0, 1]) for k in range(4)]
    assert scores["nll"] == pytest.approx(sum(losses) / 4)
    assert scores["agreement"] == 0
    assert MULTILABEL.summarise(logits, labels, 3 * logits)["agreement"] == 1


def test_average_precision_by_hand() -> None:
    """Relevant at ranks 1 and 3 of 3: (1/1 + 2/3) / 2. All tied: the share of the relevant."""
    relevant = torch.tensor([True, False, True])

    assert multilabel.average_precision(torch.tensor([3.0, 2, 1]), relevant) == pytest.approx((1 + 2 / 3) / 2)
    assert multilabel.average_precision(torch.zeros(3), relevant) == pytest.approx(2 / 3)


def test_multilabel_scores_without_any_label() -> None:
    """Nothing there and nothing found: mAP and F1 are 0, not nan, and every sample is right."""
    scores = MULTILABEL.summarise(torch.full((3, 2), -1.0), torch.zeros(3, 2))

    assert (scores["map"], scores["f1"], scores["exact"]) == (0, 0, 1)


# --- values ---


def test_squared_error_by_hand() -> None:
    """(1 + 4) / 2 over the known values; an unknown one counts neither above nor below the line."""
    logits, labels = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([[0.0], [1.0], [NAN]])
    loss, grad = gradient(REGRESSION, logits, labels)

    assert loss.item() == 2.5
    assert grad.flatten().tolist() == [1, 2, 0]


def test_regression_takes_no_label_smoothing() -> None:
    """There are no classes to spread it over: the message names the setting."""
    with pytest.raises(ConfigError) as caught:
        REGRESSION.hard_loss(torch.zeros(1, 1), torch.zeros(1, 1), 0.1)
    assert str(caught.value) == ("label_smoothing=0.1 means nothing for regression: set label_smoothing=0")


def test_regression_scores_against_scikit_learn() -> None:
    """R2, and RMSE and MAE in the units of each value; nll stays the standardised squared error."""
    labels, logits, std = random(50, 2), 0.8 * random(50, 2) + 0.3 * random(50, 2, seed=1), (10.0, 0.5)
    task = task_of("regression", std)
    scores = task.summarise(logits, labels, logits)
    values, predicted = labels.double() * torch.tensor(std), logits.double() * torch.tensor(std)

    assert scores["r2"] == pytest.approx(r2_score(values, predicted))
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(values, predicted))
    assert scores["mae"] == pytest.approx(mean_absolute_error(values, predicted))
    assert scores["nll"] == pytest.approx((logits - labels).square().mean().item())
    assert list(scores) == ["r2", "rmse", "mae", "nll"]
    assert REGRESSION.summarise(logits, labels)["rmse"] == pytest.approx(
        root_mean_squared_error(labels, logits)
    )


def test_r2_of_a_value_that_never_varies() -> None:
    """1 where it is met exactly, else 0, as in scikit-learn."""
    constant = torch.ones(4, 1)

    assert regression.r2(constant, constant) == r2_score(constant, constant) == 1
    assert regression.r2(constant + 1, constant) == r2_score(constant, constant + 1) == 0


# --- all ---


LABELS = {
    "classification": torch.tensor([0, 2, 1]),
    "multilabel": torch.eye(3),
    "regression": random(3, 3, seed=5),
}
UNKNOWN = {
    "classification": torch.tensor([-1, -1, -1]),
    "multilabel": torch.full((3, 3), NAN),
    "regression": torch.full((3, 3), NAN),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_without_labels_costs_nothing(name: str) -> None:
    """The loss is 0 and no gradient is nan or anything but 0."""
    task = task_of(name, all_labelled=False)
    loss, grad = gradient(task, random(3, 3), UNKNOWN[name])

    assert loss == 0
    assert torch.equal(grad, torch.zeros(3, 3))


@pytest.mark.parametrize("name", TASKS)
def test_gradients_are_right(name: str) -> None:
    """Against differences, in float64, which stays float64."""
    task, logits = TASKS[name], random(3, 3).double().requires_grad_()

    assert task.hard_loss(logits, LABELS[name]).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda z: task.hard_loss(z, LABELS[name]), (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TASKS)
def test_extreme_logits_stay_finite(name: str, dtype: torch.dtype) -> None:
    """Saturated, constant and zero logits give finite losses and gradients; the loss is in float32."""
    for logits in (1e4 * torch.eye(3), -1e4 * torch.eye(3), torch.full((3, 3), 7.0), torch.zeros(3, 3)):
        loss, grad = gradient(TASKS[name], logits.to(dtype), LABELS[name])

        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()


def test_rank_goes_by_the_headline_and_then_by_nll() -> None:
    """Larger is better: a better headline wins whatever the nll; of equal ones the smaller nll."""
    for task in TASKS.values():
        low, high, sure = ({task.headline: a, "nll": b} for a, b in ((0.5, 0.1), (0.6, 9.0), (0.6, 1.0)))
        assert task.rank(low) < task.rank(high) < task.rank(sure)
    assert [task.headline for task in TASKS.values()] == ["top1", "map", "r2"]


def test_a_line_for_the_log_has_names_and_units() -> None:
    """Also of what diverged."""
    assert TASKS["classification"].line({"top1": 0.9231, "nll": 0.2345}) == "top-1 92.31 %  NLL 0.2345"
    assert TASKS["multilabel"].line({"map": 0.5, "f1": 0.1, "nll": 0.4}) == "mAP 50.00 %  BCE 0.4000"
    assert TASKS["regression"].line({"r2": -1e9, "mae": 1, "nll": 0.55}) == "R2 -1e+09  MSE 0.5500"


@pytest.mark.parametrize("name", TASKS)
def test_columns_are_scores(name: str) -> None:
    """A table can show every score of an evaluation, and T, the headline first; a summary has some of them."""
    task = TASKS[name]
    labels = {"classification": torch.arange(7), "multilabel": torch.eye(7), "regression": random(7, 7)}[name]
    logits, teacher, T = random(7, 7), random(7, 7, seed=1), 2.0 if task.temperature else None
    scores = task.judge(logits, labels, teacher, T) | ({"temperature": T} if T else {})

    assert {column.key for column in task.columns} == set(scores) - {"nll_scaled"}  # which files have
    assert task.summarise(logits, labels, teacher).items() <= scores.items()
    assert task.columns[0].key == task.headline
    assert all(isinstance(column.text(scores[column.key]), str) for column in task.columns)
    assert CLASSIFICATION.columns[0][1:2] == ("top-1 %",)
    assert CLASSIFICATION.columns[0].text(0.98765) == "98.77"


def test_unknown_task_is_named() -> None:
    """With the nearest match and all there are; a unit of values changes nothing for classes."""
    assert task_of("classification", None) is CLASSIFICATION
    with pytest.raises(ConfigError) as caught:
        task_of("multilable")
    assert str(caught.value) == (
        "no task 'multilable'. Did you mean 'multilabel'? There are classification, multilabel, regression"
    )
