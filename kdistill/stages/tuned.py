"""What a study has found: its file and table, the best settings as an option, and the best student's scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf

from kdistill.config import folders
from kdistill.config.explain import shown
from kdistill.config.overrides import long_form
from kdistill.errors import RunError
from kdistill.files import write_bytes, write_json
from kdistill.records import Result, Table
from kdistill.stages.evaluate import evaluate
from kdistill.stages.job import Job
from kdistill.stages.space import fixed_words, job_at, words_of
from kdistill.stages.tables import COSTS, Cost, tables
from kdistill.tasks import Column

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from kdistill.studies import Study

#: trials that the table shows; `trials.csv` has them all
SHOWN = 10


@dataclass(frozen=True)
class Goal:
    """The validation score that is to be best, and what is to be small `against` it."""

    metric: str
    direction: Literal["maximize", "minimize"]
    against: str | None

    @property
    def metrics(self) -> list[str]:
        return [self.metric, *([self.against] if self.against else [])]

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        return [self.direction, *(["minimize"] if self.against else [])]  # type: ignore[list-item]

    def rank(self, trial: Mapping[str, Any]) -> tuple[float, float]:
        """What orders complete trials, smaller is better: the first score, and where it is equal the `nll`."""
        sign = -1 if self.direction == "maximize" else 1
        return sign * trial["values"][0], trial["nll"]


def ending(job: Job, study: Study, goal: Goal) -> Result:
    """Show what was found, and judge the best student on the test split, which no trial has looked at.

    Raises `RunError` where no trial was completed.
    """
    content = write(job, study, goal)
    if content["best"] is None:
        raise RunError(f"the study {study.folder.name} has no trial that was completed")
    content["importance"] = study.importance
    best = next(trial for trial in content["trials"] if trial["number"] == content["best"])
    own = job_at(job, best["params"])
    lines = [
        f"student: {best['artifact']}",
        f"study: {study.folder / 'study.json'}",
        f"best settings: {_write_option(own, study.folder, goal, best)}",
    ]
    row: dict[str, float | int | str] = {f"validation {goal.metric}": round(best["values"][0], 5)}
    shown_tables = [_table(job, goal, content)]
    if job.config.tune.final:
        evaluation = evaluate(own)
        scores = list(evaluation.scores.values())[-1]
        content["final"] = {
            "words": own.overrides,
            "scores": {c.key: scores[c.key] for c in job.task.columns if c.key in scores},
            "artifact": best["artifact"],
            "evaluation": str(evaluation.path),
        }
        row[f"test {job.task.headline}"] = round(scores[job.task.headline], 5)
        shown_tables += tables(own, evaluation)
        lines.append(f"evaluation: {evaluation.path}")
    write_json(study.folder / "study.json", content)
    return Result(
        objective=best["values"][0],
        row=row,
        tables=shown_tables,
        message="\n".join([*lines, f"next: {_next(job, study.folder)}"]),
        artifacts={"student": best["artifact"]},
    )


def write(job: Job, study: Study, goal: Goal) -> dict[str, Any]:
    """Write `study.json` and `trials.csv`; returns the content of the former."""
    best = study.front  # first: other processes go on
    trials = [_entry(trial) for trial in study.trials]
    front = [trials[number] for number in best]
    content = {
        "name": study.folder.name,
        "dataset": job.config.dataset.name,
        "task": job.task.name,
        "command": job.command("tune"),
        "metrics": goal.metrics,
        "directions": goal.directions,
        "search": {key: str(values) for key, values in job.config.search.items()},
        "trials": trials,
        "importance": None,
        "best": min(front, key=goal.rank)["number"] if front else None,
        "front": best if goal.against else None,
        "final": None,
    }
    write_json(study.folder / "study.json", content)
    columns = [
        "number",
        "state",
        *goal.metrics,
        *job.config.search,
        "epochs",
        "seconds",
        "artifact",
        "reason",
    ]
    flat = [
        trial | trial["params"] | dict(zip(goal.metrics, trial["values"] or [], strict=False))
        for trial in trials
    ]
    rows = [[trial.get(column) for column in columns] for trial in flat]
    Table("", columns, rows).to_csv(study.folder / "trials.csv")
    return content


def _entry(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as `study.json` has it."""
    about = trial.user_attrs
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "nll": about.get("nll"),
        "params": trial.params,
        "words": words_of(trial.params),
        "seconds": about.get("seconds"),
        "epochs": about.get("epochs", trial.last_step),
        "artifact": about.get("artifact"),
        "reason": about.get("reason"),
    }


