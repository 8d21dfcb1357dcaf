"""Stage 2: store the teacher's logits of every view of every training sample.

Logits are stored, not probabilities, so that temperature, weights and the loss stay free: all students of a
sweep read the same file. `kdistill.stored` is its format.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

from kdistill import ranks
from kdistill.artifacts import Artifact, Work
from kdistill.config.models import FileParams
from kdistill.errors import ConfigError, Interrupted, StorageError
from kdistill.files import free_bytes, size_text
from kdistill.identity import key_of
from kdistill.outside import read_outputs
from kdistill.records import Progress
from kdistill.shards import Shard, files_of
from kdistill.stages.answers import answers
from kdistill.stages.job import Job
from kdistill.stages.signals import count_outputs, live_teacher
from kdistill.stopping import stop_requests
from kdistill.stored import AllLogits, Layout, Writer, layout_of
from kdistill.teachers import Live

log = logging.getLogger("kdistill")
CHECKPOINT_SECONDS = 30
#: files above this size are announced
LARGE_BYTES = 10**9
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
        together=teacher is not None,
    )


def check_soft_targets(teachers: Sequence[Job]) -> None:
    """Refuse now what could not be stored of these teachers, trained already or not.

    Raises `ConfigError` for a `top_k` that the task or a teacher does not allow, and `StorageError` where the disk
    has not enough space for all of them.
    """
    missing = 0
    for job in teachers:
        key = key_of(
            job.identity.soft_targets
        )  # first: a teacher brought along that is not there says so here
        layout = layout_for(job, count_outputs(job, job.find_teacher()))
        # what a cut-off run has begun has its space already
        if job.store.find("soft-targets", key) is None and not job.store.is_begun("soft-targets", key):
            missing += layout.bytes
            _check_space(job, layout, missing)


def layout_for(job: Job, outputs: int) -> Layout:
    """How the soft targets of a teacher with so many outputs are stored; raises `ConfigError`."""
    settings = job.config.soft_targets
    if settings.top_k is not None and job.task.name != "classification":
        raise ConfigError(
            f"soft_targets.top_k={settings.top_k} is for classification, but {job.config.dataset.name} is for"
            f" {job.task.name}; take it out"
        )
    shape = (job.identity.teacher_views, len(job.transfer_set), outputs)
    return layout_of({"shape": shape, "dtype": settings.dtype, "top_k": settings.top_k})


def _check_space(job: Job, layout: Layout, needed: int) -> None:
    """Raise `StorageError`, with the settings that help, where less than `needed` bytes are free."""
    free = free_bytes(job.store.root)
    if needed <= free:
        return
    views, samples, classes = layout.shape
    smaller = []
    if layout.dtype == "float32":
        smaller.append("soft_targets.dtype=float16")
    if isinstance(layout, AllLogits) and job.task.name == "classification" and classes > 10:
        smaller.append("soft_targets.top_k=10")
    if views > 1:
        smaller.append(f"soft_targets.views={views // 2}")
    fewer = f"make them smaller with {' or '.join(smaller)}, " if smaller else ""
    raise StorageError(
        f"the soft targets need {size_text(needed)} (views x samples x outputs: {views:,} x {samples:,} x {classes:,}),"
        f" but {size_text(free)} are free in {job.store.root}: {fewer}free some space (`kdistill artifacts gc`)"
        " or choose another folder with runs=DIR"
    )


def _create(job: Job, path: Path, layout: Layout) -> Writer:
    # what was cut off before its first checkpoint takes up space; what is done is done in this file alone
    for old in (path, *files_of(path.parent)):
        old.unlink(missing_ok=True)
    _check_space(job, layout, layout.bytes)
    if layout.bytes > LARGE_BYTES:
        log.info("soft targets: %s will be written to %s", size_text(layout.bytes), path.parent)
    return Writer.create(path, layout)


def _generate(job: Job, teacher: Artifact, work: Work) -> None:
    """Ask the teacher about all views of all samples; of several ranks each writes its shard of the one file."""
    signal = live_teacher(job, teacher)
    outputs = signal.logits(job.first_images(1)).shape[1]  # perhaps of other classes
    layout = layout_for(job, outputs)
    path = work.shared / layout.file
    if ranks.is_main() and not (path.exists() and files_of(work.shared)):
        _create(job, path, layout)
    shard = Shard.cut(work.shared, layout.shape[1])
    _fill(job, signal, shard, Writer(path, layout))
    ranks.barrier()  # until the rows of all are on the disk
    _describe(job, work, layout, shard.seconds)


def _fill(job: Job, signal: Live, shard: Shard, writer: Writer) -> None:
    """Write what the teacher says of this rank's samples; all ranks stop after the same step."""
    before, total, mine = int(shard.done.sum()), len(shard.done), len(shard.mine)
    finished, done, saved = 0, before, time.monotonic()
    if before:
        log.info("soft targets: going on at sample %s of %s", f"{min(before + 1, total):,}", f"{total:,}")

    def save() -> None:
        nonlocal saved
        writer.flush()
        shard.save()
        saved = time.monotonic()

    with stop_requests() as stop, Progress("soft targets", total, before) as bar:
        for seen, logits in chain.from_iterable(answers(job, signal, shard.mine, stop)):
            for view, which in enumerate(seen.which):
                if len(which):  # else none of the images can be decoded
                    writer.write(view, seen.indices, logits[which])
            shard.done[seen.part] = True
            finished, known = finished + len(seen.part), done
            done = before + finished * (total - before) // mine  # as if the other ranks kept up
            images, status = seen.which.numel() * ranks.size(), f"{done:,}/{total:,} samples"
            bar.advance(images, lambda: status, steps=done - known)  # noqa: B023
            tenths = 10 * done // total
            is_reached = tenths > 10 * known // total
            if is_reached or time.monotonic() - saved > CHECKPOINT_SECONDS:
                save()
            if is_reached:
                log.info("soft targets %d%%  %s images/s", 10 * tenths, f"{bar.rate:,.0f}")
        save()
        if ranks.agree(bool(stop)):
            raise Interrupted(STOPPED)


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
    logits = read_file(job)
    layout = layout_for(job, logits.shape[1])
    writer = _create(job, work.folder / layout.file, layout)
    writer.write(0, torch.arange(len(logits)), logits)
    writer.flush()
    log.info("soft targets: %s samples from %s", f"{len(logits):,}", job.config.teacher.weights)
    _describe(job, work, layout, time.monotonic() - clock)


def _describe(job: Job, work: Work, layout: Layout, seconds: float) -> None:
    work.payload = layout.file
    work.about = {
        "model": job.config.teacher.name if job.previous is None else job.previous.config.student.name,
        "dataset": job.config.dataset.name,
        "shape": list(layout.shape),
        "dtype": layout.dtype,
        "top_k": job.config.soft_targets.top_k,
        "seconds": round(seconds, 2),
        "command": job.command(job.config.stage),
    }
