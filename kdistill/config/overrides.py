"""Overrides as the user writes them: short forms for Hydra's, and the values that a word names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kdistill.errors import ConfigError


def long_form(word: str) -> str:
    """Rewrite short forms to Hydra's.

    >>> long_form("student.optim=adamw"), long_form("student.params.width=8"), long_form("assistant=resnet14")
    ('optim@student.optim=adamw', '++student.params.width=8', 'teacher@assistant=resnet14')
    """
    mounted = re.fullmatch(r"((?:teacher|student|finetune)\.optim(\.schedule)?)=([\w/-]+(?:,[\w/-]+)*)", word)
    if mounted:
        key, is_schedule, options = mounted.groups()
        return f"{'schedule' if is_schedule else 'optim'}@{key}={options}"
    if re.match(r"assistant=(?!null$)", word):
        return f"teacher@{word}"
    # Architectures have parameters that their YAML does not list; the schema checks the names. An assistant
    # has no section of its own until some of it is set.
    return (
        f"++{word}" if re.match(r"((teacher|student)\.params(\.[\w.]+)?|assistant\.[\w.]+)=", word) else word
    )


def short_form(word: str) -> str:
    """The short form that the user may have written: `optim@student.optim=sgd` -> `student.optim=sgd`."""
    return re.sub(r"^(optim|schedule|teacher)@", "", word.removeprefix("++"))


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
