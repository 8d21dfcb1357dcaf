"""What a network's outputs say: by hand for each task."""

from typing import Any

import pytest
import torch

from kdistill.data import InputView
from kdistill.errors import ModelError
from kdistill.interface import Interface

ABOUT: dict[str, Any] = {
    "classes": ["a", "b", "c"],
    "channels": 1,
    "image_size": [8, 8],
    "mean": [0.5],
    "std": [0.25],
}


def test_the_likeliest_classes_come_first() -> None:
    """Logits of log 6, log 1, log 3 are probabilities of 0.6, 0.1 and 0.3."""
    outputs = torch.tensor([[6.0, 1.0, 3.0], [1.0, 1.0, 8.0]]).log()
    (first, second) = Interface.read(ABOUT, "test").answers(outputs, top=2)

    assert first == [("a", pytest.approx(0.6)), ("c", pytest.approx(0.3))]
    assert second[0] == ("c", pytest.approx(0.8))


def test_more_than_there_are_classes_are_all() -> None:
    """`top=5` of three."""
    (answers,) = Interface.read(ABOUT, "test").answers(torch.zeros(1, 3), top=5)

    assert sorted(answers) == [(name, pytest.approx(1 / 3)) for name in "abc"]


def test_several_labels_have_probabilities_of_their_own() -> None:
    """Sigmoids of log 3, 0 and -log 3: 3/4, 1/2, 1/4."""
    outputs = torch.tensor([[0.0, 3.0, 1 / 3]])
    outputs[:, 1:] = outputs[:, 1:].log()
    (answers,) = Interface.read({**ABOUT, "task": "multilabel"}, "test").answers(outputs, top=3)

    assert answers == [("b", pytest.approx(0.75)), ("a", pytest.approx(0.5)), ("c", pytest.approx(0.25))]


def test_values_are_in_their_own_units() -> None:
    """All of them, in their order: output * std + mean."""
    about = {**ABOUT, "task": "regression", "target_mean": [10, 20, 30], "target_std": [1, 2, 3]}
    (answers,) = Interface.read(about, "test").answers(torch.tensor([[1.0, -1.0, 0.5]]), top=1)

    assert answers == [("a", 11.0), ("b", 18.0), ("c", 31.5)]


def test_images_are_brought_to_the_source_and_then_shown_smaller_or_grey() -> None:
    """Without a source of their own they are what the network takes."""
    plain = Interface.read(ABOUT, "test")
    other = Interface.read({**ABOUT, "source_size": [32, 32], "source_channels": 3}, "test")

    assert (plain.source, plain.view) == ((1, (8, 8)), InputView(None, False))
    assert (other.source, other.view) == ((3, (32, 32)), InputView(8, True))
    assert plain.example(2).shape == (2, 1, 8, 8)
    assert plain.example(2).dtype == torch.uint8


def test_what_is_missing_or_wrong_is_named_once() -> None:
    """Each by the name that it has in the file."""
    about = {**ABOUT, "task": "sorting", "image_size": [8, -1]} | {"classes": []}
    del about["std"]
    with pytest.raises(ModelError) as caught:
        Interface.read(about, "net.onnx")
    assert str(caught.value) == (
        "net.onnx does not say what the network takes and gives (missing or wrong: task, classes, image_size, std)."
        " Expected a file made by `kdistill export`, or the folder of a trained network"
    )
