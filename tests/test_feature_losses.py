"""Losses between features as pure functions: values by hand, equations in plain loops, invariants, gradients."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.losses.maps import attention_loss, hcl_loss, hint_loss, nst_loss, vid_loss
from kdistill.losses.relations import pkt_loss, rkd_angle_loss, rkd_distance_loss, sp_loss

Loss = Callable[[Tensor, Tensor], Tensor]

RELATIONS: dict[str, Loss] = {
    "sp": sp_loss,
    "rkd_distance": rkd_distance_loss,
    "rkd_angle": rkd_angle_loss,
    "pkt": pkt_loss,
}
MAPS: dict[str, Loss] = {
    "hint": hint_loss,
    "at1": partial(attention_loss, p=1),
    "at2": partial(attention_loss, p=2),
    "nst": nst_loss,
    "hcl": hcl_loss,
}
LOSSES = RELATIONS | MAPS


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(name: str, n: int = 6, seed: int = 0, wider: int = 0) -> Tensor:
    """Vectors `[n, 5 + wider]` for the relations, maps `[n, 3 + wider, 6, 6]` for the others."""
    return random(n, 5 + wider, seed=seed) if name in RELATIONS else random(n, 3 + wider, 6, 6, seed=seed)


def pixels(*rows: list[float]) -> Tensor:
    """One sample, one channel."""
    return torch.tensor([[list(rows)]], dtype=torch.float64)


# --- values by hand ---


def test_hint_by_hand() -> None:
    """Differences 1 and 3: mean of squares 5; the paper's half is not there."""
    assert hint_loss(pixels([0, 0]), pixels([1, 3])).item() == 5


def test_attention_by_hand() -> None:
    """p=1: (3, -4) has attention (0.6, 0.8), (1, 0) has (1, 0): (0.16 + 0.64) / 2; not the paper's root of 0.8."""
    student, teacher = pixels([3, -4]), pixels([1, 0])
    q = np.array([9, 16]) / math.hypot(9, 16)

    assert attention_loss(student, teacher, p=1).item() == pytest.approx(0.4)
    assert attention_loss(student, teacher, p=2).item() == pytest.approx(((q[0] - 1) ** 2 + q[1] ** 2) / 2)


def test_attention_is_of_the_mean_over_channels() -> None:
    """Channels (3, 0) and (0, 4) have together the attention of one channel (3, 4) at p=1."""
    two = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])

    assert attention_loss(two, pixels([3, 4]).float(), p=1).item() == pytest.approx(0, abs=1e-14)


def test_larger_map_is_pooled_for_attention_and_nst() -> None:
    """A 2 x 2 map against a 1 x 1 or 1 x 2 one is averaged to that size first, whichever side it is on."""
    large, small = pixels([1, 5], [5, 11]), pixels([3, 4])

    for loss in (partial(attention_loss, p=2), nst_loss):
        assert loss(large, small).item() == pytest.approx(loss(pixels([3, 8]), small).item())
        assert loss(small, large).item() == pytest.approx(loss(small, pixels([3, 8])).item())
        assert loss(large, pixels([2])).item() == pytest.approx(0)


def test_nst_by_hand() -> None:
    """One channel each, (0.6, 0.8) and (1, 0): k = 1 + 1 - 2 * 0.6^2."""
    assert nst_loss(pixels([3, 4]), pixels([2, 0])).item() == pytest.approx(1.28)


def test_vid_by_hand() -> None:
    """Difference 3 at variance 9, difference 1 at variance 1: half of the mean of (1 + ln 9, 1 + 0)."""
    student, teacher = torch.zeros(1, 2, 1, 1), torch.tensor([[[[3.0]], [[1.0]]]])

    value = vid_loss(student, teacher, torch.tensor([9.0, 1.0]))

    assert value.item() == pytest.approx(0.5 * (1 + math.log(9) + 1) / 2)


