"""What a folder is: a run, a sweep, a comparison, a study, or nothing that can be told of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdistill.errors import ConfigError, DataError, MissingArtifact, did_you_mean
from kdistill.reporting.findings import Kind

#: stages whose runs have something to show
STAGES = ("run", "eval", "train-teacher", "distill", "finetune")
#: file -> what the folder is that it lies in, once that is finished
MARKS: dict[str, Kind] = {
    "comparison.json": "comparison",
    "study.json": "study",
    "sweep.csv": "sweep",
    "result.json": "run",
}


def newest(runs: Path) -> Path:
    """The folder of what was finished last; raises `MissingArtifact` where nothing is."""
    found = [
        file
        for mark in MARKS
        for file in runs.glob(f"*/*/{mark}")
        if mark != "result.json"
        or (read_json(file).get("status") == "ok" and stage_of(file.parent) in STAGES)
    ]
    if not found:
        raise MissingArtifact(
            f"there is nothing finished in {runs} to report. `kdistill run` makes something; runs=DIR looks elsewhere"
        )
    return max(found, key=lambda file: file.stat().st_mtime).parent


def kind_of(folder: Path) -> Kind:
    """What a folder is; raises `ConfigError` for none, or another one, and `MissingArtifact` for one in progress."""
    if not folder.is_dir():
        beside = (
            [str(folder.with_name(p.name)) for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        )
        raise ConfigError(f"{folder}: there is no such folder.{did_you_mean(str(folder), beside)}")
    for mark, kind in MARKS.items():
        if (folder / mark).is_file():
            return kind
    if any(folder.glob("*/result.json")):
        return "sweep"
    if (folder / ".hydra").is_dir() or (folder / "multirun.yaml").is_file():
        raise MissingArtifact(
            f"{folder} is not finished: there is no result in it. Wait for the run if it is at work; one that was cut"
            " off goes on when its command is given again"
        )
    raise ConfigError(f"{folder}: {_what_else(folder)}. Expected the folder of a run, as runs/run/DATE")


def _what_else(folder: Path) -> str:
    if not any(folder.iterdir()):
        return "this folder is empty"
    if (folder / "manifest.json").is_file():
        return "this is an artifact, and no run"
    if (folder / "artifacts").is_dir():
        return f"this folder holds all runs; `kdistill report runs={folder}` takes the last of them"
    return "this is no folder of a run, a sweep, a comparison or a study"


def stage_of(folder: Path) -> str:
    """The stage of a run; empty where it is not known."""
    file = folder / ".hydra" / "overrides.yaml"
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line[2:].partition("=")[2] for line in lines if line.startswith("- stage=")), "")


def runs_of(folder: Path) -> Path:
    """The folder of all runs that this one is of: where the artifacts lie."""
    above = folder.resolve().parents
    return next((place for place in above if (place / "artifacts").is_dir()), above[1])


def read_json(file: Path) -> dict[str, Any]:
    """Raises `DataError` for a file that is gone, or holds something else."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise DataError(f"{file} is gone") from None
    except ValueError:
        raise DataError(f"{file} is damaged: it is not JSON. Give the command that made it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} is damaged: expected an object, got {type(content).__name__}")
    return content


@contextmanager
def complete(file: Path) -> Iterator[None]:
    """Raise `DataError` for what is looked for in a file's content and is not there, or is something else."""
    try:
        yield
    except (KeyError, TypeError, IndexError) as ex:
        missing = (
            f"it has no {ex.args[0]!r}" if isinstance(ex, KeyError) else "its content is not as expected"
        )
        raise DataError(f"{file} cannot be read: {missing}. Give the command that made it again") from ex
