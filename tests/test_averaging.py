"""Several teachers as one: what is averaged, at which temperature; probabilities as logits."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdistill.averaging import SMALLEST_PROBABILITY, average, log_mixture, log_of
from kdistill.errors import ConfigError


def members(count: int = 3, n: int = 6, classes: int = 5, scale: float = 3.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(n, classes, generator=generator, dtype=torch.float64) for _ in range(count)]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_mean_of_two_teachers_by_hand() -> None:
    """Probabilities (0.9, 0.1) and (0.5, 0.5) average to (0.7, 0.3); their logits to odds of 3 to 1."""
    a, b = torch.tensor([[math.log(9.0), 0.0]]), torch.tensor([[0.0, 0.0]])

    mixed = average([a, b], None, "probabilities", T=1.0).softmax(1)
    geometric = average([a, b], None, "logits", T=1.0).softmax(1)

    torch.testing.assert_close(mixed, torch.tensor([[0.7, 0.3]]))
    torch.testing.assert_close(geometric, torch.tensor([[0.75, 0.25]]))  # sqrt(9) : 1


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0, 20.0])
def test_softmax_at_T_is_the_weighted_mean_of_the_members_probabilities(T: float) -> None:
    """Against the definition in numpy, with weights 1 : 2 : 5."""
    logits = members()
    shares = np.array([1, 2, 5]) / 8
    expected = sum(w * softmax(z.numpy() / T) for w, z in zip(shares, logits, strict=True))

    result = average(logits, [1, 2, 5], "probabilities", T)

    np.testing.assert_allclose(softmax(result.numpy() / T), expected, rtol=1e-12)


def test_only_at_its_own_temperature_is_the_mean_of_probabilities_one() -> None:
    """At another T the softmax of the result is not the mean: the loss's T must be given."""
    logits = members()
    at_4 = average(logits, None, "probabilities", T=4.0)
    mean_at_1 = torch.stack([z.softmax(1) for z in logits]).mean(0)

    assert (at_4.softmax(1) - mean_at_1).abs().max() > 0.01


def test_mean_of_logits_is_weighted() -> None:
    """1/4 of (0, 4) and 3/4 of (4, 0) is (3, 1)."""
    a, b = torch.tensor([[0.0, 4.0]]), torch.tensor([[4.0, 0.0]])
    assert average([a, b], [0.5, 1.5], "logits", T=4.0).tolist() == [[3.0, 1.0]]


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_equal_teachers_weights_scale_and_order(of: str) -> None:
    """Equal members average to one of them; weights count by their ratio; the order of members does not count."""
    a, b, c = members()
    same = average([a, a, a], [1, 2, 3], of, T=2.0)
    torch.testing.assert_close((same / 2).softmax(1), (a / 2).softmax(1))
    torch.testing.assert_close(average([a, b], [1, 3], of, 2.0), average([a, b], [10, 30], of, 2.0))
    torch.testing.assert_close(average([a, b, c], [1, 2, 3], of, 2.0), average([c, a, b], [3, 1, 2], of, 2.0))


def test_samples_do_not_mix() -> None:
    """A sample's result is the same bits alone and in a batch."""
    logits = members()
    whole = average(logits, None, "probabilities", 4.0)
    assert torch.equal(average([z[2:3] for z in logits], None, "probabilities", 4.0), whole[2:3])


def test_one_teacher_is_itself() -> None:
    """Bit for bit, so that an ensemble of one is the plain teacher."""
    logits = members()[0].float()
    assert torch.equal(average([logits], [7.0], "probabilities", 4.0), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_extreme_logits_stay_finite(of: str, dtype: torch.dtype) -> None:
    """Teachers that are sure of different classes: one half each; the impossible class is very unlikely, not -inf."""
    a = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]], dtype=dtype)
    b = torch.tensor([[0.0, 1e4, -1e4], [0.0, 0.0, 0.0]], dtype=dtype)

    result = average([a, b], None, of, T=1.0)

    assert result.dtype == torch.float32
    assert result.isfinite().all()
    torch.testing.assert_close(result.softmax(1)[0], torch.tensor([0.5, 0.5, 0.0]))


def test_members_of_weight_zero_do_not_count_in_a_mixture() -> None:
    """lam = 1 of a mixed batch: the partner's part is nothing, and not a logarithm of zero."""
    a, b = members(2)
    torch.testing.assert_close(log_mixture([a, b], [1.0, 0.0], 2.0), 2 * (a / 2).log_softmax(1))


def test_errors_say_what_was_expected() -> None:
    """One line each: no member, numbers of weights, a weight that is not positive, different classes."""
    a, b = members(2)
    with pytest.raises(ConfigError, match=r"^there is no teacher to average: name at least one$"):
        average([], None, "logits", 1.0)
    with pytest.raises(ConfigError, match=r"^3 weights for 2 teachers: expected one for each, or null$"):
        average([a, b], [1, 1, 1], "logits", 1.0)
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(
            ConfigError, match=rf"^weight {weight} of a teacher: expected a positive number; to leave"
        ):
            average([a, b], [1.0, weight], "logits", 1.0)
    with pytest.raises(
        ConfigError, match=r"shapes \(6, 4\) and \(6, 5\) cannot be averaged: all need the same"
    ):
        average([a, b[:, :4]], None, "logits", 1.0)


def test_log_of_gives_probabilities_back() -> None:
    """softmax(log_of(p)) = p up to K * 1e-7, also where p is 0 or 1."""
    p = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.999, 0.001, 0.0]])
    logits = log_of(p)

    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.softmax(1), p, atol=3e-7, rtol=0)
    assert logits.min() == pytest.approx(math.log(SMALLEST_PROBABILITY))
    assert logits[1, 0] == 0


def test_log_of_half_precision_zero_is_the_floor() -> None:
    """float16 has no 1e-7 to spare: the work is done in float32."""
    assert log_of(torch.tensor([[1.0, 0.0]], dtype=torch.float16))[0, 1].item() == pytest.approx(
        -16.118, abs=1e-3
    )
