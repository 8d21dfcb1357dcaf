"""Which layers of a student and a teacher go together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdistill.errors import ConfigError
from kdistill.features import INPUT, Layer
from kdistill.records import Table


def propose(student: Sequence[Layer], teacher: Sequence[Layer], which: str) -> list[tuple[str, str]]:
    """Pairs of names (student's layer, teacher's layer) from both networks' candidates.

    `which`: "all" pairs stages from the last one backwards, as many as both have; "last" is the last
    pair and "middle" the one at half of the number (the published hint layer); "embedding" is what goes
    into the heads; "all+embedding" is both. Where one network has more stages, that one is taken which is
    as much smaller than the images' last map, and comes as late in the network. Raises `ConfigError`.
    """
    if which == "embedding":
        return [(_embedding(student, "student"), _embedding(teacher, "teacher"))]
    if which not in ("all", "all+embedding", "last", "middle"):
        raise ConfigError(
            f"no layers are known as {which!r}; choose from: middle, all, last, embedding, all+embedding"
        )
    pairs = _paired(_inner(student, "student"), _inner(teacher, "teacher"))
    if which == "all":
        return pairs
    if which == "all+embedding":
        return pairs + propose(student, teacher, "embedding")
    return [pairs[-1 if which == "last" else len(pairs) // 2]]


def layers_table(student: Sequence[Layer], teacher: Sequence[Layer]) -> Table:
    """Both networks' candidates with their shapes, each pair that `all+embedding` proposes in one row."""
    pairs: list[tuple[str, str]] = []
    for which in ("all", "embedding"):
        try:
            pairs += propose(student, teacher, which)
        except ConfigError:
            continue  # an option that this network does not have
    rows: list[list[object]] = []
    left = {"student": list(student), "teacher": list(teacher)}
    for s_name, t_name in [*pairs, ("", "")]:
        for role, name in (("student", s_name), ("teacher", t_name)):
            while left[role] and left[role][0].name != name:
                cells = [left[role][0].name, _shape(left[role].pop(0))]
                rows.append([*cells, "", ""] if role == "student" else ["", "", *cells])
        if s_name:
            s, t = left["student"].pop(0), left["teacher"].pop(0)
            rows.append([s.name, _shape(s), t.name, _shape(t)])
    columns = ["student", "student's shape", "teacher", "teacher's shape"]
    return Table("Layers", columns, rows, "one row: paired by default; X@in: the input of X")


def _paired(student: Sequence[Layer], teacher: Sequence[Layer]) -> list[tuple[str, str]]:
    if len(student) > len(teacher):
        return [(s, t) for t, s in _paired(teacher, student)]
    pairs = [(student[-1].name, teacher[-1].name)]
    end = len(teacher) - 1
    for i in reversed(range(len(student) - 1)):

        def distance(j: int, i: int = i) -> float:
            place = abs((i + 1) / len(student) - (j + 1) / len(teacher))
            return place + abs(_octaves(student, i) - _octaves(teacher, j))

        end = min(range(i, end), key=distance)
        pairs.append((student[i].name, teacher[end].name))
    return pairs[::-1]


def _octaves(layers: Sequence[Layer], index: int) -> float:
    """How often the resolution is halved between a layer and the last one; 0 for other features than maps."""
    here, last = layers[index].shape, layers[-1].shape
    return math.log2(math.prod(here[1:]) / math.prod(last[1:])) / 2 if len(here) == len(last) == 3 else 0.0


def _inner(layers: Sequence[Layer], role: str) -> list[Layer]:
    """The maps, or where there are none the tokens, or else the vectors."""
    for axes in (3, 2, 1):
        if found := [x for x in layers if len(x.shape) == axes and not x.name.endswith(INPUT)]:
            return found
    raise ConfigError(f"the {role} has no inner layer to tap; name one of the {role}'s layers, or use logits")


def _embedding(layers: Sequence[Layer], role: str) -> str:
    for layer in layers:
        if layer.name.endswith(INPUT):
            return layer.name
    raise ConfigError(
        f"the {role} has no embedding: no linear layer makes its logits."
        " Name a layer; `kdistill list layers` shows them"
    )


def _shape(layer: Layer) -> str:
    return " x ".join(map(str, layer.shape))
