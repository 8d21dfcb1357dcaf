"""An evaluation for a reader: how good the models are, and what it takes to use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kdistill.footprint import BATCH_SIZE
from kdistill.records import Table
from kdistill.stages.evaluate import Evaluation
from kdistill.stages.job import Job

NOTES = {
    "ece": "ECE: calibration error, 15 bins",
    "ece_scaled": "at T: of logits / T, with T fitted to the validation split",
    "map": "mAP: mean average precision",
    "agreement": "agree: same class as the teacher",
    "kl": "KL: from the teacher, in nats",
    "distance": "to teacher: root mean squared difference",
}
#: notes that share a line
LINES = (("map", "ece", "ece_scaled"), ("agreement", "kl", "distance"))
#: classes that are named as the weakest
WEAKEST = 3


def tables(job: Job, evaluation: Evaluation) -> list[Table]:
    """The scores, and the costs."""
    return [_scores(job, evaluation), _costs(evaluation)]


def _scores(job: Job, evaluation: Evaluation) -> Table:
    scores, titles = evaluation.scores, evaluation.titles
    columns = [c for c in job.task.columns if any(c.key in values for values in scores.values())]
    rows: list[list[object]] = [
        [titles[name], *(c.text(values[c.key]) if c.key in values else "-" for c in columns)]
        for name, values in scores.items()
    ]
    keys = [c.key for c in columns]
    notes = ["; ".join(NOTES[key] for key in line if key in keys) for line in LINES]
    if job.task.temperature is not None:
        notes += [_unscaled(titles[name]) for name, values in scores.items() if "temperature" not in values]
    notes.append(_weakest(job, evaluation))
    most = max(values["images"] for values in scores.values())
    title = f"{job.config.dataset.name}: {most:,} test images"
    return Table(title, ["", *(c.heading for c in columns)], rows, "\n".join(filter(None, notes)))


def _unscaled(title: str) -> str:
    return f"no T for {title}: none is best on validation, as where all or nothing is right"


def _weakest(job: Job, evaluation: Evaluation) -> str:
    """The classes that the last model does worst on, where there are more than a few."""
    name, values = list(evaluation.scores.items())[-1]
    known = {label: value for label, value in values["by_class"].items() if value is not None}
    if len(known) <= WEAKEST:
        return ""
    column = job.task.columns[0]
    worst = sorted(known, key=known.__getitem__)[:WEAKEST]
    unit = column.heading.partition(" ")[2]
    listed = ", ".join(f"{label} ({f'{column.text(known[label])} {unit}'.rstrip()})" for label in worst)
    return f"weakest of {evaluation.titles[name]}: {listed}"


# --- costs ---


def _costs(evaluation: Evaluation) -> Table:
    scores = evaluation.scores
    measured = [values["cost"] for values in scores.values() if "cost" in values]
    shown = [cost for cost in COSTS if measured or not cost.is_measured]
    rows: list[list[object]] = [
        [evaluation.titles[name], *(cost_text(values, cost) for cost in shown)]
        for name, values in scores.items()
    ]
    note = "seconds: training time"
    if measured:
        runs = min(cost["runs"] for cost in measured)
        note = (
            f"MFLOPs: of one image, two for a multiply-add; p50, p95: one image, {runs} runs;"
            f"\nimages/s, MB of memory: batches of {BATCH_SIZE}; {note}"
        )
    return Table(_machine(evaluation), ["", *(cost.heading for cost in shown)], rows, note)


class Cost(NamedTuple):
    """A cost in a table: its heading, its key, whether it is measured, and how a value is written."""

    heading: str
    key: str
    is_measured: bool
    text: Callable[[Any], str]


COSTS = (
    Cost("parameters", "parameters", False, "{:,.0f}".format),
    Cost("file kB", "bytes", False, lambda value: f"{value / 1e3:,.1f}"),
    Cost("MFLOPs", "flops", True, lambda value: f"{value / 1e6:,.{2 if value >= 1e6 else 4}f}"),
    Cost("p50 ms", "latency_p50", True, lambda value: f"{1e3 * value:,.2f}"),
    Cost("p95 ms", "latency_p95", True, lambda value: f"{1e3 * value:,.2f}"),
    Cost("images/s", "throughput", True, "{:,.1f}".format),
    Cost("MB", "memory", True, lambda value: f"{value / 1e6:,.2f}"),
    Cost("seconds", "seconds", False, "{:.1f}".format),
)


def cost_text(values: Mapping[str, Any], cost: Cost) -> str:
    """A cost of a model, whose `values` are as in an evaluation; `-` where it is not known."""
    value = values.get("cost", {}).get(cost.key, values.get(cost.key))
    return cost.text(value) if value else "-"


def _machine(evaluation: Evaluation) -> str:
    """Where the costs were measured, and at which precision; empty where they were not."""
    costs = {evaluation.titles[name]: v["cost"] for name, v in evaluation.scores.items() if "cost" in v}
    if not costs:
        return ""
    cost = next(iter(costs.values()))
    where = cost["device"]
    if where == "cpu":
        where += f", {cost['threads']} thread{'s' * (cost['threads'] > 1)}"
    by_precision: dict[str, list[str]] = {}
    for title, cost in costs.items():
        by_precision.setdefault(cost["precision"], []).append(title)
    if len(by_precision) == 1:
        return f"on {where}, {next(iter(by_precision))}"
    named = [f"{precision} ({', '.join(titles)})" for precision, titles in by_precision.items()]
    return f"on {where}, {', '.join(named)}"
