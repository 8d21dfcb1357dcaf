"""DIST and MLKD: values from the papers' definitions in plain numpy, batches of one, and near misses."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.losses.correlation import dist_loss, mlkd_loss
from kdistill.losses.soft import kd_loss


def batch(n: int = 5, k: int = 4) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(n)
    student, teacher = 2 * torch.randn(2, n, k, generator=random, dtype=torch.float64)
    return student, teacher


def probabilities(logits: Tensor, T: float) -> np.ndarray:
    exponentials = np.exp(logits.numpy() / T)
    return exponentials / exponentials.sum(1, keepdims=True)


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_dist_by_hand(T: float) -> None:
    """T^2 (2 (1 - mean correlation of rows) + 3 (1 - mean correlation of columns)), numpy's correlations."""
    student, teacher = batch()
    q, p = probabilities(student, T), probabilities(teacher, T)
    rows = np.mean([np.corrcoef(q[i], p[i])[0, 1] for i in range(5)])
    columns = np.mean([np.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(4)])

    loss = dist_loss(student, teacher, T=T, inter_weight=2, intra_weight=3)

    assert loss.item() == pytest.approx(T**2 * (2 * (1 - rows) + 3 * (1 - columns)), rel=1e-5)


def test_dist_asks_for_less_than_equality() -> None:
    """A student whose probabilities are the teacher's, only paler, has nothing to gain; KD wants more."""
    _, teacher = batch()
    paler = (0.5 * teacher.softmax(1) + 0.5 / 4).log()

    assert abs(dist_loss(paler, teacher, T=1, inter_weight=1, intra_weight=1).item()) < 1e-5
    assert kd_loss(paler, teacher, T=1) > 0.05


def test_dist_between_none_and_opposite() -> None:
    """Equal logits cost 0; opposite ones, with two classes, correlate with -1 and cost 2 per term."""
    logits = torch.tensor([[1.0, -1.0], [-2.0, 2.0], [0.5, 0.0]], dtype=torch.float64)

    assert abs(dist_loss(logits, logits, T=1, inter_weight=1, intra_weight=1).item()) < 1e-5
    opposite = dist_loss(-logits, logits, T=1, inter_weight=1, intra_weight=1)
    assert opposite.item() == pytest.approx(4, rel=1e-5)


def test_near_miss_dist_eps_is_added_to_the_norms() -> None:
    """A class that hardly varies over the batch loses its say; a cosine with clamped norms would say 1.

    The third class is at 0.3 + d and 0.3 - d with 2 d^2 = 1e-8: its correlation with itself counts as
    1e-8 / (1e-8 + 1e-8), a half, and the mean over three classes is a sixth short of 1.
    """
    d = 1e-4 / np.sqrt(2)
    logits = torch.tensor([[0.2, 0.5 - d, 0.3 + d], [0.4, 0.3 + d, 0.3 - d]], dtype=torch.float64).log()

    loss = dist_loss(logits, logits, T=1, inter_weight=0, intra_weight=1)

    assert loss.item() == pytest.approx(1 / 6, rel=1e-4)


def test_dist_needs_two_samples() -> None:
    """One sample has no correlation along the batch: a message that says what to change."""
    student, teacher = batch()

    with pytest.raises(ConfigError) as error:
        dist_loss(student[:1], teacher[:1], T=4, inter_weight=1, intra_weight=1)
    assert str(error.value) == (
        "dist: expected batches of at least 2 samples (it correlates samples), got 1; "
        "choose a batch size that leaves no last batch of 1"
    )
    assert dist_loss(student[:2], teacher[:2], T=4, inter_weight=1, intra_weight=1) > 0


def mlkd_by_hand(
    student: Tensor,
    teacher: Tensor,
    temperatures: list[float],
    class_weight: float,
    batch_weight: float,
    instance_weight: float,
) -> float:
    total = 0.0
    for T in temperatures:
        q, p = probabilities(student, T), probabilities(teacher, T)
        n, k = p.shape
        total += instance_weight * T**2 * (p * np.log(p / q)).sum() / n
        for i in range(n):
            for j in range(n):
                total += batch_weight * (q[i] @ q[j] - p[i] @ p[j]) ** 2 / n
        for i in range(k):
            for j in range(k):
                total += class_weight * (q[:, i] @ q[:, j] - p[:, i] @ p[:, j]) ** 2 / k
    return total / len(temperatures)


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 2, 3)])
def test_mlkd_by_hand(weights: tuple[float, float, float]) -> None:
    """Every part alone and all together, each Gram entry in a loop; T^2 in the instance part only."""
    student, teacher = batch()
    expected = mlkd_by_hand(student, teacher, [1.0, 2.0, 6.0], *weights)

    loss = mlkd_loss(student, teacher, [1.0, 2.0, 6.0], *weights)

    assert loss.item() == pytest.approx(expected)
    assert expected > 1e-3


def test_mlkd_is_the_mean_over_temperatures() -> None:
    """Repeating a temperature changes nothing; the authors' sum is this mean times their number."""
    student, teacher = batch()
    once = mlkd_loss(student, teacher, [4.0], class_weight=1, batch_weight=1, instance_weight=1)
    other = mlkd_loss(student, teacher, [2.0], class_weight=1, batch_weight=1, instance_weight=1)

    twice = mlkd_loss(student, teacher, [4.0, 4.0], class_weight=1, batch_weight=1, instance_weight=1)
    both = mlkd_loss(student, teacher, [4.0, 2.0], class_weight=1, batch_weight=1, instance_weight=1)
    torch.testing.assert_close(twice, once)
    torch.testing.assert_close(both, (once + other) / 2)


def test_mlkd_instance_part_alone_is_kd() -> None:
    """Without its correlations and at one temperature it is KD."""
    student, teacher = batch()

    torch.testing.assert_close(
        mlkd_loss(student, teacher, [4.0], class_weight=0, batch_weight=0, instance_weight=1),
        kd_loss(student, teacher, T=4),
    )


def test_mlkd_of_one_sample() -> None:
    """A batch of one has 1 x 1 and K x K Gram matrices: nothing is undefined."""
    student, teacher = batch()
    expected = mlkd_by_hand(student[:1], teacher[:1], [2.0, 4.0], 1, 1, 1)

    loss = mlkd_loss(student[:1], teacher[:1], [2, 4], class_weight=1, batch_weight=1, instance_weight=1)

    assert loss.item() == pytest.approx(expected)


def test_mlkd_class_part_grows_with_the_square_of_the_batch() -> None:
    """Each sample three times over: class relations add up (9 times), so weights belong to a batch size."""
    student, teacher = batch()
    loss = mlkd_loss(student, teacher, [4.0], class_weight=1, batch_weight=0, instance_weight=0)
    tripled = mlkd_loss(
        student.repeat(3, 1), teacher.repeat(3, 1), [4.0], class_weight=1, batch_weight=0, instance_weight=0
    )

    torch.testing.assert_close(tripled, 9 * loss)


def test_mlkd_needs_a_temperature() -> None:
    """No temperatures, no loss: a message with an example."""
    student, teacher = batch()

    with pytest.raises(ConfigError, match=r"mlkd: expected at least one temperature, got none; for example"):
        mlkd_loss(student, teacher, [], class_weight=1, batch_weight=1, instance_weight=1)
