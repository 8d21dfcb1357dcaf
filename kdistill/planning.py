"""`kdistill plan`: what a run will take, and what would make it fit. Nothing is trained or written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kdistill.config import compose
from kdistill.console import say, show_table
from kdistill.errors import ConfigError
from kdistill.files import free_bytes
from kdistill.logs import early_warnings
from kdistill.records import Table
from kdistill.resources import memory_limit
from kdistill.stages import check_before
from kdistill.stages.estimates import Estimate, estimates
from kdistill.stages.job import Job

COLUMNS = ["stage", "model", "loss", "count", "steps", "ms/step", "images/s", "time"]
COLUMNS += ["memory MB", "disk MB", "checkpoint MB"]
#: kind of artifact -> the section that says how its network is trained
SECTIONS = {"teacher": "teacher", "student": "student", "finetuned": "finetune"}
#: seconds: how to make a run shorter is said of those that take this long; how long a trial is to be
LONG, TRIAL = 3600, 600
#: views are cut to this share where the teacher's answers take more than half of the time
FEWER = 4


def main(words: Sequence[str], multirun: bool = False) -> int:
    """Measure what `kdistill run` with these words will take, show it, and return the exit code.

    Raises what `run` would raise before its first job.
    """
    plan = compose.plan("run", words, multirun)
    if not plan.is_listed and plan.multirun:
        raise ConfigError("a sweeper that searches chooses its jobs itself: plan one of them, without -m")
    if any(config.device.shard for config in plan.configs):
        raise ConfigError(
            "kdistill plan tries steps in one process, with whole networks: plan with device.shard=false"
        )
    with early_warnings():
        check_before(plan.configs, [compose.users_words(job) for job in plan.jobs])
        found = estimates(plan.configs)
    job = found[0].part.job
    free, memory = free_bytes(Path(job.config.runs)), memory_limit(job.engine.device)
    show_table(table(found, free, memory))
    for line in advice(found, free, memory):
        say(line)
    return 0


def table(found: Sequence[Estimate], free: int, memory: int | None) -> Table:
    """One line for each stage; `free` bytes of disk and `memory` bytes are there."""
    return Table("", COLUMNS, [_row(e) for e in found], _totals(found, free, memory))


def duration(seconds: float) -> str:
    """Seconds for a reader.

    >>> duration(0.04), duration(75), duration(4320), duration(100_000)
    ('0.0 s', '1 min 15 s', '1 h 12 min', '1 d 4 h')
    """
    units = (86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")
    for size, unit, part, smaller in units:
        whole, rest = divmod(round(seconds / part), size // part)
        if whole:
            return f"{whole} {unit} {rest} {smaller}"
    return f"{seconds:.1f} s"


def advice(found: Sequence[Estimate], free: int, memory: int | None) -> Iterator[str]:
    """A line for whatever does not fit, or takes long for a reason that a setting can change."""
    yield from _disk_advice(found, free)
    for estimate in found:
        needed = estimate.cost.memory
        if estimate.cost.out_of_memory or (memory is not None and needed > memory):
            yield _memory_advice(estimate, memory)
    yield from _time_advice(found)


# --- the table ---


def _row(estimate: Estimate) -> list[object]:
    part, cost = estimate.part, estimate.cost
    loss = part.job.config.loss.kind if part.kind in ("student", "finetuned") else "-"
    name = [part.kind, part.model, loss, estimate.count]
    if estimate.is_done:
        return [*name, "-", "-", "-", "done", "-", "-", "-"]
    known = "not known" if cost.seconds is None else duration(estimate.count * cost.seconds)
    pace = ["-", "-"]
    if cost.step_seconds:
        pace = [f"{1000 * cost.step_seconds:,.1f}", f"{cost.batch_size / cost.step_seconds:,.0f}"]
    return [
        *name,
        f"{cost.steps:,}" if cost.steps else "-",
        *pace,
        "out of memory" if cost.out_of_memory else known,
        f"{cost.memory / 1e6:,.0f}" if cost.memory else "-",
        _mb(_stays(estimate)) if _stays(estimate) else "-",
        _mb(cost.checkpoint) if cost.checkpoint else "-",
    ]


def _totals(found: Sequence[Estimate], free: int, memory: int | None) -> str:
    unknown = "more than " if any(e.cost.seconds is None for e in found) else ""
    most = max(e.cost.memory for e in found)
    there = "" if memory is None else f" of {memory / 1e6:,.0f}"
    return (
        f"total: {unknown}{duration(_seconds(found))}; memory {most / 1e6:,.0f} MB{there};"
        f" disk {_mb(_needed(found))} MB of {free / 1e6:,.0f}, with a checkpoint while it trains"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.2f}"


def _seconds(found: Sequence[Estimate]) -> float:
    """All that is known of the time."""
    return sum(e.count * (e.cost.seconds or 0) for e in found)


def _needed(found: Sequence[Estimate]) -> int:
    """Bytes on disk: all that stays, and the largest checkpoint, which is replaced by a new one beside it."""
    return sum(map(_stays, found)) + 2 * max(e.cost.checkpoint for e in found)


def _stays(estimate: Estimate) -> int:
    return estimate.count * (estimate.cost.kept + estimate.cost.judged)


# --- advice ---


def _disk_advice(found: Sequence[Estimate], free: int) -> Iterator[str]:
    needed = _needed(found)
    if needed <= free:
        return
    stored = [e for e in found if e.part.kind == "soft-targets" and e.cost.kept]
    size = sum(e.count * e.cost.kept for e in stored)
    settings = []
    if stored:
        job = stored[0].part.job
        views = job.identity.teacher_views
        fitting = views * (free - needed + size) // size
        classes = len(job.data.classes)
        if job.task.name == "classification" and job.config.soft_targets.top_k is None and classes > 10:
            settings.append("soft_targets.top_k=10")
        if job.config.soft_targets.dtype == "float32":
            settings.append("soft_targets.dtype=float16 (half of the soft targets)")
        if 1 <= fitting < views:
            settings.append(f"soft_targets.views={fitting} (now {views})")
        if not job.identity.is_file:
            settings.append("soft_targets=live (stores none)")
    yield (
        f"disk: {_mb(needed)} MB are needed, {_mb(size)} of them for soft targets, and {_mb(free)} are free in"
        f" {found[0].part.job.config.runs}. What helps: {' or '.join([*settings, 'runs=DIR on another disk'])}"
    )


def _memory_advice(estimate: Estimate, memory: int | None) -> str:
    part, job = estimate.part, estimate.part.job
    settings = [_smaller_batch(part.kind, job)]
    if job.engine.device.type == "cuda" and job.engine.precision == "fp32":
        settings.append("device.precision=bf16")
    there = "there is" if memory is None else f"the {memory / 1e6:,.0f} MB that there are"
    needed = "more" if estimate.cost.out_of_memory else f"{estimate.cost.memory / 1e6:,.0f} MB, more"
    return (
        f"memory: {part.kind} {part.model} needs {needed} than {there}. What helps: {' or '.join(settings)}"
    )


def _smaller_batch(kind: str, job: Job) -> str:
    if kind == "soft-targets":
        return f"soft_targets.batch_size={max(1, job.config.soft_targets.batch_size // 2)}"
    section = SECTIONS[kind]
    settings = getattr(job.config, section)
    parts = 2 * settings.optim.accumulate
    if settings.batch_size % parts:
        return f"{section}.batch_size={max(1, settings.batch_size // 2)}"
    return f"{section}.optim.accumulate={parts}"


def _time_advice(found: Sequence[Estimate]) -> Iterator[str]:
    total = _seconds(found)
    if total < LONG:
        return
    for estimate in found:
        yield from _teacher_advice(estimate, total)
    samples = len(found[0].part.job.data.train)
    fewer = _rounded_down(samples * TRIAL / total)
    if fewer >= max(e.cost.batch_size for e in found):
        yield f"a trial of about {duration(TRIAL)}: dataset.train_samples={fewer} (now {samples})"


def _teacher_advice(estimate: Estimate, total: float) -> Iterator[str]:
    """What to do where the teacher's answers take more than half of the `total` seconds."""
    part, cost, config = estimate.part, estimate.cost, estimate.part.job.config
    views = part.job.identity.teacher_views
    fewer = max(1, views // FEWER)
    different = part.job.teacher_views.different  # of views that repeat others nothing is asked
    storing = estimate.count * (cost.seconds or 0)
    asking = estimate.count * cost.steps * cost.asking_seconds
    could_store = config.mixing.kind == "none" and not config.loss.weighs_features
    if part.kind == "soft-targets" and storing > total / 2 and views > 1:
        then = storing * different(fewer) / different(views)
        yield (
            f"time: soft targets take {storing / total:.0%} of it. What helps: soft_targets.views={fewer}"
            f" (now {views}), {duration(then)} instead of {duration(storing)}"
        )
    if part.kind == "student" and asking > total / 2 and could_store:
        yield (
            f"time: asking the live teacher takes {asking / total:.0%} of it. What helps: soft_targets=stored"
            f" soft_targets.views={fewer}: it is asked once about each view, and not in every one of"
            f" {config.student.epochs} epochs"
        )


def _rounded_down(number: float) -> int:
    """Two digits and zeros: 12,345 -> 12,000."""
    unit = 10 ** max(0, len(str(int(number))) - 2)
    return int(number) // unit * unit
