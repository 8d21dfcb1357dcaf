"""Stage 2: store the teacher's logits of every view of every training sample.

Raw logits are stored, not probabilities, so that temperature, weights and the loss stay free: all
students of a sweep read the same file.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
import torch

from kdistill.artifacts import Artifact, Work
from kdistill.data import Batch
from kdistill.errors import Interrupted, RunError
from kdistill.files import sync
from kdistill.identity import key_of
from kdistill.records import Progress
from kdistill.stages.job import Job
from kdistill.stopping import stop_requests
from kdistill.teachers import LiveTeacher

log = logging.getLogger("kdistill")
CHECKPOINT_SECONDS = 30
STOPPED = "stopped; the state is saved: give the same command again to go on"


def make_soft_targets(job: Job) -> Artifact:
    """Return the stored soft targets, running the teacher if they are not there yet.

    Raises `MissingArtifact` when the teacher is not trained.
    """
    teacher = job.require_teacher()
    parts = job.identity.soft_targets
    return job.store.obtain(
        "soft-targets",
        job.label("teacher"),
        parts,
        key_of(parts),
        lambda work: _generate(job, teacher, work),
        parents={"teacher": teacher},
        force=job.forced("soft-targets"),
    )


def _generate(job: Job, teacher: Artifact, work: Work) -> None:
    settings = job.config.soft_targets
    split, views = job.data.train.to(job.engine.device), job.identity.views
    signal = LiveTeacher(job.load("teacher", teacher), settings.batch_size, job.engine)
    shape = (views, len(split), len(job.data.classes))
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
            for batch in split.batches(torch.arange(first, len(split)), settings.batch_size):
                images = job.student_views(batch.images, batch.indices, view)
                rows = signal(Batch(images, batch.labels, batch.indices), view)
                indices = batch.indices.cpu().numpy()
                logits[view, indices] = _stored(rows, settings.dtype)
                bar.advance(len(rows), lambda: f"view {view + 1}/{views}", steps=len(rows))  # noqa: B023
                if stop or time.monotonic() - last_saved > CHECKPOINT_SECONDS:
                    save(view, int(indices[-1]) + 1)
                if stop:
                    raise Interrupted(STOPPED)
            save(view + 1, 0)
            if stop:
                raise Interrupted(STOPPED)
            log.info("soft targets view %d/%d  %s images/s", view + 1, views, f"{bar.rate:,.0f}")

    sync(path)
    work.payload = "logits.npy"
    work.about = {
        "model": job.config.teacher.name,
        "dataset": job.config.dataset.name,
        "shape": list(shape),
        "dtype": settings.dtype,
        "seconds": round(state["seconds"], 2),
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
