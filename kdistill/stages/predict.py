"""What a model says of the test split, kept as an artifact: it is asked once."""

from __future__ import annotations

import time

import torch

from kdistill.artifacts import Artifact, Work
from kdistill.data import Split
from kdistill.files import sync
from kdistill.identity import key_of
from kdistill.predictions import FILE, Predictions
from kdistill.stages.subjects import Subject


def predict(subject: Subject) -> Artifact:
    """The model's predictions on the test split, made if they are not there yet.

    Its manifest has `temperature`, fitted to the validation split: what logits are divided by to be calibrated.
    None where there is no best one, or the task has none. Raises `DamagedArtifact` for a damaged model, asked or not.
    """
    job = subject.job
    for artifact in subject.artifacts.values():
        for name in artifact.manifest["files"]:
            artifact.file(name)
    parts = job.identity.predictions(subject.made_from, subject.role, job.data.test_fingerprint)
    return job.store.obtain(
        "predictions",
        subject.label,
        parts,
        key_of(parts),
        lambda work: _ask(subject, work),
        parents=subject.artifacts,
        force=job.forced("eval"),
        together=True,
    )


def _ask(subject: Subject, work: Work) -> None:
    job, clock = subject.job, time.perf_counter()
    found = _answers(subject, job.data.test)
    fit = job.task.temperature
    temperature = None
    if fit is not None:
        held_out = _answers(subject, job.data.validation)
        temperature = fit(held_out.logits, held_out.labels)
    found.save(work.folder / FILE)
    sync(work.folder)
    work.payload = FILE
    work.about = {
        "model": subject.title,
        "dataset": job.config.dataset.name,
        "rows": len(found.logits),
        "temperature": temperature,
        "seconds": round(time.perf_counter() - clock, 2),
        "command": job.command(job.config.stage),
    }


@torch.no_grad()
def _answers(subject: Subject, split: Split) -> Predictions:
    logits, indices = subject.rows(split.to(subject.job.engine.device))
    ids = split.ids
    return Predictions(
        logits=logits.clone(),
        labels=split.labels.cpu()[indices],
        ids=[ids[i] for i in indices.tolist()],
        classes=list(subject.job.data.classes),
    )
