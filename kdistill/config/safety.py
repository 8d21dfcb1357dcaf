"""What a config may not do: name code that would run.

Configs are data that people pass around, but parts of Hydra's own section name classes or modules.
Those are refused before Hydra looks at them, in every combination of a sweep.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from kdistill.errors import ConfigError

#: environment variables that a config may read: no tokens, no passwords
READABLE = ("HOME", "USER", "TMPDIR")
PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")


def _env(name: str, *default: Any) -> Any:
    if name not in READABLE and not name.startswith("KDISTILL_"):
        raise ConfigError(
            f"a config may read KDISTILL_*, {', '.join(READABLE)} from the environment, but not {name}"
        )
    if name in os.environ:
        return os.environ[name]
    if default:
        return default[0]
    raise ConfigError(f"the environment variable {name}, which the config reads, is not set")


# Replaced at import, so that the worker processes of a launcher have it as well.
OmegaConf.clear_resolver("oc.env")
OmegaConf.register_new_resolver("oc.env", _env)


def check_words(overrides: Sequence[Override]) -> None:
    """Refuse overrides that must not even be composed; raises `ConfigError`.

    A `pkg://` entry of the search path makes Hydra import the package it names.
    """
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        if key == "stage":
            raise ConfigError(
                f"{override.input_line}: the stage is the command itself, as in `kdistill distill`"
            )
        if key == "hydra.searchpath":
            entries = override.value()
            for entry in entries if isinstance(entries, list) else [entries]:
                if not Path(str(entry).removeprefix("file://")).is_dir():
                    raise ConfigError(f"{override.input_line}: no folder {entry}; only folders may be added")


def check_composed(cfg: DictConfig, shipped: Path) -> None:
    """Refuse a composed config (with its `hydra` section) that names code; raises `ConfigError`."""
    hydra = cfg.hydra
    for key in ("callbacks", "job.env_set", "job.env_copy"):
        if _plain(OmegaConf.select(hydra, key)):
            raise ConfigError(f"hydra.{key} may not be set: it reaches beyond the run")
    for key in ("job_logging", "hydra_logging"):
        if _plain(hydra[key]) != _plain(OmegaConf.load(shipped / "hydra" / key / "kdistill.yaml")):
            raise ConfigError(
                f"hydra.{key} may not be changed: it can name code (hydra.verbose=true logs more)"
            )
    if hydra.job.chdir:
        raise ConfigError("hydra.job.chdir may not be set: paths are relative to where you start the command")
    for key in ("launcher", "sweeper"):
        node = OmegaConf.to_container(hydra[key], resolve=True) if OmegaConf.is_config(hydra[key]) else {}
        target = node.pop("_target_", None) if isinstance(node, dict) else None
        if not isinstance(target, str) or not target.startswith(PLUGINS):
            raise ConfigError(
                f"hydra.{key}._target_={target}: not a plugin of Hydra; choose one with hydra/{key}=NAME"
            )
        _refuse_targets(node, f"hydra.{key}")
    _check_script(_plain(hydra.launcher))
    plain = _plain(cfg)
    for key in ("launcher", "sweeper"):
        plain["hydra"].pop(key)
    _refuse_targets(plain, "")


def _check_script(launcher: dict[str, Any]) -> None:
    """Refuse what would be a command of its own in the script that a launcher hands to Slurm."""
    if launcher.get("setup"):
        raise ConfigError("hydra.launcher.setup may not be set: its lines would be run as commands")
    for key, value in launcher.items():
        texts = [*value, *value.values()] if isinstance(value, dict) else [value]
        if any("\n" in str(text) for text in texts):
            raise ConfigError(f"hydra.launcher.{key}: a line break in it would begin a command")


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def _refuse_targets(node: Any, path: str) -> None:
    for where, key in _keys(node, path):
        if key == "_target_":
            raise ConfigError(
                f"{where}: a config may not name code; kdistill takes names, see `kdistill list`"
            )


def _keys(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """All keys below a plain container, each with its dotted path."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        where = f"{path}.{key}".lstrip(".")
        yield where, str(key)
        yield from _keys(value, where)
