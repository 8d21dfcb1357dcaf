"""Data sets: splits, orders, statistics; digits and synthetic images."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from kdistill.data import Data, load_data, sample_order
from kdistill.data.assemble import from_arrays as assembled
from kdistill.data.splits import ArraySplit, channel_statistics, cut, stratified_order, subset
from kdistill.errors import DataError
from tests.cases.data import all_images, config

# --- batches and orders ---


def test_batches_are_consecutive_slices_of_the_order() -> None:
    """Images, labels and positions follow the order; the last batch is smaller."""
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1)
    split = ArraySplit(images, torch.tensor([0, 10, 20, 30, 40]))
    batches = list(split.batches(torch.tensor([4, 0, 3]), 2))
    assert [batch.indices.tolist() for batch in batches] == [[4, 0], [3]]
    assert [batch.labels.tolist() for batch in batches] == [[40, 0], [30]]
    assert [batch.images.flatten().tolist() for batch in batches] == [[4, 0], [3]]
    assert batches[0].images.dtype == torch.uint8
    assert list(split.batches(torch.arange(0), 2)) == []


def test_split_moves_to_a_device() -> None:
    """The moved split's batches lie on the device, whatever the order's device."""
    split = ArraySplit(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0]))
    moved = split.to(torch.device("meta"))
    assert (moved.images.device.type, moved.labels.device.type) == ("meta", "meta")
    batch = next(moved.batches(torch.tensor([2, 1]), 2))
    assert {batch.images.device.type, batch.labels.device.type, batch.indices.device.type} == {"meta"}


def test_sample_order_is_a_pure_permutation() -> None:
    """Each epoch and seed has its own permutation, always the same one."""
    order = sample_order(1000, seed=3, epoch=2)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(1000))
    assert torch.equal(order, sample_order(1000, seed=3, epoch=2))
    for other in (sample_order(1000, seed=3, epoch=3), sample_order(1000, seed=4, epoch=2)):
        assert int((order == other).sum()) < 10


def test_sample_order_is_pinned() -> None:
    """Results rely on these values: a change of them needs a new format number."""
    assert sample_order(8, seed=0, epoch=0).tolist() == [1, 5, 4, 7, 2, 0, 6, 3]


def test_sample_order_shows_no_bias() -> None:
    """Over 2,000 epochs every sample stands equally often in the first half."""
    firsts = torch.cat([sample_order(10, seed=0, epoch=epoch)[:5] for epoch in range(2000)])
    counts = firsts.bincount(minlength=10)
    # Binomial(2000, 1/2): standard deviation 22.
    assert int((counts - 1000).abs().max()) < 110


# --- stratified cuts ---


def test_cut_is_stratified_and_exact() -> None:
    """Of 60 + 30 + 10 samples, a tenth is 6 + 3 + 1; the two parts are all samples, each once."""
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[sample_order(100, 0, 0)]
    rest, cut_off = cut(labels, 0.1, seed=5)
    assert labels[cut_off].bincount().tolist() == [6, 3, 1]
    assert torch.cat((rest, cut_off)).sort().values.tolist() == list(range(100))
    assert torch.equal(cut(labels, 0.1, seed=5)[1], cut_off)
    assert not torch.equal(cut(labels, 0.1, seed=6)[1], cut_off)


def test_cut_takes_one_of_a_rare_class() -> None:
    """A class of two samples has one on each side, also when the share asks for less."""
    labels = torch.tensor([0] * 98 + [1] * 2)
    rest, cut_off = cut(labels, 0.1, seed=0)
    assert labels[rest].bincount().tolist() == [89, 1]
    assert labels[cut_off].bincount().tolist() == [9, 1]


def test_smaller_subsets_are_within_larger_ones() -> None:
    """Subsets of one seed are nested; each is stratified and has every class."""
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    previous: set[int] = set()
    for size in range(3, 101):
        chosen = set(subset(labels, size, ["a", "b", "c"], seed=1).tolist())
        assert previous < chosen
        assert len(chosen) == size
        previous = chosen
    assert labels[subset(labels, 50, ["a", "b", "c"], seed=1)].bincount().tolist() == [30, 15, 5]
    assert labels[stratified_order(labels, seed=1)[:3]].sort().values.tolist() == [0, 1, 2]


def test_class_with_one_sample_is_refused() -> None:
    """It cannot be in train and in validation: the message names class and split."""
    labels = torch.tensor([0] * 20 + [1])
    with pytest.raises(DataError, match=r"^class 'rare' has no sample in the train split, where every class"):
        from_arrays(labels, ["common", "rare"])


def test_validation_share_that_leaves_a_class_out_of_train_is_refused() -> None:
    """Nearly all samples to validation: the class that train loses is named."""
    labels = torch.tensor([0] * 20 + [1] * 2)
    with pytest.raises(DataError, match="class 'rare' has no sample in the train split"):
        from_arrays(labels, ["common", "rare"], validation=0.95)


def from_arrays(labels: Tensor, classes: list[str], **changes: Any) -> Data:
    whole = ArraySplit(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)
    return assembled(config("digits", **changes), classes, "classification", whole, lambda: whole)


# --- statistics ---


def test_mean_and_std_by_hand() -> None:
    """Pixels 0 and 255 in equal parts: mean 1/2, std 1/2; a constant channel: std 1."""
    images = torch.zeros(2, 2, 1, 2, dtype=torch.uint8)
    images[1, 0], images[:, 1] = 255, 51
    mean, std = channel_statistics(ArraySplit(images, torch.tensor([0, 1])), torch.arange(2))
    assert mean == (0.5, 0.2)
    assert std == (0.5, 1.0)


# --- digits ---


def test_digits() -> None:
    """1,797 images: a fifth for test, the validation share of the rest; greys 0..16 become 0..255."""
    data = load_data(config("digits"))
    sizes = (len(data.train), len(data.validation), len(data.test))
    assert sizes == (1294, 144, 359)
    assert (data.channels, data.image_size, data.classes) == (1, (8, 8), tuple("0123456789"))
    assert sorted(all_images(data).unique().tolist()) == [round(x * 255 / 16) for x in range(17)]
    pixels = all_images(data).double() / 255
    assert data.mean == pytest.approx([float(pixels.mean())])
    assert data.std == pytest.approx([float(pixels.std(correction=0))])


def test_digits_keep_image_and_label_together() -> None:
    """Every training image is one of scikit-learn's, with that one's label."""
    source = load_digits()
    known = {
        np.rint(x * 255 / 16).astype(np.uint8).tobytes(): y
        for x, y in zip(source.images, source.target, strict=True)
    }
    data = load_data(config("digits"))
    for image, label in zip(all_images(data), data.train.labels.tolist(), strict=True):
        assert known[image.numpy().tobytes()] == label


def test_split_seed_moves_validation_but_not_test() -> None:
    """Another split_seed: another fingerprint of train and validation, the same test split."""
    one, same, other = (load_data(config("digits", split_seed=seed)) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.test_fingerprint == other.test_fingerprint
    assert not torch.equal(one.validation.labels, other.validation.labels)


def test_train_samples_are_stratified_and_leave_validation_alone() -> None:
    """100 of ten nearly equal classes: ten of each, or one more or less; validation as without."""
    whole, part = load_data(config("digits")), load_data(config("digits", train_samples=100))
    counts = part.train.labels.bincount()
    assert len(part.train) == 100
    assert (int(counts.min()), int(counts.max())) in {(9, 11), (10, 10), (9, 10), (10, 11)}
    assert torch.equal(part.validation.labels, whole.validation.labels)
    assert part.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        (2000, "dataset.train_samples=2000, but only 1294 training samples are there"),
        (9, "dataset.train_samples=9 is too few for 10 classes: each needs at least one"),
    ],
)
def test_impossible_train_samples(samples: int, text: str) -> None:
    """More than there are, or fewer than classes: both numbers are named."""
    with pytest.raises(DataError) as caught:
        load_data(config("digits", train_samples=samples))
    assert str(caught.value) == text


# --- synthetic ---


def test_synthetic_is_a_function_of_its_config() -> None:
    """The same seed gives the same images; sizes and channels as configured."""
    one, same, other = (load_data(config("synthetic", seed=seed)) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.test_fingerprint == same.test_fingerprint != other.test_fingerprint
    assert (len(one.train), len(one.validation), len(one.test)) == (72, 8, 20)
    assert all_images(one).shape == (72, 3, 6, 6)
    assert one.classes == ("0", "1", "2", "3")


def test_synthetic_classes_are_patterns() -> None:
    """Without noise all images of a class are one image, also in the test split; with noise they differ."""
    data = load_data(config("synthetic", noise=0.0))
    test = next(data.test.batches(torch.arange(20), 20))
    train = next(data.train.batches(torch.arange(72), 72))
    for label in range(4):
        seen = torch.cat((train.images[train.labels == label], test.images[test.labels == label]))
        assert len(seen.flatten(1).unique(dim=0)) == 1
    assert len(all_images(load_data(config("synthetic"))).flatten(1).unique(dim=0)) == 72
