"""Data of several classes at once and of values: diabetes, synthetic images; and the samples' ids."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_diabetes, load_digits

from kdistill.config.data import Dataset
from kdistill.data import load_data
from kdistill.data.splits import ArraySplit, check_classes, cut, moments, subset
from kdistill.errors import DataError
from kdistill.models import build_classifier
from kdistill.models.classifier import Classifier
from tests.cases.data import config as section
from tests.conftest import NO_AUGMENT


def config(name: str, **changes: Any) -> Dataset:
    """Synthetic images have up to three of five classes each, and no noise."""
    values: dict[str, Any] = {}
    if name == "synthetic":
        values = {"classes": 5, "channels": 1, "image_size": 8, "samples": 200, "test_samples": 50}
        values |= {"noise": 0.0, "max_labels": 3}
    return section(name, **values | changes)


# --- values ---


def test_diabetes() -> None:
    """442 samples, a fifth for test; ten features as channels of 1 x 1, each with its own mean and std."""
    data = load_data(config("diabetes"))
    images = next(data.train.batches(torch.arange(len(data.train)), 1000)).images

    assert (len(data.train), len(data.validation), len(data.test)) == (319, 35, 88)
    assert (data.task, data.classes, data.channels, data.image_size) == (
        "regression",
        ("progression",),
        10,
        (1, 1),
    )
    assert (images.dtype, images.shape) == (torch.float32, (319, 10, 1, 1))
    assert data.mean == pytest.approx(images.double().mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(images.double().std((0, 2, 3), correction=0).tolist())


def test_diabetes_values_are_scikit_learn_s() -> None:
    """Sample by sample, by its id: the features as they are, the value in units of the training split."""
    data, source = load_data(config("diabetes")), load_diabetes()
    assert data.target_mean is not None
    assert data.target_std is not None
    positions: list[int] = []
    for split in (data.train, data.validation, data.test):
        batch = next(split.batches(torch.arange(len(split)), 1000))
        ids = [int(name) for name in split.ids] if split is not data.test else positions_of(batch.images)
        positions += ids
        values = batch.labels * data.target_std[0] + data.target_mean[0]
        assert torch.equal(batch.images.flatten(1), torch.from_numpy(source.data[ids]).float())
        assert values[:, 0].tolist() == pytest.approx(source.target[ids].tolist(), abs=1e-3)

    assert sorted(positions) == list(range(442))
    assert data.train.labels.mean().item() == pytest.approx(0, abs=1e-6)
    assert data.train.labels.std(correction=0).item() == pytest.approx(1)


def positions_of(images: torch.Tensor) -> list[int]:
    known = {row.tobytes(): i for i, row in enumerate(load_diabetes().data.astype(np.float32))}
    return [known[row.tobytes()] for row in images.flatten(1).numpy()]


def test_diabetes_cuts() -> None:
    """Another split_seed moves validation and the units, but not the test split; subsets are nested."""
    one, other = load_data(config("diabetes")), load_data(config("diabetes", split_seed=1))
    small, large = (load_data(config("diabetes", train_samples=n)) for n in (1, 50))

    assert one.test_fingerprint == other.test_fingerprint
    assert one.fingerprint != other.fingerprint
    assert one.target_mean != other.target_mean
    assert set(small.train.ids) < set(large.train.ids) < set(one.train.ids)
    assert small.target_std == (1.0,)


def test_diabetes_has_nothing_to_augment() -> None:
    """A crop would blank out measurements: refused."""
    text = "diabetes has no images to augment: set augment.crop=0 augment.erase=null"
    with pytest.raises(ValidationError, match=text):
        config("diabetes", augment=NO_AUGMENT | {"crop": 1, "erase": 2})


def test_a_network_learns_from_features() -> None:
    """An MLP and a small CNN take the 10 x 1 x 1 images and give one value each."""
    data = load_data(config("diabetes"))
    images = next(data.train.batches(torch.arange(4), 4)).images
    for name, params in (("mlp", {"hidden": [8]}), ("cnn", {"channels": [8]})):
        network = build_classifier(
            name,
            params,
            classes=1,
            channels=data.channels,
            image_size=data.image_size,
            mean=data.mean,
            std=data.std,
        )
        assert network(images).shape == (4, 1)


def test_classifier_takes_floating_point_images_as_they_are() -> None:
    """uint8 51 and floating 0.2 are the same pixel; (0.2 - 0.1) / 0.5 is what the network sees."""
    network = Classifier(torch.nn.Flatten(), [0.1], [0.5])
    expected = pytest.approx((0.2 - 0.1) / 0.5)

    assert network(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8)).item() == expected
    assert network(torch.full((1, 1, 1, 1), 0.2)).item() == expected
    assert network(torch.full((1, 1, 1, 1), 0.2, dtype=torch.float64)).dtype == torch.float32


def test_constant_columns_have_std_1() -> None:
    """Also where rounding of the mean would leave a std just above 0."""
    rows = torch.tensor([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]])

    assert moments(rows)[1] == pytest.approx((1.0, (8 / 3) ** 0.5))
    assert moments(torch.full((7, 1), 0.1, dtype=torch.float64))[1] == (1.0,)


# --- several classes at once ---


def test_synthetic_images_of_several_classes() -> None:
    """One to max_labels classes each; without noise the image is the sum of their patterns by root of number."""
    data, single = load_data(config("synthetic")), load_data(config("synthetic", max_labels=None))
    labels = torch.cat([data.train.labels, data.validation.labels, data.test.labels])

    assert (data.task, single.task) == ("multilabel", "classification")
    assert labels.dtype == torch.float32
    assert labels.unique().tolist() == [0, 1]
    assert labels.sum(1).unique().tolist() == [1, 2, 3]
    assert data.fingerprint == load_data(config("synthetic")).fingerprint != single.fingerprint

    batch = next(single.train.batches(torch.arange(len(single.train)), 1000))
    patterns = {int(k): x.double() - 127.5 for k, x in zip(batch.labels, batch.images, strict=True)}
    several = next(data.train.batches(torch.arange(len(data.train)), 1000))
    for image, row in zip(several.images, several.labels, strict=True):
        parts = [patterns[int(k)] for k in row.nonzero()]
        expected = (sum(parts) / len(parts) ** 0.5 + 127.5).clamp(0, 255)
        clipped = torch.stack(parts).abs().amax(0) > 127
        assert (image - expected)[~clipped].abs().max() <= 2


def test_more_labels_than_classes_are_refused() -> None:
    """Both numbers are named."""
    with pytest.raises(ValidationError, match="max_labels=6 is more than classes=5"):
        config("synthetic", max_labels=6)


# --- cuts without classes ---


def test_cuts_of_floating_labels_are_plain_and_nested() -> None:
    """A share by seeded order, at least one; a subset may be smaller than the number of classes."""
    labels = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    rest, cut_off = cut(labels, 0.1, seed=1)

    assert (len(rest), len(cut_off)) == (36, 4)
    assert torch.cat((rest, cut_off)).sort().values.tolist() == list(range(40))
    assert not torch.equal(cut(labels, 0.1, seed=2)[1], cut_off)
    assert len(cut(labels, 0.001, seed=1)[1]) == 1
    chosen = [set(subset(labels, n, ["a", "b", "c"], seed=1).tolist()) for n in (1, 2, 20)]
    assert chosen[0] < chosen[1] < chosen[2]


def test_classes_that_never_occur_are_named() -> None:
    """In rows of 0 and 1 as in class numbers; and an empty split."""
    with pytest.raises(DataError, match=r"^class 'b' has no sample in the train split"):
        check_classes(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), ["a", "b"], "train")
    with pytest.raises(DataError, match=r"^no sample is left for the validation split"):
        check_classes(torch.empty(0, 1), [], "validation")


# --- ids ---


def test_ids_of_arrays_are_positions_in_the_source() -> None:
    """However often a split was cut: id n is image n of scikit-learn's digits."""
    data, source = load_data(config("digits", train_samples=50)), load_digits()
    batch = next(data.train.batches(torch.arange(50), 50))

    assert len(data.train.ids) == 50
    for name, image, label in zip(data.train.ids, batch.images, batch.labels, strict=True):
        assert np.array_equal(np.rint(source.images[int(name)] * 255 / 16), image[0].numpy())
        assert source.target[int(name)] == label


def test_ids_stay_with_their_samples() -> None:
    """Selections of selections, moves and new labels keep them; they are made when asked for."""
    split = ArraySplit(torch.zeros(5, 1, 1, 1, dtype=torch.uint8), torch.arange(5))
    chosen = split.select(torch.tensor([4, 2, 0])).select(torch.tensor([2, 0]))

    assert list(split.ids) == ["0", "1", "2", "3", "4"]
    assert list(chosen.ids) == ["0", "4"]
    assert list(chosen.to(torch.device("meta")).with_labels(torch.zeros(2)).ids) == ["0", "4"]
    assert (chosen.ids[1], chosen.ids[-1], chosen.ids[:1]) == ("4", "4", ["0"])
    named = ArraySplit(split.images, split.labels, names=["a", "b", "c", "d", "e"])
    assert list(named.select(torch.tensor([3, 1])).ids) == ["d", "b"]
