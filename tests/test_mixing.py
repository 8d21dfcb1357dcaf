"""Mixup and CutMix: values by hand, and the same mix for the same seed, epoch and step."""

import math

import pytest
import torch
from torch import Tensor

from kdistill.data.mixing import Mixing, mixed_targets


def images_of(n: int = 8, channels: int = 3, height: int = 6, width: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def kind(name: str, concentration: float = 1.0, seed: int = 0) -> Mixing:
    return Mixing(name, concentration, seed)  # type: ignore[arg-type]


def test_draws_are_pinned() -> None:
    """Soft targets that were stored for mixed images rely on these values."""
    mixing = kind("mixup", 0.8, seed=3)
    assert [round(mixing.draw(epoch, step), 6) for epoch, step in ((0, 0), (0, 1), (1, 0))] == [
        0.763039,
        0.51086,
        0.344604,
    ]
    assert mixing.partner(6, epoch=1, step=2).tolist() == [4, 2, 1, 5, 0, 3]
    assert kind("cutmix", 0.8, seed=3).box(32, 32, 1, 2)[0] == (26, 4, 28, 6)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_the_same_mix_again_and_another_for_another_step(name: str) -> None:
    """A pure function of seed, epoch and step: no generator's state is used or moved."""
    images, labels = images_of(), torch.arange(8) % 4
    state = torch.get_rng_state()
    first = kind(name).mix(images, labels, epoch=2, step=5, classes=4)
    again = kind(name).mix(images, labels, epoch=2, step=5, classes=4)
    others = [
        kind(name, seed=1).mix(images, labels, 2, 5, 4),
        kind(name).mix(images, labels, 3, 5, 4),
        kind(name).mix(images, labels, 2, 6, 4),
        kind(name).mix(images, labels, 5, 2, 4),
    ]

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not any(torch.equal(first.images, other.images) for other in others)
    assert len({tuple(m.partner.tolist()) for m in (first, *others)}) == 5


def test_mixup_is_the_weighted_sum_of_pixels_and_labels() -> None:
    """Pixel for pixel lam x_i + (1 - lam) x_j, rounded, and the labels in the same proportion."""
    images, labels = images_of(), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    mixed, soft, partner, lam = kind("mixup").mix(images, labels, 0, 0, classes=4)
    exact = lam * images.double() + (1 - lam) * images[partner].double()

    assert 0 < lam < 1
    assert mixed.dtype == torch.uint8
    assert (mixed.double() - exact).abs().max() <= 0.5 + 1e-4
    for i in range(8):
        row = [0.0] * 4
        row[labels[i]] += lam
        row[labels[partner[i]]] += 1 - lam
        assert soft[i].tolist() == pytest.approx(row)


def test_mixup_of_floating_images_is_not_rounded() -> None:
    """float32 in, float32 out."""
    images = images_of().float() / 255
    mixed, _, partner, lam = kind("mixup").mix(images, torch.zeros(8, dtype=torch.int64), 0, 0, classes=2)

    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, lam * images + (1 - lam) * images[partner])


def test_cutmix_puts_the_partner_s_box_in() -> None:
    """Inside the box the partner's pixels, outside the image's; lam is the share of the area outside."""
    images, labels = images_of(), torch.arange(8) % 4
    for step in range(50):
        mixed, soft, partner, lam = kind("cutmix").mix(images, labels, 0, step, classes=4)
        (top, left, bottom, right), _ = kind("cutmix").box(6, 10, 0, step)
        inside = torch.zeros(6, 10, dtype=torch.bool)
        inside[top:bottom, left:right] = True

        assert torch.equal(mixed, torch.where(inside, images[partner], images))
        assert lam == pytest.approx(1 - float(inside.float().mean()))
        assert soft.sum(1).tolist() == pytest.approx([1.0] * 8)


def test_cutmix_leaves_the_given_images_alone() -> None:
    """The split's images are not written to."""
    images = images_of()
    before = images.clone()
    for step in range(5):
        kind("cutmix").mix(images, torch.zeros(8, dtype=torch.int64), 0, step, classes=2)
    assert torch.equal(images, before)


def test_cutmix_s_box_has_the_drawn_area_unless_the_border_cuts_it() -> None:
    """Sides of H sqrt(1 - lam) and W sqrt(1 - lam), cut to integers: never more, often exactly that."""
    mixing, whole = kind("cutmix"), 0
    for step in range(200):
        (top, left, bottom, right), lam = mixing.box(64, 32, 0, step)
        side = math.sqrt(1 - mixing.draw(0, step))
        full = int(64 * side), int(32 * side)

        assert 0 <= top <= bottom <= 64
        assert 0 <= left <= right <= 32
        assert bottom - top <= full[0]
        assert right - left <= full[1]
        assert 0 <= lam <= 1
        whole += (bottom - top, right - left) == full
    assert 40 < whole < 190


