"""All that was run below a runs folder, read back: jobs, comparisons, studies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from kdistill import jobfolder
from kdistill.config.overrides import users_words, values_of
from kdistill.errors import ConfigError, DataError, did_you_mean, first_line
from kdistill.records import is_number

OK, RUNNING, DAMAGED = "ok", "running", "damaged"
#: how a trial stands -> how a run stands
STATES = {"COMPLETE": OK, "PRUNED": "pruned", "FAIL": "failed", "RUNNING": RUNNING}
#: folders of a runs folder that hold no runs
STORES = ("artifacts", "shards")


@dataclass(frozen=True)
class Run:
    """One training: a job, a variant of a comparison with one seed, or a trial of a study."""

    name: str
    """Its folder below the runs folder, and within a comparison or a study what it is there"""
    stage: str
    status: str
    started: float
    """In seconds since 1970"""
    words: Sequence[str] = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()
    error: str = ""
    read_settings: Callable[[], Mapping[str, Any]] = dict

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Of a job, all that it was composed of; of a variant or trial, those that its words name."""
        return self.read_settings()


def read(runs: Path) -> list[Run]:
    """All runs, the newest first. What cannot be read is among them, as damaged. Raises `DataError` for no folder."""
    if not runs.is_dir():
        beside = [path.name for path in runs.parent.iterdir()] if runs.parent.is_dir() else []
        raise DataError(
            f"there is no folder {runs}.{did_you_mean(runs.name, beside)} `kdistill run` makes one, runs=DIR names"
            " another"
        )
    found = [run for folder in _folders(runs) for run in _read(folder, folder.relative_to(runs).as_posix())]
    return sorted(found, key=lambda run: run.started, reverse=True)


def _folders(runs: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(runs):
        here = Path(place)
        if jobfolder.HYDRA in folders or not {jobfolder.RESULT, *READERS}.isdisjoint(files):
            yield here
            folders.clear()
        skipped = STORES if here == runs else ()
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]


def _read(folder: Path, name: str) -> list[Run]:
    for file, (stage, reader) in READERS.items():
        path = folder / file
        if path.is_file():
            started = path.stat().st_mtime
            try:
                return list(reader(json.loads(path.read_text()), name, started))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as ex:
                return [Run(name, stage, DAMAGED, started, error=f"{path}: {_problem(ex)}")]
    return [_job(folder, name)]


def _problem(ex: Exception) -> str:
    if isinstance(ex, json.JSONDecodeError | UnicodeDecodeError):
        return "it is not JSON"
    return f"there is no {first_line(ex)}" if isinstance(ex, KeyError) else first_line(ex)


# --- jobs ---


def _job(folder: Path, name: str) -> Run:
    hydra = folder / jobfolder.HYDRA
    started = (hydra if hydra.exists() else folder).stat().st_mtime
    later = partial(jobfolder.stored_settings, folder)
    try:
        result = jobfolder.read_result(folder)
    except (OSError, ValueError) as ex:
        result, error = {"status": DAMAGED}, f"{folder / jobfolder.RESULT}: {_problem(ex)}"
    else:
        error = (result or {}).get("error", "")
    if result is None:
        result = {"status": RUNNING if jobfolder.is_at_work(folder) else jobfolder.CUT_OFF}
    words = result.get("overrides")
    given = jobfolder.words(folder) if words is None else []
    stage = next((word for word in given if word.startswith("stage=")), name).removeprefix("stage=")
    settings = result.get("settings")
    return Run(
        name,
        stage.partition("/")[0],
        result["status"],
        started,
        users_words(given) if words is None else words,
        _scores(result.get("row", {})),
        tuple(result.get("artifacts", {}).values()),
        error,
        later if not settings else lambda: settings,
    )


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a row, each under one word: `fine-tuned top1` -> `fine-tuned.top1`."""
    return {name.replace(" ", "."): value for name, value in row.items() if is_number(value)}


# --- comparisons and studies ---


def _comparison(content: Any, name: str, started: float) -> Iterator[Run]:
    for variant, about in {"control": content["control"], **content["variants"]}.items():
        known = {"dataset": content["dataset"], "variant": variant}
        for seed, score, artifact in zip(content["seeds"], about["scores"], about["artifacts"], strict=True):
            words = [*about["words"], f"student.seed={seed}"]
            scores = {
                content["metric"]: score,
                "seconds": about["seconds"],
                "parameters": about["parameters"],
            }
            place = f"{name}/{variant}/{seed}"
            settings = partial(_named, words, known)
            yield Run(place, "compare", OK, started, words, _scores(scores), (artifact,), "", settings)


def _study(content: Any, name: str, started: float) -> Iterator[Run]:
    known = {"dataset": content["dataset"], "study": content["name"]}
    for trial in content["trials"]:
        scores = dict(zip(content["metrics"], trial["values"] or [], strict=False))
        scores |= {key: trial[key] for key in ("seconds", "epochs")}
        settings = partial(_named, trial["words"], known | trial["params"])
        place, status = f"{name}/{trial['number']}", STATES[trial["state"]]
        artifacts = (trial["artifact"],) if trial["artifact"] else ()
        yield Run(place, "tune", status, started, trial["words"], _scores(scores), artifacts, "", settings)
    final = content["final"]
    if final is not None:
        scores = {f"test.{metric}": score for metric, score in final["scores"].items()}
        settings = partial(_named, final["words"], known)
        place = f"{name}/final"
        yield Run(
            place, "tune", OK, started, final["words"], _scores(scores), (final["artifact"],), "", settings
        )


def _named(words: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that words name, and what else is known."""
    named = dict(known)
    for word in words:
        try:
            named[word.partition("=")[0]] = values_of(word)[0]
        except ConfigError:
            named[word.partition("=")[0]] = word.partition("=")[2]
    return named


#: file -> the stage of what it tells of, and how it is read
READERS: dict[str, tuple[str, Callable[[Any, str, float], Iterator[Run]]]] = {
    "comparison.json": ("compare", _comparison),
    "study.json": ("tune", _study),
}
