"""The student alone in a file of another format, which is run on the test split before it gets its name."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from kdistill.artifacts import Artifact
from kdistill.config.schema import Export
from kdistill.data import Split, slices
from kdistill.data.splits import batches_of
from kdistill.errors import DataError, RunError
from kdistill.exports import FORMATS
from kdistill.footprint import latencies
from kdistill.identity import export_parts, key_of
from kdistill.models.classifier import View
from kdistill.partial import Work, discard
from kdistill.records import Table
from kdistill.stages.job import Job
from kdistill.stages.networks import interface_of
from kdistill.tasks import Task

BATCH_SIZE = 256
#: a time is the median of so many runs
RUNS = 50
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Trial:
    """Outputs `[N, K]` of a network and of its file on the test split, the labels, and ms for the first image."""

    expected: Tensor
    outputs: Tensor
    labels: Tensor
    torch_ms: float
    file_ms: float

    @property
    def difference(self) -> float:
        """The largest between two outputs that should be equal."""
        return (self.outputs - self.expected).abs().max().item()


def export(job: Job) -> Artifact:
    """Return the network's file, making it if it is not there; where anything fails, nothing of it is left.

    Raises what `check_export` raises, and `RunError` for a file that gives other outputs than the network.
    """
    network = check_export(job)
    parts = export_parts(network.manifest["key"], job.config.export, job.data.test_fingerprint)
    return job.store.obtain(
        "export",
        network.manifest["model"].replace("/", "-"),
        parts,
        key_of(parts),
        lambda work: _make(job, network, work),
        parents={network.manifest["kind"]: network},
        force=job.forced("export"),
    )


def check_export(job: Job) -> Artifact:
    """The folder of the network that is exported.

    Raises `ConfigError` for a missing package, `MissingArtifact` or `ModelError` where there is no network, and
    `DataError` where the test split is of other classes.
    """
    FORMATS[job.config.export.format].check()
    network = job.chosen_network()
    interface, data = interface_of(network), job.data
    if (interface.task, interface.classes) != (data.task, data.classes):
        raise DataError(
            f"{network.folder} was trained on {network.manifest['dataset']}, and {job.config.dataset.name} has other"
            " classes: its test split cannot judge this network. Choose the network's data set with dataset=NAME"
        )
    _ = data.test  # found missing or damaged now
    return network


def _make(job: Job, network: Artifact, work: Work) -> None:
    try:
        _write(job, network, work)
    except BaseException:
        discard(work.folder)
        raise


def _write(job: Job, artifact: Artifact, work: Work) -> None:
    """The file, and in the manifest what it gave beside the network that it was made from."""
    started, settings = time.perf_counter(), job.config.export
    form = FORMATS[settings.format]
    network = job.read(artifact).eval()
    view, network.view = network.view, None  # the file takes what the network is shown
    path = work.folder / form.file
    notes = {"network": artifact.folder.name, "kdistill": version("kdistill")}
    form.write(network, interface_of(artifact), notes, path)
    trial = _trial(network, form.read(path), job.data.test, view)
    if not trial.difference <= settings.tolerance:
        raise RunError(_refusal(trial, settings))
    work.payload = form.file
    work.about = {
        "model": artifact.manifest["model"],
        "dataset": job.config.dataset.name,
        "parameters": artifact.manifest["parameters"],
        "format": settings.format,
        "packages": form.versions(),
        "torch_bytes": artifact.payload_bytes,
        **_results(job.task, trial),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _results(task: Task, trial: Trial) -> dict[str, Any]:
    """What a manifest says of a trial."""
    return {
        "test": task.summarise(trial.outputs, trial.labels, trial.expected),
        "torch_test": task.summarise(trial.expected, trial.labels),
        "images": len(trial.labels),
        "difference": trial.difference,
        "ms": trial.file_ms,
        "torch_ms": trial.torch_ms,
        "threads": torch.get_num_threads(),
    }


@torch.inference_mode()
def _trial(network: Network, file: Network, split: Split, view: View | None) -> Trial:
    """Both on the whole split, which is shown to them through `view`."""
    order = torch.arange(len(split))
    parts = [order[:1], *slices(order[1:], BATCH_SIZE)]  # batches of other sizes, and one of a single image
    expected, outputs, labels = [], [], []
    for batch in batches_of(split, parts):
        inputs = batch.images if view is None else view(batch.images)
        expected.append(network(inputs))
        outputs.append(file(inputs))
        labels.append(batch.labels)
    one = inputs[:1]
    return Trial(
        torch.cat(expected),
        torch.cat(outputs),
        torch.cat(labels),
        torch_ms=_milliseconds(network, one),
        file_ms=_milliseconds(file, one),
    )


def _milliseconds(network: Network, one: Tensor) -> float:
    return round(1000 * statistics.median(latencies(network, one, RUNS)), 4)


def _refusal(trial: Trial, settings: Export) -> str:
    return (
        f"the {settings.format} file gives other outputs than the network: they differ by up to {trial.difference:.2g},"
        f" more than export.tolerance={settings.tolerance:g} (largest output: {trial.expected.abs().max():.3g})."
        " Nothing of it is kept; a larger export.tolerance accepts it"
    )


def table(task: Task, artifact: Artifact) -> Table:
    """The file beside the network that it was made from, for a reader."""
    about = artifact.manifest
    columns = [c for c in task.columns if c.key in about["test"]]
    sources = [
        ("PyTorch", about["torch_test"], about["torch_bytes"], about["torch_ms"]),
        (artifact.manifest["format"], about["test"], artifact.payload_bytes, about["ms"]),
    ]
    rows: list[list[object]] = [
        [
            name,
            *(c.text(scores[c.key]) if c.key in scores else "-" for c in columns),
            f"{size / 1000:,.1f}",
            f"{milliseconds:.3f}",
        ]
        for name, scores, size, milliseconds in sources
    ]
    threads = f"{about['threads']} CPU {'thread' if about['threads'] == 1 else 'threads'}"
    return Table(
        title=f"{about['model']}, {about['dataset']}: {about['images']:,} test images",
        columns=["", *(c.heading for c in columns), "file kB", "ms"],
        rows=rows,
        note=f"largest difference of two outputs: {about['difference']:.1e}. ms: one image, {threads}",
    )
