"""Packages that not every user needs: extras of the installation, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kdistill.errors import ConfigError


def imported(module: str, extra: str, user: str) -> Any:
    """A module of an extra; raises `ConfigError`, which says what the `user` of it needs, where it is missing."""
    try:
        return import_module(module)
    except ImportError as ex:
        package = (ex.name or module).partition(".")[0]
        raise ConfigError(f"{user} needs {package}: pip install 'kdistill[{extra}]'") from ex
