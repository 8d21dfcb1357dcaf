"""Which class of the teacher is which class of the student, and the teacher's logits for the shared ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kdistill.errors import ConfigError, did_you_mean

_log = logging.getLogger("kdistill")

_SHOWN = 4
_HINT = "teacher.class_map='{tabby: cat}' says which teacher class is which student class"


@dataclass(frozen=True, eq=False)
class ClassMap:
    """How Kt teacher classes become S shared classes, out of the student's K.

    `shared`: int64 `[S]`, ascending: the student's classes that the teacher knows.
    `columns`: for each of them, the teacher's classes that are part of it.
    """

    shared: Tensor
    columns: tuple[tuple[int, ...], ...]
    teacher_classes: int
    student_classes: int

    @property
    def is_full(self) -> bool:
        """Every student class is known to the teacher."""
        return len(self.columns) == self.student_classes

    @property
    def is_identity(self) -> bool:
        """The teacher's classes are the student's, in the same order."""
        same = self.columns == tuple((k,) for k in range(self.student_classes))
        return same and self.teacher_classes == self.student_classes

    def apply(self, teacher_logits: Tensor, T: float) -> Tensor:
        """Return logits over the shared classes `[N, S]`, in the student's order, of `[N, Kt]`.

        Softmax over them renormalises: classes that the student has not count no more. Where several
        teacher classes are one student class, their probabilities at `T` are added: T * logsumexp(z / T).
        Identity returns the logits themselves.
        """
        if self.is_identity:
            return teacher_logits
        padded = _padded(self.columns, self.teacher_classes, teacher_logits.device)
        if padded.shape[1] == 1:
            # not by logsumexp: T * (z / T) is rounded, a selected logit is the same bits
            return teacher_logits.index_select(1, padded[:, 0])
        wide = teacher_logits if teacher_logits.dtype == torch.float64 else teacher_logits.float()
        nothing = wide.new_full((len(wide), 1), -torch.inf)
        members = torch.cat([wide, nothing], dim=1)[:, padded]
        return T * (members / T).logsumexp(2)


@cache
def _padded(columns: tuple[tuple[int, ...], ...], nothing: int, device: torch.device) -> Tensor:
    """The teacher's classes of each group, int64 `[S, widest]`; `nothing` fills up smaller groups."""
    widest = max(len(group) for group in columns)
    rows = [[*group, *[nothing] * (widest - len(group))] for group in columns]
    return torch.tensor(rows, device=device)


def same_classes(count: int) -> ClassMap:
    """The map of a teacher whose outputs are the student's, in the same order."""
    return ClassMap(torch.arange(count), tuple((k,) for k in range(count)), count, count)


def class_map(teacher: Sequence[str], student: Sequence[str], explicit: Mapping[str, str] | None) -> ClassMap:
    """Match the teacher's classes with the student's.

    With `explicit`, teacher class -> student class, these pairs are the whole map. Without, classes of equal
    names are the same; when no name is equal, those that differ in case, spaces, hyphens and underscores
    alone. A name that the teacher has twice (ImageNet's "crane") is both classes.

    Raises ConfigError for an explicit name that is unknown, and when fewer than two classes are shared.
    """
    if explicit is None and list(teacher) == list(student):
        pairs = [(k, k) for k in range(len(student))]
    elif explicit is not None:
        pairs = _explicit_pairs(teacher, student, explicit)
    else:
        pairs = _pairs(teacher, student) or _loose_pairs(teacher, student)
    columns: dict[int, list[int]] = {}
    for teacher_class, student_class in pairs:
        columns.setdefault(student_class, []).append(teacher_class)
    if len(columns) < 2:
        raise ConfigError(_too_few(teacher, student, [student[k] for k in columns]))
    shared = sorted(columns)
    result = ClassMap(
        torch.tensor(shared),
        tuple(tuple(sorted(columns[k])) for k in shared),
        len(teacher),
        len(student),
    )
    if not result.is_identity:
        _log.info(
            f"the teacher knows {len(shared)} of the student's {len(student)} classes;"
            f" {len(pairs)} of its {len(teacher)} classes are used"
        )
    return result


def _pairs(teacher: Sequence[str], student: Sequence[str]) -> list[tuple[int, int]]:
    place = {name: k for k, name in enumerate(student)}
    return [(k, place[name]) for k, name in enumerate(teacher) if name in place]


def _loose_pairs(teacher: Sequence[str], student: Sequence[str]) -> list[tuple[int, int]]:
    loose = [_loosely(name) for name in student]
    # two student classes that become one name cannot be told apart: they match nothing
    pairs = [
        (a, b) for a, b in _pairs([_loosely(name) for name in teacher], loose) if loose.count(loose[b]) == 1
    ]
    if pairs:
        a, b = pairs[0]
        _log.info(
            "no class of the teacher has the name of one of the student: matched without regard to case,"
            f" spaces, hyphens and underscores, for example {teacher[a]!r} -> {student[b]!r}"
        )
    return pairs


def _loosely(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _explicit_pairs(
    teacher: Sequence[str], student: Sequence[str], explicit: Mapping[str, str]
) -> list[tuple[int, int]]:
    for whose, names, known in (
        ("teacher", explicit.keys(), teacher),
        ("student", explicit.values(), student),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"teacher.class_map: the {whose} has no class {name!r}.{did_you_mean(name, known)}"
                    f" It has {_some(known)}; {_HINT}"
                )
    place = {name: k for k, name in enumerate(student)}
    return [(k, place[explicit[name]]) for k, name in enumerate(teacher) if name in explicit]


def _too_few(teacher: Sequence[str], student: Sequence[str], shared: Sequence[str]) -> str:
    what = f"only the class {shared[0]!r}" if shared else "no class"
    return (
        f"teacher and student share {what}, and at least two are needed."
        f" The teacher has {_some(teacher)}; the student has {_some(student)}. {_HINT}"
    )


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
