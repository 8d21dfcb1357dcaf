"""The paired test: values by hand, against scipy where one variance is all there is, and how often it is wrong."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from kdistill.statistics import Paired, paired

#: which of 10,000 test images each student gets right that was trained on labels alone, a line for each seed
CORRECT = Path(__file__).parent / "cases" / "fashion_mnist_correct.npz"
CASES, SEEDS = 1000, 5


def against_zero(gaps: Tensor) -> Paired:
    return paired(torch.zeros_like(gaps), gaps)


# --- values ---


def test_by_hand() -> None:
    """Two seeds, four samples: mean squares 1/2 of the seeds, 5/6 of the samples, 1/6 of the rest."""
    found = against_zero(torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, -1]], dtype=torch.float64))
    half = math.sqrt(12.7062**2 * 0.125 / 2 + 3.18245**2 / 12)

    assert found == Paired(0.25, 2, 4, pytest.approx(0.125), pytest.approx(1 / 12))
    assert found.half_width(0.95) == pytest.approx(half, rel=1e-5)
    assert found.interval(0.95) == pytest.approx((0.25 - half, 0.25 + half), rel=1e-5)


def test_where_seeds_alone_differ_it_is_the_paired_t_test_over_seeds() -> None:
    """Every sample of a seed has the same difference."""
    by_seed = torch.tensor([0.3, 0.1, -0.2, 0.4, 0.2], dtype=torch.float64)
    expected = stats.ttest_1samp(by_seed, 0).confidence_interval(0.9)

    assert against_zero(by_seed[:, None].expand(5, 7)).interval(0.9) == pytest.approx(tuple(expected))


def test_where_samples_alone_differ_it_is_the_paired_t_test_over_samples() -> None:
    """Every seed finds the same differences: more seeds are no more evidence."""
    by_sample = torch.tensor([1.0, 0, 0, -1, 1, 1, 0, 1], dtype=torch.float64)
    expected = tuple(stats.ttest_1samp(by_sample, 0).confidence_interval(0.95))

    for seeds in (2, 20):
        assert against_zero(by_sample.expand(seeds, 8)).interval(0.95) == pytest.approx(expected)


def test_seeds_that_agree_by_chance_make_nothing_sure() -> None:
    """Both seeds gain one sample of four, each another one: the variance of a seed is that of single samples."""
    found = against_zero(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64))

    assert found.seed_variance == pytest.approx(1 / 12)
    assert found.interval(0.95)[0] < 0


def test_sides_and_scales() -> None:
    """Changing sides mirrors the interval; what both have in common is nothing; twice the scores, twice the width."""
    control, variant = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = paired(control, variant).interval(0.95)
    shift = torch.linspace(-5, 5, 30, dtype=torch.float64)

    assert paired(variant, control).interval(0.95) == pytest.approx((-high, -low))
    assert paired(control + shift, variant + shift).interval(0.95) == pytest.approx((low, high))
    assert paired(2 * control, 2 * variant).interval(0.95) == pytest.approx((2 * low, 2 * high))


def test_how_many_seeds_it_takes() -> None:
    """The number found is the first that tells the difference; seeds do not make up for too few samples."""
    found = Paired(0.004, 5, 10_000, seed_variance=0.006**2, sample_variance=0.001**2)
    needed = found.seeds_for(0.01, 0.95)

    assert needed is not None
    assert found.detectable(0.95, needed) <= 0.01 < found.detectable(0.95, needed - 1)
    assert found.detectable(0.95) == found.half_width(0.95) + found.half_width(0.8)
    assert found.seeds_for(0.002, 0.95) is None


# --- how often it is wrong ---


@pytest.fixture(scope="module")
def correct() -> Tensor:
    """1 where a student is right, float64 `[seeds, 10000]`."""
    with np.load(CORRECT) as file:
        return torch.from_numpy(np.unpackbits(file["correct"], axis=1)).double()


def drawn(correct: Tensor, gain: float, samples: int = 10_000) -> list[Paired]:
    """Cases of two equal sides: ten students drawn from those that there are, on test images drawn anew.

    Then the variant is made better by `gain`: it gets images right, the same with every seed, that it had wrong.
    """
    generator = torch.Generator().manual_seed(0)
    share = gain / (1 - correct.mean())
    cases = []
    for _ in range(CASES):
        students = torch.randperm(len(correct), generator=generator)[: 2 * SEEDS]
        images = torch.randint(correct.shape[1], (samples,), generator=generator)
        control, variant = correct[students][:, images].view(2, SEEDS, samples)
        mended = torch.rand(samples, generator=generator) < share
        cases.append(paired(control, torch.where(mended, 1, variant)))
    return cases


@pytest.mark.parametrize("samples", [10_000, 1000])
def test_equal_students_seldom_seem_different(correct: Tensor, samples: int) -> None:
    """Of 1,000 comparisons of a student with itself, at most 60 find a difference at 95 %."""
    wrong = sum(low > 0 or high < 0 for low, high in (c.interval(0.95) for c in drawn(correct, 0, samples)))

    assert wrong <= 0.06 * CASES


def test_a_gain_of_a_point_is_found(correct: Tensor) -> None:
    """At least 900 of 1,000 comparisons, and none of them says worse."""
    intervals = [case.interval(0.95) for case in drawn(correct, 0.01)]

    assert sum(low > 0 for low, _ in intervals) >= 0.9 * CASES
    assert not any(high < 0 for _, high in intervals)


@pytest.mark.parametrize(("seeds", "samples"), [(2, 100), (5, 400)])
@pytest.mark.parametrize("of_seeds", [0.0, 0.3])
@pytest.mark.parametrize("of_samples", [0.0, 0.5, 2.0])
def test_whatever_the_differences_come_from(
    seeds: int, samples: int, of_seeds: float, of_samples: float
) -> None:
    """Normal effects of any proportion: the interval leaves out the true difference in at most 5 % (+ 3 sigma)."""
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for _ in range(400):
        parts = [
            torch.randn(*shape, generator=generator) for shape in ((seeds, 1), (1, samples), (seeds, samples))
        ]
        low, high = against_zero(of_seeds * parts[0] + of_samples * parts[1] + parts[2]).interval(0.95)
        wrong += low > 0 or high < 0

    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
