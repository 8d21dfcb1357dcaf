"""Teacher classes and student classes: matched by name, selected, added up."""

import logging

import pytest
import torch
from torch import Tensor

from kdistill.classes import class_map
from kdistill.errors import ConfigError


def logits(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def test_same_names_are_identity() -> None:
    """The very same tensor comes back."""
    mapped = class_map(["cat", "dog"], ["cat", "dog"], None)
    z = logits([1.0, 2.0])

    assert mapped.is_identity
    assert mapped.is_full
    assert mapped.shared.tolist() == [0, 1]
    assert mapped.apply(z, T=4.0) is z


def test_other_order() -> None:
    """Columns in the student's order, the same bits."""
    mapped = class_map(["dog", "cat", "cow"], ["cat", "cow", "dog"], None)
    z = logits([0.1, 0.7, 0.3])

    assert not mapped.is_identity
    assert mapped.is_full
    assert torch.equal(mapped.apply(z, T=4.0), logits([0.7, 0.3, 0.1]))


def test_teacher_with_more_classes_is_renormalised() -> None:
    """Probabilities (1/2, 1/4, 1/8, 1/8), of which cat and dog are left: 2/3 and 1/3."""
    mapped = class_map(["cat", "dog", "fox", "elk"], ["dog", "cat"], None)
    z = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()

    assert mapped.shared.tolist() == [0, 1]
    torch.testing.assert_close(mapped.apply(z, T=1.0).softmax(1), logits([1 / 3, 2 / 3]))


def test_teacher_with_fewer_classes() -> None:
    """`shared` says which of the student's logits are compared."""
    mapped = class_map(["cow", "cat"], ["cat", "dog", "cow"], None)

    assert not mapped.is_full
    assert not mapped.is_identity
    assert mapped.shared.tolist() == [0, 2]
    assert mapped.shared.dtype == torch.int64
    assert mapped.columns == ((1,), (0,))
    assert mapped.apply(logits([5.0, 6.0]), T=1.0).tolist() == [[6.0, 5.0]]


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_fine_classes_add_up_at_the_temperature(T: float) -> None:
    """At T, the student's class has the sum of its teacher classes' probabilities."""
    explicit = {"tabby": "cat", "pug": "dog", "siamese": "cat", "poodle": "dog", "persian": "cat"}
    mapped = class_map(
        ["tabby", "pug", "tree", "siamese", "poodle", "persian"], ["dog", "cat", "cow"], explicit
    )
    z = logits([1.0, -2.0, 9.0, 0.5, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    p = (z / T).exp()
    sums = torch.stack([p[:, 1] + p[:, 4], p[:, 0] + p[:, 3] + p[:, 5]], dim=1)

    assert mapped.columns == ((1, 4), (0, 3, 5))
    assert mapped.shared.tolist() == [0, 1]
    torch.testing.assert_close((mapped.apply(z, T) / T).softmax(1), sums / sums.sum(1, keepdim=True))


def test_a_group_of_one_keeps_its_logit_beside_larger_groups() -> None:
    """T * logsumexp(z / T) of one number is the number."""
    mapped = class_map(["a", "b", "c"], ["x", "y"], {"a": "x", "b": "y", "c": "y"})
    z = logits([1.0, 2.0, 2.0])
    torch.testing.assert_close(mapped.apply(z, T=3.0), logits([1.0, 2.0 + 3.0 * 0.6931472]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_logits_stay_finite(dtype: torch.dtype) -> None:
    """Adding probabilities of classes at -1e4 underflows nowhere."""
    mapped = class_map(["a", "b", "c"], ["x", "y"], {"a": "x", "b": "y", "c": "y"})
    out = mapped.apply(torch.tensor([[1e4, -1e4, -1e4], [0, 0, 0]], dtype=dtype), T=1.0)

    assert out.dtype == torch.float32
    assert out.isfinite().all()


def test_names_that_differ_in_writing_only(caplog: pytest.LogCaptureFixture) -> None:
    """When no name is equal: case, spaces, hyphens, underscores are disregarded, and that is said."""
    with caplog.at_level(logging.INFO, "kdistill"):
        mapped = class_map(["T-shirt", "Ankle boot"], ["ankle_boot", "tshirt"], None)

    assert mapped.columns == ((1,), (0,))
    assert (
        "matched without regard to case, spaces, hyphens and underscores, for example 'T-shirt' -> 'tshirt'"
        in caplog.text
    )


def test_equal_names_come_before_loose_ones() -> None:
    """One equal name is enough for names to mean what they say."""
    mapped = class_map(["cat", "DOG", "cow"], ["cat", "dog", "cow"], None)
    assert mapped.shared.tolist() == [0, 2]


def test_student_classes_that_become_one_name_match_nothing() -> None:
    """ "US" and "us" cannot be told apart loosely: only the two others are shared."""
    mapped = class_map(["U S", "Cat", "Dog"], ["US", "us", "cat", "dog"], None)
    assert mapped.shared.tolist() == [2, 3]


def test_a_name_that_the_teacher_has_twice_is_both_classes() -> None:
    """ImageNet has two classes named crane: their probabilities add up."""
    mapped = class_map(["crane", "cat", "crane"], ["cat", "crane"], None)
    assert mapped.columns == ((1,), (0, 2))


def test_what_is_used_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """How many classes of either side count; silence for identity."""
    with caplog.at_level(logging.INFO, "kdistill"):
        class_map(["a", "b"], ["a", "b"], None)
        assert caplog.text == ""
        class_map(["a", "b", "c"], ["a", "b", "x", "y"], None)
    assert "the teacher knows 2 of the student's 4 classes; 2 of its 3 classes are used" in caplog.text


def test_nothing_shared() -> None:
    """A few names of both, and how to say what is what."""
    teacher = [f"n{k:08d}" for k in range(1000)]
    with pytest.raises(ConfigError) as error:
        class_map(teacher, ["cat", "dog"], None)
    assert str(error.value) == (
        "teacher and student share no class, and at least two are needed. The teacher has 'n00000000',"
        " 'n00000001', 'n00000002', 'n00000003', ... (1000 in all); the student has 'cat', 'dog'."
        " teacher.class_map='{tabby: cat}' says which teacher class is which student class"
    )


def test_one_class_shared() -> None:
    """A softmax over one class says nothing."""
    with pytest.raises(
        ConfigError, match=r"^teacher and student share only the class 'cat', and at least two"
    ):
        class_map(["cat", "cow"], ["cat", "dog"], None)
    with pytest.raises(ConfigError, match="share only the class 'cat'"):
        class_map(["tabby", "persian"], ["cat", "dog"], {"tabby": "cat", "persian": "cat"})


def test_unknown_names_in_an_explicit_map() -> None:
    """Nearest match, and a few of the names that there are."""
    teacher, student = ["tabby", "pug", "tree"], ["cat", "dog"]
    with pytest.raises(
        ConfigError,
        match=r"^teacher.class_map: the teacher has no class 'taby'\. Did you mean 'tabby'\? It has 'tabby'",
    ):
        class_map(teacher, student, {"taby": "cat", "pug": "dog"})
    with pytest.raises(
        ConfigError,
        match=r"^teacher.class_map: the student has no class 'dogs'\. Did you mean 'dog'\? It has 'cat', 'dog';",
    ):
        class_map(teacher, student, {"tabby": "cat", "pug": "dogs"})


def test_an_explicit_map_is_the_whole_map() -> None:
    """Equal names that are not in it are not added."""
    mapped = class_map(["a", "b", "c"], ["a", "b", "c"], {"a": "b", "b": "a"})
    assert mapped.shared.tolist() == [0, 1]
    assert mapped.columns == ((1,), (0,))
