"""Overrides in a user's short form, and in the form that Hydra takes."""

from __future__ import annotations

import re

#: settings with keys that no YAML lists: an architecture's parameters, whose names the schema checks; those of an
#: assistant, which has no section of its own until some of it is set; variants, whose names are the user's
_OPEN = r"(teacher|student)\.params(\.[\w.]+)?|assistant\.[\w.]+|compare\.variants(\.[\w-]+)?"


def long_form(word: str) -> str:
    """Rewrite short forms to Hydra's.

    >>> long_form("student.optim=adamw"), long_form("student.params.width=8"), long_form("assistant=resnet14")
    ('optim@student.optim=adamw', '++student.params.width=8', 'teacher@assistant=resnet14')
    >>> long_form("compare.variants.hot=loss.T=8 loss.alpha=0")
    "++compare.variants.hot='loss.T=8 loss.alpha=0'"
    """
    mounted = re.fullmatch(r"((?:teacher|student|finetune)\.optim(\.schedule)?)=([\w/-]+(?:,[\w/-]+)*)", word)
    if mounted:
        key, is_schedule, options = mounted.groups()
        return f"{'schedule' if is_schedule else 'optim'}@{key}={options}"
    if re.match(r"assistant=(?!null$)", word):
        return f"teacher@{word}"
    variant = re.fullmatch(r"(compare\.variants\.[\w-]+)=([^'\"].*)", word)
    if variant:
        return f"++{variant[1]}={quoted(variant[2])}"
    return f"++{word}" if re.match(rf"({_OPEN})=", word) else word


def short_form(word: str) -> str:
    """The short form that the user may have written: `optim@student.optim=sgd` -> `student.optim=sgd`."""
    return re.sub(r"^(optim|schedule|teacher)@", "", word.removeprefix("++"))


def quoted(text: str) -> str:
    """Text as a value that Hydra's grammar takes whatever is in it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