def test_hcl_by_hand() -> None:
    """Half-pictures of +-1 vanish when pooled to 1: weights 1, 1/2, 1/4 at 4 x 4; 1, 1/2 at 2 x 2; 1 at 1 x 1."""
    for side, expected in ((8, 1.75 / 1.875), (4, 1.5 / 1.75), (2, 1 / 1.5)):
        teacher = torch.ones(1, 1, side, side)
        teacher[..., side // 2 :] = -1

        assert hcl_loss(torch.zeros_like(teacher), teacher).item() == pytest.approx(expected)
    assert hcl_loss(pixels([3]), pixels([1])).item() == 4


def test_sp_by_hand() -> None:
    """Orthogonal against equal vectors: rows (1, 0) and (1, 1) / sqrt 2. Rows of L1 norm 1 would give 0.25."""
    student, teacher = torch.eye(2), torch.ones(2, 1)
    r = math.sqrt(0.5)

    assert sp_loss(student, teacher).item() == pytest.approx(2 * ((1 - r) ** 2 + r**2) / 4)


def test_rkd_distance_by_hand() -> None:
    """At 0, 1, 3: distances (1, 2, 3) / 2; at 0, 1, 2: (1, 1, 2) / (4/3). Differences 1/4, 1/4, 0, each twice, of 9."""
    student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])

    assert rkd_distance_loss(student, teacher).item() == pytest.approx(4 * 0.5 * 0.25**2 / 9)


def test_rkd_angle_by_hand() -> None:
    """A right angle (cosines 0, r, r) against a line (1, -1, 1), r = sqrt 1/2: each twice, of 27."""
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.0], [1.0], [2.0]])
    r = math.sqrt(0.5)

    expected = 2 * (0.5 * 1**2 + (1 + r - 0.5) + 0.5 * (1 - r) ** 2) / 27

    assert rkd_angle_loss(student, teacher).item() == pytest.approx(expected)


def test_pkt_by_hand() -> None:
    """Rows (2/3, 1/3) against (1/2, 1/2): twice ln(9/8) / 2, over N^2 = 4."""
    assert pkt_loss(torch.eye(2), torch.ones(2, 1)).item() == pytest.approx(math.log(9 / 8) / 4, rel=1e-5)


# --- the equations in plain loops ---


def looped_attention(s: np.ndarray, t: np.ndarray, p: int) -> float:
    n, _, height, width = s.shape
    total = 0.0
    for i in range(n):
        maps = []
        for f in (s[i], t[i]):
            q = np.array([[sum(abs(c[y, x]) ** p for c in f) for x in range(width)] for y in range(height)])
            maps.append(q / math.sqrt((q**2).sum()))
        total += ((maps[0] - maps[1]) ** 2).sum()
    return total / (n * height * width)


def looped_nst(s: np.ndarray, t: np.ndarray) -> float:
    """In the kernel's feature space: |mean of a a^T over channels - mean of b b^T|^2."""
    total = 0.0
    for a, b in zip(s, t, strict=True):
        moments = []
        for f in (a, b):
            units = [c.ravel() / np.linalg.norm(c) for c in f]
            moments.append(sum(np.outer(u, u) for u in units) / len(units))
        total += ((moments[0] - moments[1]) ** 2).sum()
    return total / len(s)


def looped_sp(s: np.ndarray, t: np.ndarray) -> float:
    n = len(s)
    rows = []
    for x in (s, t):
        g = np.array([[float(np.dot(x[i], x[j])) for j in range(n)] for i in range(n)])
        rows.append(np.array([g[i] / math.sqrt(sum(g[i] ** 2)) for i in range(n)]))
    return float(((rows[0] - rows[1]) ** 2).sum()) / n**2


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def looped_distance(s: np.ndarray, t: np.ndarray) -> float:
    n, psi = len(s), []
    for x in (s, t):
        d = [[math.dist(x[i], x[j]) for j in range(n)] for i in range(n)]
        apart = [v for row in d for v in row if v > 0]
        psi.append([[v / (sum(apart) / len(apart)) for v in row] for row in d])
    return sum(huber(psi[0][i][j] - psi[1][i][j]) for i in range(n) for j in range(n)) / n**2


