"""Overrides as the user writes them: short forms for Hydra's, and the values that a word names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kdistill.errors import ConfigError

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


def users_words(overrides: Sequence[str]) -> list[str]:
    """The overrides of a job as the user would write them, without the stage and Hydra's own settings."""
    return [short_form(word) for word in overrides if not re.match(r"\+*(stage=|hydra[./@])", word)]


def values_of(word: str) -> list[Any]:
    """The values that a word names, typed as in a config: `loss.T=1,2` -> `[1, 2]`; raises `ConfigError`."""
    # imported here: a table of results without filters need not wait for it
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, value = OverridesParser.create(), word.partition("=")[2]
    try:
        override = parser.parse_override(f"key={value}")
        texts = list(override.sweep_string_iterator()) if override.is_sweep_override() else [value]
        return [parser.parse_override(f"key={text}").value() for text in texts]
    except (HydraException, NotImplementedError):
        from kdistill.config.explain import unreadable

        raise ConfigError(unreadable(word)) from None