@pytest.mark.parametrize("concentration", [0.2, 1.0, 5.0])
def test_lam_has_the_moments_of_beta(concentration: float) -> None:
    """Mean 1/2 and variance 1 / (4 (2 a + 1)), within five standard errors of 4,000 draws."""
    mixing = kind("mixup", concentration)
    lam = torch.tensor([mixing.draw(epoch, step) for epoch in range(40) for step in range(100)]).double()
    variance = 1 / (4 * (2 * concentration + 1))

    assert lam.min() >= 0
    assert lam.max() <= 1
    assert abs(lam.mean() - 0.5) < 5 * (variance / 4000) ** 0.5
    assert abs(lam.var() - variance) < 5 * variance * (2 / 4000) ** 0.5


def test_partners_are_a_permutation_and_spread() -> None:
    """Everyone is a partner once; over many steps each pair meets equally often."""
    met = torch.zeros(6, 6)
    for step in range(3000):
        partner = kind("mixup").partner(6, 0, step)
        assert partner.sort().values.tolist() == list(range(6))
        met[torch.arange(6), partner] += 1
    # 500 expected; five standard deviations of a binomial
    assert (met - 500).abs().max() < 5 * (3000 * 5 / 36) ** 0.5


def test_a_batch_of_one_is_its_own_partner() -> None:
    """Nothing changes, whatever lam is."""
    images, labels = images_of(1), torch.tensor([1])
    for name in ("mixup", "cutmix"):
        for step in range(20):
            mixed, soft, partner, _ = kind(name).mix(images, labels, 0, step, classes=3)
            assert torch.equal(mixed, images)
            torch.testing.assert_close(soft, torch.tensor([[0.0, 1.0, 0.0]]))
            assert partner.tolist() == [0]


def test_unlabelled_samples_add_nothing() -> None:
    """-1 is a row of zeros: two unlabelled stay zero, one leaves its partner's share."""
    labels = torch.tensor([-1, -1, 2, -1])
    _, soft, partner, lam = kind("mixup").mix(images_of(4), labels, 0, 0, classes=3)

    for i in range(4):
        share = lam * (labels[i] == 2).item() + (1 - lam) * (labels[partner[i]] == 2).item()
        assert soft[i].tolist() == pytest.approx([0.0, 0.0, share])


def test_several_labels_and_values_are_mixed_as_numbers() -> None:
    """Multi-label rows and regression values, in their own shape; unknown (nan) on either side stays unknown."""
    rows = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1]])
    _, soft, partner, lam = kind("mixup").mix(images_of(3), rows, 0, 0, classes=3)
    torch.testing.assert_close(soft, lam * rows.float() + (1 - lam) * rows[partner].float())

    values = torch.tensor([0.5, math.nan, -3.0, 8.0])
    _, mixed, partner, lam = kind("cutmix").mix(images_of(4), values, 0, 1, classes=1)
    known = ~values.isnan() & ~values[partner].isnan()
    assert mixed.shape == (4,)
    assert known.sum() in (2, 3)
    assert torch.equal(mixed.isnan(), ~known)
    torch.testing.assert_close(mixed[known], (lam * values + (1 - lam) * values[partner])[known])


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("T", [1.0, 4.0])
def test_mixed_targets_are_mixed_probabilities(T: float, lam: float) -> None:
    """softmax(result / T) is lam p_i + (1 - lam) p_j at T."""
    z = 4 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    partner = torch.tensor([1, 0, 4, 2, 3])
    p = (z / T).softmax(1)

    result = mixed_targets(z, partner, lam, T)

    torch.testing.assert_close((result / T).softmax(1), lam * p + (1 - lam) * p[partner])


def test_mixed_targets_of_sure_teachers_are_finite() -> None:
    """Probabilities of zero on both sides are no -inf."""
    z = torch.tensor([[1e4, 0.0, -1e4], [0.0, 1e4, -1e4]])
    result = mixed_targets(z, torch.tensor([1, 0]), 0.25, T=1.0)

    assert result.isfinite().all()
    torch.testing.assert_close(result.softmax(1), torch.tensor([[0.25, 0.75, 0.0], [0.75, 0.25, 0.0]]))