def looped_angle(s: np.ndarray, t: np.ndarray) -> float:
    def cosine(x: np.ndarray, i: int, j: int, k: int) -> float:
        a, b = x[j] - x[i], x[k] - x[i]
        length = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / length) if length else 0.0

    n = len(s)
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    return sum(huber(cosine(s, *ijk) - cosine(t, *ijk)) for ijk in triples) / n**3


def looped_pkt(s: np.ndarray, t: np.ndarray) -> float:
    n, p = len(s), []
    for x in (s, t):
        k = [
            [(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) + 1) / 2 for j in range(n)]
            for i in range(n)
        ]
        p.append([[v / sum(row) for v in row] for row in k])
    return sum(p[1][i][j] * math.log(p[1][i][j] / p[0][i][j]) for i in range(n) for j in range(n)) / n**2


LOOPED: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "at1": partial(looped_attention, p=1),
    "at2": partial(looped_attention, p=2),
    "nst": looped_nst,
    "sp": looped_sp,
    "rkd_distance": looped_distance,
    "rkd_angle": looped_angle,
    "pkt": looped_pkt,
}


@pytest.mark.parametrize("name", LOOPED)
def test_loss_is_the_equation_in_loops(name: str) -> None:
    """The value is that of plain loops over samples, channels and pixels, also between different widths."""
    student, teacher = features(name, seed=1), features(name, seed=2, wider=4)

    expected = LOOPED[name](student.numpy(), teacher.numpy())

    assert LOSSES[name](student, teacher).item() == pytest.approx(expected, rel=1e-5)


# --- invariants ---


@pytest.mark.parametrize("name", LOSSES)
def test_zero_at_equality_and_blind_to_the_order_of_samples(name: str) -> None:
    """Equal features cost nothing, others something, in whatever order the samples come."""
    student, teacher = features(name, seed=1), features(name, seed=2)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    value = LOSSES[name](student, teacher)

    assert LOSSES[name](teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert value > 1e-5
    torch.testing.assert_close(LOSSES[name](student[order], teacher[order]), value)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("hint", "hcl")])
def test_blind_to_the_unit_of_activations(name: str) -> None:
    """A factor on all features of a network changes nothing."""
    student, teacher = features(name, seed=1), features(name, seed=2)

    scaled = LOSSES[name](1e-3 * student, 1e3 * teacher)

    torch.testing.assert_close(scaled, LOSSES[name](student, teacher))


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_are_blind_to_rotations_and_rkd_to_shifts(name: str) -> None:
    """Only relations count: a rotated embedding space is as good; for RKD a shifted one, too."""
    student, teacher = features(name, seed=1), features(name, seed=2)
    rotation = torch.linalg.qr(random(5, 5, seed=3)).Q
    shift = 2.0 if name.startswith("rkd") else 0.0

    torch.testing.assert_close(
        LOSSES[name](student @ rotation + shift, teacher), LOSSES[name](student, teacher)
    )


def test_rkd_keeps_the_lengths_of_embeddings() -> None:
    """Embeddings are not L2-normalised: one sample further out in the same direction changes both losses."""
    student, teacher = features("rkd_angle", seed=1), features("rkd_angle", seed=2)
    longer = student.clone()
    longer[0] *= 3

    for loss in (rkd_distance_loss, rkd_angle_loss):
        assert abs(loss(longer, teacher) - loss(student, teacher)) > 1e-3


def test_rkd_distances_are_exact_far_from_the_origin() -> None:
    """40 close samples far out, where the product form of the distance has lost its digits in float32."""
    student, teacher = 1000 + random(40, 5, seed=1), random(40, 5, seed=2)

    value = rkd_distance_loss(student.float(), teacher.float())

    assert value.item() == pytest.approx(rkd_distance_loss(student, teacher).item(), rel=1e-3)


def test_vid_is_least_at_the_true_variance() -> None:
    """With differences of +-2 the best variance is 4."""
    student = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    teacher = pixels([2, -2])
    losses = {v: vid_loss(student, teacher, torch.tensor([v])).item() for v in (2.0, 3.9, 4.0, 4.1, 8.0)}

    assert min(losses, key=losses.__getitem__) == 4.0


