"""The folder of one job, such as `runs/run/DATE/`: written by the job, read by all that tell of it later.

`result.json` is there when the job has ended. While it is at work it holds the lock `.running`, which dies with
its process. `.hydra/` is Hydra's: the job's words and the composed config.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from kdistill.config.overrides import short_form
from kdistill.files import write_json

RESULT, LOCK, HYDRA = "result.json", ".running", ".hydra"
#: the status of a job that has not ended, and is not at work
CUT_OFF = "cut off"
#: what `result.json` holds beside numbers
_KINDS = {"status": str, "overrides": list, "row": dict, "artifacts": dict, "settings": dict, "error": str}
#: several times as fast as the other, where PyYAML was built with it
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Show, as long as this lasts, that a job is at work in its folder."""
    with ExitStack() as held:
        with suppress(OSError):  # on a full disk; the job itself will say so
            held.enter_context(FileLock(folder / LOCK))
        yield


def is_at_work(folder: Path) -> bool:
    """Whether a process is at work in a job's folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # in a folder of somebody else's
        return False


def write_result(folder: Path, content: Mapping[str, Any]) -> None:
    write_json(folder / RESULT, content)


def read_result(folder: Path) -> dict[str, Any] | None:
    """How the job ended, None while it has not; raises `ValueError` for a damaged file."""
    try:
        content = json.loads((folder / RESULT).read_text())
    except FileNotFoundError:
        return None
    if not isinstance(content, dict) or not content.keys() >= {"status", "overrides"}:
        raise ValueError("it is no job's result")
    for key in content.keys() & _KINDS.keys():
        if not isinstance(content[key], _KINDS[key]):
            raise ValueError(f"its {key!r} is {content[key]!r}")
    return content


def words(folder: Path) -> list[str]:
    """The overrides that Hydra was given; none where that is not known."""
    found = _read_yaml(folder / HYDRA / "overrides.yaml")
    return [str(word) for word in found] if isinstance(found, list) else []


def settings_of(config: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a composed config by their dotted names, and the options chosen by their groups."""
    chosen = {short_form(group): option for group, option in choices.items() if "hydra/" not in group}
    return chosen | dict(_flat(config, ""))


def stored_settings(folder: Path) -> dict[str, Any]:
    """The settings of a job that has left none in its result: it has not ended, or failed at its config."""
    config, hydra = (_read_yaml(folder / HYDRA / name) for name in ("config.yaml", "hydra.yaml"))
    with suppress(TypeError, KeyError):
        return settings_of(config, hydra["hydra"]["runtime"]["choices"])
    return {}


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(), _Loader)
    except (OSError, yaml.YAMLError):
        return None