# --- for the reader ---


def _table(job: Job, goal: Goal, content: Mapping[str, Any]) -> Table:
    """The best trials, or those of the Pareto front from small to large."""
    trials = content["trials"]
    complete = [trial for trial in trials if trial["state"] == "COMPLETE"]
    if goal.against:
        best = sorted((trials[number] for number in content["front"]), key=lambda trial: trial["values"][1])
    else:
        best = sorted(complete, key=goal.rank)[:SHOWN]
    keys = list(job.config.search)
    known: dict[str, Column | Cost] = {column.key: column for column in job.task.columns}
    known |= {cost.key: cost for cost in COSTS}
    known["latency"] = known["latency_p50"]
    columns = [known[metric] for metric in goal.metrics]
    rows: list[list[object]] = [
        [
            trial["number"],
            *(column.text(value) for column, value in zip(columns, trial["values"], strict=True)),
            *(_short(trial["params"][key]) for key in keys),
            trial["epochs"],
            f"{trial['seconds']:.1f}",
        ]
        for trial in best
    ]
    states = {"complete": "COMPLETE", "ended early": "PRUNED", "failed": "FAIL", "cut off": "RUNNING"}
    counts = {word: sum(trial["state"] == state for trial in trials) for word, state in states.items()}
    title = f"{content['name']}: {', '.join(f'{count} {word}' for word, count in counts.items() if count)}"
    headings = [f"validation {columns[0].heading}", *(column.heading for column in columns[1:])]
    notes = [
        "those that no other one is better than in both" if goal.against else "complete trials, best first"
    ]
    if content["importance"]:
        shares = ", ".join(f"{key} {share:.2f}" for key, share in content["importance"].items())
        notes.append(f"importance, as a share of the variance of {goal.metric}: {shares}")
    return Table(title, ["trial", *headings, *keys, "epochs", "seconds"], rows, "\n".join(notes))


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _next(job: Job, folder: Path) -> str:
    words = [word for word in fixed_words(job.overrides) if not word.startswith("loss=")]
    return job.command("distill", ["--config-dir", str(folder), *words, "loss=best"])


# --- the best settings as an option ---


def _write_option(job: Job, folder: Path, goal: Goal, best: Mapping[str, Any]) -> Path:
    """Write the option `loss=best`, which sets all that the trial `best` did; `job` is the trial's own."""
    path = folder / "loss" / "best.yaml"
    path.parent.mkdir(exist_ok=True)
    about = f"# Trial {best['number']} of the study {folder.name}: validation {goal.metric} {best['values'][0]:.5g}"
    content = OmegaConf.to_yaml(_option(job, best["params"]))
    write_bytes(path, f"# @package _global_\n{about}\n{content}".encode())
    return path


def _option(job: Job, params: Mapping[str, Any]) -> DictConfig:
    """The whole loss as it is, options of other groups as overrides of the defaults, other settings as values."""
    config = job.config.model_dump(mode="json")
    chosen: list[dict[str, Any]] = []
    values: dict[str, Any] = {}
    for key, value in params.items():
        group = long_form(f"{key}={shown(value)}").partition("=")[0]
        if key.partition(".")[0] in ("loss", "feature"):
            continue
        if "@" in group or group in folders.groups():
            chosen.append({f"override /{group}": value})
        else:  # as the config has it: a list was sampled as text
            values[key] = reduce(getitem, key.split("."), config)
    option = OmegaConf.create({"defaults": chosen, "loss": config["loss"]})
    for key, value in values.items():
        OmegaConf.update(option, key, value, force_add=True)
    return option
