"""Teacher and student see images of their own: other sizes, grey, clean; and the student works outside of kdistill."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from kdistill import distill, evaluate, load_config, load_network, make_soft_targets, run, train_teacher
from kdistill.config.schema import Config
from kdistill.identity import key_of
from kdistill.stages.job import Job
from tests.conftest import TINY

Tiny = Callable[..., Config]

COLOUR = ("dataset.channels=3",)
GREY_STUDENT = (*COLOUR, "student.input.grey=true")


def about(folder: Path) -> dict:
    return json.loads((folder / "model.json").read_text())


def test_a_colour_teacher_and_a_grey_student(tiny: Tiny) -> None:
    """The student has one channel and its own grey normalisation; the teacher keeps three."""
    config = tiny(*GREY_STUDENT)
    scores = run(config)
    teacher, student = about(train_teacher(config).folder), about(distill(config).folder)

    assert (teacher["channels"], student["channels"]) == (3, 1)
    assert teacher["image_size"] == student["image_size"] == [8, 8]
    assert student["mean"] == pytest.approx([np.dot([0.299, 0.587, 0.114], teacher["mean"])], abs=1e-4)
    assert scores["student"]["parameters"] < run(tiny(*COLOUR))["student"]["parameters"]


def test_a_larger_teacher_and_a_smaller_student(tiny: Tiny) -> None:
    """Each is built for its size, and shown the data's images at that size, also in eval."""
    config = tiny("teacher.input.size=12", "student.input.size=4")
    run(config)
    job = Job.open(config)
    folders = {"teacher": train_teacher(config).folder, "student": distill(config).folder}
    test = job.data.test
    (batch,) = test.batches(torch.arange(len(test)), len(test))
    with torch.no_grad():
        by_hand = {
            role: load_network(folder)(resized(batch.images, size)).argmax(1)
            for (role, folder), size in zip(folders.items(), (12, 4), strict=True)
        }
    scores = evaluate(config)

    assert [about(folder)["image_size"] for folder in folders.values()] == [[12, 12], [4, 4]]
    for role, guesses in by_hand.items():
        assert scores[role]["top1"] == pytest.approx((guesses == batch.labels).double().mean().item())


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Pillow's bilinear filter, image by image."""
    pictures = [
        Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BILINEAR) for image in images
    ]
    return torch.stack([torch.from_numpy(np.array(picture))[None] for picture in pictures])


def test_clean_against_augmented(tiny: Tiny) -> None:
    """A teacher that sees clean images is asked once for each; one logits row serves all views."""
    config = tiny("teacher.input.augment=false", "soft_targets.dtype=float32")
    train_teacher(config)
    stored = np.load(make_soft_targets(config).folder / "logits.npy")
    job = Job.open(config)
    (batch,) = job.data.train.batches(torch.arange(20), 20)
    with torch.no_grad():
        expected = load_network(train_teacher(config).folder)(batch.images)
    live = tiny("teacher.input.augment=false", "soft_targets.dtype=float32", "soft_targets=live")
    a, b = (load_network(distill(c).folder).state_dict() for c in (config, live))

    assert stored.shape == (1, len(job.data.train), 4)
    np.testing.assert_allclose(stored[0, :20], expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_clean_student(tiny: Tiny) -> None:
    """student.input.augment=false: it sees clean images while the teacher sees augmented ones, view by view."""
    config = tiny("student.input.augment=false")
    run(config)
    stored = np.load(make_soft_targets(config).folder / "logits.npy")
    job = Job.open(config)
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    index = torch.tensor([3])

    assert stored.shape[0] == 3
    assert torch.equal(job.student_views(images, index, 1), images)
    assert not torch.equal(job.teacher_views(images, index, 1), images)
    assert distill(config).folder != distill(tiny()).folder


KINDS = ("teacher", "soft_targets", "student", "finetuned")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("teacher.input.size=12", set(KINDS)),
        ("teacher.input.grey=true", set(KINDS)),
        ("teacher.input.augment=false", {"soft_targets", "student", "finetuned"}),
        ("student.input.size=4", {"student", "finetuned"}),
        ("student.input.grey=true", {"student", "finetuned"}),
        ("student.input.augment=false", {"student", "finetuned"}),
        ("student.input.size=null", set()),
    ],
)
def test_which_keys_an_input_changes(tiny: Tiny, override: str, expected: set[str]) -> None:
    """The teacher's input is the teacher's; whether it is shown clean images only counts while it teaches."""
    before, after = (Job.open(tiny(*COLOUR, *words)).identity for words in ((), (override,)))

    assert {k for k in KINDS if key_of(getattr(before, k)) != key_of(getattr(after, k))} == expected


def imported(folder: Path) -> ModuleType:
    """The student's `use.py`, as a user without kdistill runs it."""
    import sys

    spec = importlib.util.spec_from_file_location("use", folder / "use.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    sys.modules.pop("architecture", None)
    try:
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("architecture", None)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("student.input.grey=true",),
        ("student.input.size=12",),
        ("student.input.size=12", "student.input.grey=true"),
    ],
)
def test_the_student_s_folder_takes_an_original_image(tmp_path: Path, words: tuple[str, ...]) -> None:
    """use.py makes of a photo what training made of it: grey and small; the logits are close to eval's."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for k, name in enumerate(("cold", "warm")):
        (root / name).mkdir(parents=True)
        for i in range(16):
            colours = np.array([[30, 60, 200], [200, 90, 20]][k]) + rng.integers(-25, 25, (5, 4, 3))
            picture = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
            picture.resize((40, 32), Image.Resampling.BICUBIC).save(root / name / f"{i}.png")
    config = load_config(
        "dataset=image_folder", f"dataset.root={root}", "dataset.image_size=24", "dataset.channels=3",
        "dataset.augment.crop=0", "dataset.validation=0.2", "dataset.test=0.2",
        *[word for word in TINY if not word.startswith("dataset")], f"runs={tmp_path / 'runs'}",
        "student.batch_size=4", "student.epochs=4", *words,
    )  # fmt: skip
    train_teacher(config)
    folder = distill(config).folder
    job = Job.open(config)
    network, use = job.load(distill(config)).eval(), imported(folder)
    size = 12 if "student.input.size=12" in words else 24
    split = job.data.train
    (batch,) = split.batches(torch.arange(len(split)), len(split))
    with torch.no_grad():
        ours = network(batch.images)
        theirs = torch.cat([use.load()(use.preprocess(Image.open(root / name))) for name in split.ids])

    assert about(folder)["channels"] == (1 if "student.input.grey=true" in words else 3)
    assert about(folder)["image_size"] == [size, size]
    assert (ours.argmax(1) == theirs.argmax(1)).double().mean() > 0.9
    # resized once, not twice: not the same pixels
    tolerance = 1e-4 if not words else 0.05 * ours.abs().max().item()
    assert (ours - theirs).abs().max().item() <= tolerance
