"""A run under a tracker: started from the config, told of each epoch, told how the run ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdistill import ranks
from kdistill.config.schema import Config
from kdistill.errors import ConfigError, Interrupted, KdistillError, first_line
from kdistill.records import Result
from kdistill.stages.job import Watch
from kdistill.trackers import TRACKERS, Run, Status, Tolerant, Tracker


def check_trackers(configs: Iterable[Config]) -> None:
    """Raise the `UserError` that a tracker would raise when the run starts."""
    chosen = {(config.tracker, config.runs) for config in configs if config.tracker.kind != "none"}
    for settings, runs in chosen:
        with _starting(settings.kind):
            TRACKERS[settings.kind].check(settings, Path(runs))


def tracked(work: Callable[[Watch], Result], config: Config, command: str, folder: Path | None) -> Result:
    """Do the work of a run while the tracker of its config, if it has one, is told of it.

    `folder` is the run's own; without one there is nothing to track. Of several ranks the main one is observed.
    """
    if folder is None:
        check_untracked(config)
    if folder is None or config.tracker.kind == "none" or not ranks.is_main():
        return work(lambda what, row: None)
    tracker = _started(config, command, folder)
    status: Status = "failed"
    result = None
    try:
        result = work(tracker.log)
        status = "ok"
    except (KeyboardInterrupt, Interrupted):
        status = "interrupted"
        raise
    finally:
        tracker.finish(status, result)
    return result


def check_untracked(config: Config) -> None:
    """Raise `ConfigError` where a tracker is chosen for work that is no run of the command and has no folder."""
    if config.tracker.kind != "none":
        raise ConfigError(
            f"tracker={config.tracker.kind}: only runs of the command `kdistill` are tracked; from Python use"
            " tracker=none"
        )


def _started(config: Config, command: str, folder: Path) -> Tracker:
    folder, runs = folder.resolve(), Path(config.runs).resolve()
    name = folder.relative_to(runs) if folder.is_relative_to(runs) else Path(folder.name)
    settings = dict(_flat(config.model_dump(mode="json", exclude={"tracker"}, exclude_none=True)))
    kind = config.tracker.kind
    run = Run(name.as_posix(), folder, runs, settings, command)
    with _starting(kind):
        return Tolerant(kind, TRACKERS[kind].start(config.tracker, run))


@contextmanager
def _starting(kind: str) -> Iterator[None]:
    try:
        yield
    except KdistillError:
        raise
    except Exception as ex:  # each tracker has classes of its own
        raise ConfigError(f"tracker={kind} cannot start: {first_line(ex)}. tracker=none goes without") from ex


def _flat(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Dotted name -> value; a mapping whose keys are no names, as of classes, is a value."""
    for name, value in section.items():
        if isinstance(value, Mapping) and all(str(key).isidentifier() for key in value):
            yield from _flat(value, f"{path}{name}.")
        else:
            is_plain = isinstance(value, bool | int | float | str)
            yield path + name, value if is_plain else json.dumps(value)