# --- gradients ---


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_slope_and_none_for_the_teacher(name: str) -> None:
    """Autograd agrees with finite differences in float64."""
    student = features(name, n=3, seed=1).requires_grad_()
    teacher = features(name, n=3, seed=2).requires_grad_()

    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher), student)
    LOSSES[name](student, teacher).backward()
    assert teacher.grad is None


def test_gradient_of_vid_reaches_the_variance() -> None:
    """The variance learns as the mean does."""
    student, teacher = random(2, 3, 2, 2).requires_grad_(), random(2, 3, 2, 2, seed=1)
    variance = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda s, v: vid_loss(s, teacher, v), (student, variance))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_on_extreme_features(name: str, dtype: torch.dtype) -> None:
    """Saturated, constant and zero features, dead samples and twins: finite losses and gradients, on either side."""
    usual = features(name, seed=1).to(dtype)
    dead, twins, near_twins = usual.clone(), usual.clone(), usual.clone()
    dead[2] = 0
    twins[3] = twins[1]
    near_twins[3] = near_twins[1] * (1 + torch.finfo(dtype).eps)
    saturated = 1e4 * usual.sign()
    cases = [usual, dead, twins, near_twins, saturated, 1e4 * usual, usual * 0, usual * 0 + 3]
    for i, case in enumerate(cases):
        for j, teacher in enumerate(cases):
            student = case.clone().requires_grad_()
            loss = LOSSES[name](student, teacher)
            loss.backward()

            assert loss.dtype == torch.float32
            assert torch.isfinite(loss), (i, j)
            assert student.grad is not None
            assert torch.isfinite(student.grad).all(), (i, j)


@pytest.mark.parametrize("name", RELATIONS)
def test_gradient_is_small_at_dead_samples_and_twins(name: str) -> None:
    """A zero embedding, or two that are equal or nearly so, do not make the gradient explode."""
    teacher = features(name, seed=2).float()
    for distance in (0.0, 1e-12, 1e-7, 1e-4):
        student = features(name, seed=1).float()
        student[2] *= distance
        student[4] = student[1] * (1 + distance)
        student.requires_grad_()
        LOSSES[name](student, teacher).backward()

        assert student.grad is not None
        assert student.grad.abs().max() < 100


@pytest.mark.parametrize("name", ["at2", "nst"])
def test_gradient_is_small_at_dead_channels(name: str) -> None:
    """A channel that never fires, or hardly, as happens after a ReLU, leaves the others their small gradients."""
    for size in (0.0, 1e-7):
        student, teacher = features(name, seed=1).float(), features(name, seed=2).float()
        student[:, 0] *= size
        student.requires_grad_()
        LOSSES[name](student, teacher).backward()

        assert student.grad is not None
        assert student.grad[:, 1:].abs().max() < 100
        assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_precision_is_kept_under_autocast(name: str) -> None:
    """Inside autocast the products are still done in float32: the value is the same, bit for bit."""
    student, teacher = features(name, seed=1).float(), features(name, seed=2).float()
    plain = LOSSES[name](student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        cast = LOSSES[name](student, teacher)

    assert torch.equal(cast, plain)


# --- one sample ---


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_compared_sample_by_sample(name: str) -> None:
    """The value of a batch is the mean over its samples, so one sample is enough."""
    student, teacher = features(name, seed=1), features(name, seed=2)

    each = torch.stack([LOSSES[name](s[None], t[None]) for s, t in zip(student, teacher, strict=True)])

    torch.testing.assert_close(each.mean(), LOSSES[name](student, teacher))


@pytest.mark.parametrize(("name", "method"), [(n, n.partition("_")[0]) for n in RELATIONS])
def test_relations_need_two_samples(name: str, method: str) -> None:
    """With one sample the value would be a constant: an error instead."""
    with pytest.raises(ConfigError) as error:
        LOSSES[name](torch.ones(1, 3), torch.ones(1, 3))

    assert str(error.value) == (
        f"{method} compares the samples of a batch with each other: it needs at least 2, got 1;"
        " raise student.batch_size or lower student.optim.accumulate"
    )
