"""Sums of the loss's terms over the steps of an epoch."""

import math

import pytest
import torch

from kdistill.tally import Broken, Tally

WEIGHTS = {"hard": 0.25, "soft": 2.0}


def terms(hard: float, soft: float) -> list[torch.Tensor]:
    return [torch.tensor(float(hard)), torch.tensor(float(soft))]


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_weighted_sums_by_hand_whenever_somebody_looks(every: int) -> None:
    """0.25 * (1 + 2 + 4) and 2 * (8 + 16 + 32)."""
    tally = Tally()
    for step, (hard, soft) in enumerate([(1, 8), (2, 16), (4, 32)]):
        tally.add(step, WEIGHTS, [(1.0, terms(hard, soft))])
        if (step + 1) % every == 0:
            tally.look()

    assert tally.look().sums == {"hard": 1.75, "soft": 112.0}
    assert tally.broken is None


def test_parts_count_by_their_share_of_a_step() -> None:
    """3/4 * 8 + 1/4 * 16 = 10."""
    tally = Tally()
    tally.add(0, WEIGHTS, [(0.75, terms(8, 0)), (0.25, terms(16, 0))])
    assert tally.look().sums == {"hard": 0.25 * 10, "soft": 0.0}


def test_it_goes_on_from_sums_that_were_saved() -> None:
    tally = Tally({"hard": 5.0, "soft": 1.0})
    tally.add(9, WEIGHTS, [(1.0, terms(4, 1))])
    assert tally.look().sums == {"hard": 6.0, "soft": 3.0}


@pytest.mark.parametrize("every", [1, 2, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_broke_is_kept(value: float, every: int) -> None:
    """With the terms of all of its parts, weighted; those of later steps, which broke by it, say nothing."""
    tally = Tally()
    for step, soft in enumerate([1.0, value, math.nan, 3.0]):
        tally.add(step, WEIGHTS, [(0.5, terms(4, soft)), (0.5, terms(4, 1))])
        if (step + 1) % every == 0:
            tally.look()

    assert isinstance(tally.broken, Broken)
    assert tally.broken.step == 1
    assert tally.broken.terms["hard"] == 1.0
    assert repr(tally.broken.terms["soft"]) == repr(2 * value)
