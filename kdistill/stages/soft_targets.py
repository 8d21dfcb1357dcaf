"""Stage 2: store the teacher's logits of every view of every training sample.

Raw logits are stored, not probabilities, so that temperature, weights and the loss stay free: all
students of a sweep read the same file.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kdistill.artifacts import Artifact, Work
from kdistill.config.models import FileParams
from kdistill.data import Split
from kdistill.errors import ConfigError, Interrupted, RunError
from kdistill.files import sync
from kdistill.identity import key_of
from kdistill.outside import read_outputs
from kdistill.records import Progress
from kdistill.stages.job import Job
from kdistill.stages.signals import live_teacher
from kdistill.stopping import stop_requests
from kdistill.teachers import Live

log = logging.getLogger("kdistill")
CHECKPOINT_SECONDS = 30
STOPPED = "stopped; the state is saved: give the same command again to go on"


def make_soft_targets(job: Job) -> Artifact:
    """Return the stored soft targets, running the teacher if they are not there yet.

    Of an ensemble each member is a job of its own (`job.teachers`). Raises `MissingArtifact` when the teacher
    is not trained.
    """
    parts = job.identity.soft_targets
    teacher = None if job.identity.is_file else job.require_teacher()
    make = (
        (lambda work: _import(job, work)) if teacher is None else (lambda work: _generate(job, teacher, work))
    )
    return job.store.obtain(
        "soft-targets",
        job.label("teacher"),
        parts,
        key_of(parts),
        make,
        parents={"teacher": teacher} if teacher else {},
        force=job.forced("soft-targets"),
    )


def _generate(job: Job, teacher: Artifact, work: Work) -> None:
    settings = job.config.soft_targets
    split, views = job.transfer_set.to(job.engine.device), job.identity.teacher_views
    signal = live_teacher(job, teacher)
    outputs = signal.logits(job.first_images(1)).shape[1]  # perhaps of other classes
    shape = (views, len(split), outputs)
    path = work.folder / "logits.npy"

    saved = work.load_checkpoint() if path.exists() else None
    logits = _open_logits(path, shape, settings.dtype, new=saved is None)
    state = saved or {"view": 0, "sample": 0, "seconds": 0.0}
    if saved:
        log.info(
            "soft targets: going on at view %d of %d, sample %d", state["view"] + 1, views, state["sample"]
        )
    clock = last_saved = time.monotonic()

    def save(view: int, sample: int) -> None:
        nonlocal clock, last_saved
        logits.flush()
        now = time.monotonic()
        state.update(view=view, sample=sample, seconds=state["seconds"] + now - clock)
        clock = last_saved = now
        work.save_checkpoint(state)

    with stop_requests() as stop, Progress("soft targets", views * len(split), _done(state, split)) as bar:
        for view in range(state["view"], views):
            first = state["sample"] if view == state["view"] else 0
            for indices, rows in answers(job, signal, split, view, first):
                logits[view, indices] = rows
                bar.advance(len(rows), lambda: f"view {view + 1}/{views}", steps=len(rows))  # noqa: B023
                if stop or time.monotonic() - last_saved > CHECKPOINT_SECONDS:
                    save(view, int(indices[-1]) + 1)
                if stop:
                    raise Interrupted(STOPPED)
            save(view + 1, 0)
            if stop:
                raise Interrupted(STOPPED)
            log.info("soft targets view %d/%d  %s images/s", view + 1, views, f"{bar.rate:,.0f}")

    _describe(job, work, shape, state["seconds"])


def answers(
    job: Job, signal: Live, split: Split, view: int, first: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the teacher says of a view of the samples from `first` on: batches of positions `[n]`, logits `[n, K]`."""
    settings = job.config.soft_targets
    for batch in split.batches(torch.arange(first, len(split)), settings.batch_size):
        rows = signal.logits(job.teacher_views(batch.images, batch.indices, view))
        yield batch.indices.cpu().numpy(), _stored(rows, settings.dtype)


def read_file(job: Job) -> torch.Tensor:
    """The logits `[n, K]` of a teacher that is a file, for the transfer set; raises `DataError`.

    For regression the file holds values in their own units.
    """
    teacher, task, data = job.config.teacher, job.task.name, job.data
    values = FileParams.model_validate(teacher.params).values
    if values == "probabilities" and task != "classification":
        raise ConfigError(
            f"teacher.params.values=probabilities is for classification, but {job.config.dataset.name} is for {task};"
            " give logits: teacher.params.values=logits"
        )
    path = Path(teacher.weights or "").expanduser()
    outputs = read_outputs(path, values, job.transfer_set.ids, data.classes)
    if data.target_mean is None or data.target_std is None:
        return outputs
    return (outputs - torch.tensor(data.target_mean)) / torch.tensor(data.target_std)  # as the labels are


def _import(job: Job, work: Work) -> None:
    """Take the teacher's outputs from a file of the user's, one view of each sample."""
    clock = time.monotonic()
    rows = read_file(job)
    logits = _stored(rows, job.config.soft_targets.dtype)[None]
    np.save(work.folder / "logits.npy", logits)
    log.info("soft targets: %s samples from %s", f"{len(rows):,}", job.config.teacher.weights)
    _describe(job, work, logits.shape, time.monotonic() - clock)


def _describe(job: Job, work: Work, shape: tuple[int, ...], seconds: float) -> None:
    sync(work.folder / "logits.npy")
    work.payload = "logits.npy"
    work.about = {
        "model": job.config.teacher.name if job.previous is None else job.previous.config.student.name,
        "dataset": job.config.dataset.name,
        "shape": list(shape),
        "dtype": job.config.soft_targets.dtype,
        "seconds": round(seconds, 2),
        "command": job.command(job.config.stage),
    }


def _done(state: dict[str, int], split: object) -> int:
    return state["view"] * len(split) + state["sample"]  # type: ignore[arg-type]


def _open_logits(path: Path, shape: tuple[int, ...], dtype: str, *, new: bool) -> np.memmap:
    """The file of logits, memory-mapped; its space is reserved first, so that a full disk shows at once."""
    if not new:
        return np.lib.format.open_memmap(path, mode="r+")
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return mapped


def _stored(rows: torch.Tensor, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # looked for on the next line
        stored = rows.cpu().numpy().astype(dtype)
    if not np.isfinite(stored).all():
        if torch.isfinite(rows).all():
            raise RunError(
                f"the teacher's logits reach {rows.abs().max().item():.3g}, too large for float16;"
                " set soft_targets.dtype=float32"
            )
        raise RunError(
            "the teacher gives logits that are not finite; train it again or with device.precision=fp32"
        )
    return stored
