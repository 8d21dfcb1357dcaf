"""The test images on which teacher and student differ most, with what both say of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from kdistill.config.data import Dataset
from kdistill.data import Split, load_data
from kdistill.errors import DataError, KdistillError, first_line
from kdistill.predictions import Predictions
from kdistill.reporting.findings import Findings

#: images that are shown, answers to each, and pixels of an image's longer side
IMAGES, ANSWERS, PIXELS = 12, 4, 128
#: probabilities below it are not shown
LEAST = 0.005


@dataclass(frozen=True)
class Answer:
    """What both say of a class, or a value: as text, and as a share in percent where it is one."""

    name: str
    teacher: str
    student: str
    shares: tuple[float, float] | None


@dataclass(frozen=True)
class Case:
    """An image: a name, its label, a `data:` address, and the answers, the largest first."""

    name: str
    label: str
    image: str
    answers: Sequence[Answer]


def disagreements(findings: Findings) -> list[Case]:
    """The cases, those with the greatest difference first.

    None where there is no teacher, or the inputs are no images. Raises `DataError` where the data set is gone, or
    another one now.
    """
    theirs = findings.teacher.answers if findings.teacher else None
    own = findings.student.answers if findings.student else None
    if theirs is None or own is None or theirs.ids != own.ids:
        return []
    teacher, student = (_said(answers.logits, findings.task.name) for answers in (theirs, own))
    order = (
        distance(teacher, student, findings.task.name).argsort(descending=True, stable=True)[:IMAGES].tolist()
    )
    images = _images(findings, [own.ids[i] for i in order])
    if images is None:
        return []
    return [
        Case(
            own.ids[i],
            _label(own, i),
            image,
            _answers(own.classes, teacher[i], student[i], findings.task.name),
        )
        for i, image in zip(order, images, strict=True)
    ]


def distance(teacher: Tensor, student: Tensor, task: str) -> Tensor:
    """How far two models are apart on each sample, `[N]`, for what they say, `[N, K]`.

    Of distributions, half of the sum of differences (total variation, in [0, 1]); else the largest difference.
    """
    apart = (teacher - student).abs()
    return apart.sum(dim=1) / 2 if task == "classification" else apart.max(dim=1).values


def _said(logits: Tensor, task: str) -> Tensor:
    """Probabilities, or values in standard deviations, `[N, K]`."""
    wide = logits.double()
    return (
        wide.softmax(dim=1) if task == "classification" else wide.sigmoid() if task == "multilabel" else wide
    )


def _label(answers: Predictions, index: int) -> str:
    label = answers.labels[index]
    if not label.is_floating_point():
        return answers.classes[int(label)]
    if set(label.tolist()) <= {0.0, 1.0}:
        return ", ".join(answers.classes[k] for k in label.nonzero().flatten().tolist()) or "none"
    return ", ".join(
        f"{name} {value:.2f}" for name, value in zip(answers.classes, label.tolist(), strict=True)
    )


def _answers(classes: Sequence[str], teacher: Tensor, student: Tensor, task: str) -> list[Answer]:
    weight = (teacher - student).abs() if task == "multilabel" else torch.maximum(teacher, student)
    largest = weight.topk(min(ANSWERS, len(classes))).indices.tolist()
    pairs = [(classes[k], teacher[k].item(), student[k].item()) for k in largest]
    if task == "regression":
        return [Answer(name, f"{theirs:.2f}", f"{own:.2f}", None) for name, theirs, own in pairs]
    return [
        Answer(name, f"{100 * theirs:.0f} %", f"{100 * own:.0f} %", (100 * theirs, 100 * own))
        for name, theirs, own in pairs
        if max(theirs, own) >= LEAST
    ]


# --- images ---


def _images(findings: Findings, ids: Sequence[str]) -> list[str] | None:
    """The test images of these ids as `data:` addresses; None where the inputs are no images."""
    try:
        split = _test_split(findings)
        if split is None:
            return None
        places = {name: place for place, name in enumerate(split.ids)}
        if not set(ids) <= places.keys():
            raise DataError("the data set is another one than the models were judged on")
        wanted = torch.tensor([places[name] for name in ids])
        found: dict[int, Tensor] = {}
        for batch in split.batches(wanted, len(wanted)):
            found |= dict(zip(batch.indices.tolist(), batch.images, strict=True))
        return [_address(found[place]) for place in wanted.tolist()]
    except (KdistillError, OSError, ValidationError) as ex:
        raise DataError(first_line(ex)) from ex


def _test_split(findings: Findings) -> Split | None:
    if not findings.config:
        raise DataError("the run has kept no config, which says where they are")
    section = dict(findings.config["dataset"])
    nothing_new = {"download": False, "unlabelled": None}  # a page is made of what is there
    section |= {key: value for key, value in nothing_new.items() if key in section}
    device = findings.config["device"]
    index = f"{findings.config['runs']}/shards"
    data = load_data(TypeAdapter(Dataset).validate_python(section), cache=device.get("cache"), index=index)
    return data.test if data.is_images else None


def _address(pixels: Tensor) -> str:
    """An image `[C, H, W]`, uint8, as PNG in a `data:` address."""
    channels = pixels.cpu().numpy()
    image = Image.fromarray(channels[0] if len(channels) == 1 else channels.transpose(1, 2, 0))
    image.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
