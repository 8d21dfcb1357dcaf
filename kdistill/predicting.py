"""`kdistill predict`: what a trained network, or its exported file, says of images."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill.config import compose
from kdistill.console import complain, say, show_table
from kdistill.data.decoding import EXTENSIONS, ImageFiles, files_under
from kdistill.data.filesplit import FileSplit
from kdistill.errors import ConfigError, DataError, ModelError, did_you_mean
from kdistill.exports import FORMATS
from kdistill.interface import Interface
from kdistill.records import Table
from kdistill.stages.job import Job
from kdistill.stages.networks import interface_of, stored_network

#: images that are held at the same time
BATCH_SIZE = 64
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prediction:
    """What is said of an image: classes with probabilities, the likeliest first, or named values; or why nothing is."""

    image: str
    answers: list[tuple[str, float]]
    error: str = ""


def main(words: Sequence[str]) -> int:
    """Print what the network says of the images that `words` name; 1 if some could not be read, else 0.

    Words with `=` are overrides as for `kdistill export`. Raises `ConfigError`, `DataError` for images that are not
    there, `ModelError` for a network that is not there or takes none, `MissingArtifact` for a student not made yet.
    """
    names = [word for word in words if "=" not in word]
    if not names:
        raise ConfigError(
            "predict needs an image or a folder of images: kdistill predict IMAGE|FOLDER [model=PATH]"
        )
    images = [image for name in names for image in _images(name)]
    plan = compose.plan("export", [word for word in words if "=" in word])
    job = Job.open(plan.configs[0], compose.users_words(plan.jobs[0]))
    network, interface = _network(job)
    settings = job.config.predict
    unread: list[str] = []
    found = predictions(images, network, interface, settings.top, job.config.device.workers)
    WRITERS[settings.format](_reporting(found, unread), interface)
    return 1 if unread else 0


def _reporting(found: Iterable[Prediction], unread: list[str]) -> Iterator[Prediction]:
    """Pass predictions on; what could not be read is told on stderr and put into `unread`."""
    for prediction in found:
        if prediction.error:
            complain(f"cannot read {prediction.image}: {prediction.error}")
            unread.append(prediction.image)
        yield prediction


def predictions(
    images: Sequence[str], network: Network, interface: Interface, top: int, workers: int = 0
) -> Iterator[Prediction]:
    """What the network says of each image file, in their order, read in batches by so many worker processes.

    Raises `ModelError` for a network that takes no images.
    """
    if interface.input != "image":
        raise ModelError(
            f"this network takes rows of {interface.channels} numbers and no images; `python use.py` in the student's"
            " folder takes a row"
        )
    channels, (size, _) = interface.source
    files = ImageFiles("", images, size, channels)
    split = FileSplit(files, torch.zeros(len(images)), skip_corrupt=True, workers=workers)
    for positions, pixels, failures in split.decoded(torch.arange(len(images)).split(BATCH_SIZE)):
        outputs = network(interface.view(pixels)) if positions else torch.empty(0, len(interface.classes))
        answers = dict(zip(positions, interface.answers(outputs, top), strict=True))
        errors = dict(failures)
        for index in sorted([*positions, *errors]):
            yield Prediction(images[index], answers.get(index, []), errors.get(index, ""))


def _images(name: str) -> list[str]:
    """The image files that a word names; raises `DataError`."""
    path = Path(name).expanduser()
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{name}: there is no such image or folder.{did_you_mean(path.name, beside)}")
    found = sorted(map(str, files_under(path)))
    if not found:
        raise DataError(f"{name}: there are no images in this folder ({' '.join(EXTENSIONS)})")
    return found


# --- the network ---


def _network(job: Job) -> tuple[Network, Interface]:
    """The network that the job's `model` names, or its student, at work: what it takes -> outputs `[N, K]`."""
    file = _exported_file(job.config.model) if job.config.model else None
    if file is not None:
        suffixes = {Path(form.file).suffix: form for form in FORMATS.values()}
        if file.suffix not in suffixes:
            raise ModelError(
                f"model={file}: expected a folder, or a file that ends in {' or '.join(suffixes)}"
            )
        exported = suffixes[file.suffix].read(file)
        return exported, exported.interface
    artifact = job.chosen_network()
    network = stored_network(artifact).eval().to(job.engine.device)

    @torch.inference_mode()
    def outputs(inputs: Tensor) -> Tensor:
        with job.engine.autocast():
            logits: Tensor = network(inputs.to(job.engine.device))
        return logits.float().cpu()

    return outputs, interface_of(artifact)


def _exported_file(name: str) -> Path | None:
    """The exported file of this name, or in the folder of this name; None for the folder of a trained network.

    Raises `ModelError` where there is nothing.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(
            f"model={name}: there is no such file or folder.{did_you_mean(path.name, beside)} Expected an exported"
            " file, or the folder of a trained network, such as runs/artifacts/student/NAME"
        )
    return next((path / form.file for form in FORMATS.values() if (path / form.file).is_file()), None)


# --- what is written ---


def _write_table(found: Iterable[Prediction], interface: Interface) -> None:
    """A line for each image that could be read."""
    read = [prediction for prediction in found if not prediction.error]
    if not read:
        return
    if interface.task == "regression":
        columns = list(interface.classes)
        rows = [[_number(value) for _, value in p.answers] for p in read]
    else:
        columns = [text for place in range(len(read[0].answers)) for text in (str(place + 1), "%")]
        rows = [[text for name, share in p.answers for text in (name, f"{100 * share:.2f}")] for p in read]
    cells: list[list[object]] = [[p.image, *row] for p, row in zip(read, rows, strict=True)]
    show_table(Table("", ["image", *columns], cells))


def _write_csv(found: Iterable[Prediction], interface: Interface) -> None:
    """For each image a line with its values, or a line for each of its likeliest classes."""
    write = csv.writer(sys.stdout, lineterminator="\n").writerow
    if interface.task == "regression":
        write(["image", *interface.classes])
        for prediction in found:
            if not prediction.error:
                write([prediction.image, *(_number(value) for _, value in prediction.answers)])
        return
    write(["image", "rank", "class", "probability"])
    for prediction in found:
        for rank, (name, probability) in enumerate(prediction.answers, 1):
            write([prediction.image, rank, name, _number(probability)])


def _write_json(found: Iterable[Prediction], interface: Interface) -> None:
    """A list with an object for each image, on a line of its own."""
    start = "["
    for prediction in found:
        sys.stdout.write(f"{start}\n  {json.dumps(_entry(prediction, interface), ensure_ascii=False)}")
        start = ","
    say("\n]")


def _entry(prediction: Prediction, interface: Interface) -> dict[str, Any]:
    if prediction.error:
        return {"image": prediction.image, "error": prediction.error}
    answers = [(name, float(_number(value))) for name, value in prediction.answers]
    if interface.task == "regression":
        return {"image": prediction.image, "values": dict(answers)}
    classes = [{"class": name, "probability": probability} for name, probability in answers]
    return {"image": prediction.image, "classes": classes}


def _number(value: float) -> str:
    return f"{value:.6g}"


WRITERS = {"table": _write_table, "csv": _write_csv, "json": _write_json}
