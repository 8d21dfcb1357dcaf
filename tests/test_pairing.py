"""Which layers of a student and a teacher are proposed to go together."""

from __future__ import annotations

import pytest

from kdistill.errors import ConfigError
from kdistill.features import Layer
from kdistill.pairing import layers_table, propose


def maps(prefix: str, *sizes: int) -> list[Layer]:
    """Maps of these heights and widths, and an embedding."""
    return [*(Layer(f"{prefix}{i}", (8, s, s)) for i, s in enumerate(sizes)), Layer("head@in", (8,))]


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ((32, 16, 8), (32, 16, 8), "s0-t0 s1-t1 s2-t2"),
        ((32, 16, 8), (8, 4, 2, 1), "s0-t1 s1-t2 s2-t3"),  # halved as often before the last
        ((8, 4, 2, 1), (32, 16, 8), "s1-t0 s2-t1 s3-t2"),
        ((16, 4), (32, 16, 8, 4), "s0-t1 s1-t3"),  # the same resolution, not the one before
        ((8, 8), (8, 8, 8, 8), "s0-t1 s1-t3"),  # no resolution tells: halfway is halfway
        ((8,), (32, 16, 8), "s0-t2"),
        ((32, 16, 8, 4), (7,), "s3-t0"),
    ],
)
def test_all_pairs_stages_from_the_last_backwards(
    student: tuple[int, ...], teacher: tuple[int, ...], pairs: str
) -> None:
    """As many as both have, in order, none twice."""
    expected = [tuple(pair.split("-")) for pair in pairs.split()]
    assert propose(maps("s", *student), maps("t", *teacher), "all") == expected


def test_last_middle_and_embedding() -> None:
    """The middle is the pair at half of the number: the second of three, the third of four, the only one."""
    four, three = maps("s", 32, 16, 8, 4), maps("t", 32, 16, 8)
    assert propose(three, three, "last") == [("t2", "t2")]
    assert propose(three, three, "middle") == [("t1", "t1")]
    assert propose(four, four, "middle") == [("s2", "s2")]
    assert propose(four, maps("t", 8), "middle") == [("s3", "t0")]
    assert propose(four, three, "embedding") == [("head@in", "head@in")]
    assert propose(four, three, "all+embedding") == [
        ("s1", "t0"),
        ("s2", "t1"),
        ("s3", "t2"),
        ("head@in", "head@in"),
    ]


def test_tokens_and_hidden_vectors_stand_in_for_maps() -> None:
    """A network without maps has blocks of tokens, or hidden layers; they pair by their place."""
    tokens = [Layer(f"b{i}", (5, 8)) for i in range(4)]
    vectors = [Layer("h0", (8,)), Layer("h1", (8,)), Layer("head@in", (8,))]
    assert propose(vectors, tokens, "all") == [("h0", "b1"), ("h1", "b3")]
    assert propose(vectors, maps("t", 32, 16, 8), "last") == [("h1", "t2")]
    assert propose(tokens, tokens, "middle") == [("b2", "b2")]


@pytest.mark.parametrize(
    ("student", "teacher", "which", "text"),
    [
        (
            [Layer("head@in", (8,))],
            maps("t", 8),
            "all",
            "the student has no inner layer to tap; name one of the student's layers, or use logits",
        ),
        (
            maps("s", 8),
            [Layer("t0", (8, 8, 8))],
            "embedding",
            "the teacher has no embedding: no linear layer makes its logits."
            " Name a layer; `kdistill list layers` shows them",
        ),
        (
            maps("s", 8),
            maps("t", 8),
            "first",
            "no layers are known as 'first'; choose from: middle, all, last, embedding, all+embedding",
        ),
    ],
)
def test_what_is_not_there_is_told(student: list[Layer], teacher: list[Layer], which: str, text: str) -> None:
    """One line: whose, what, and what to do."""
    with pytest.raises(ConfigError) as caught:
        propose(student, teacher, which)
    assert str(caught.value) == text


def test_the_table_has_pairs_in_rows() -> None:
    """Unpaired layers stand where they run, and every layer stands once."""
    table = layers_table(maps("s", 8, 4, 2, 1), maps("t", 32, 16, 8))
    assert table.columns == ["student", "student's shape", "teacher", "teacher's shape"]
    assert table.rows == [
        ["s0", "8 x 8 x 8", "", ""],
        ["s1", "8 x 4 x 4", "t0", "8 x 32 x 32"],
        ["s2", "8 x 2 x 2", "t1", "8 x 16 x 16"],
        ["s3", "8 x 1 x 1", "t2", "8 x 8 x 8"],
        ["head@in", "8", "head@in", "8"],
    ]
    assert table.rich().row_count == 5


def test_the_table_of_networks_without_pairs_lists_both() -> None:
    """Nothing in common is no error here."""
    table = layers_table([Layer("head@in", (8,))], [Layer("t0", (4, 8, 8))])
    assert table.rows == [["head@in", "8", "", ""], ["", "", "t0", "4 x 8 x 8"]]
