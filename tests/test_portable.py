"""A student's folder runs in plain torch: another process, without kdistill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from kdistill.data import InputView
from kdistill.data.decoding import decode
from kdistill.models import (
    Classifier,
    ReusedHead,
    build_classifier,
    fit_state,
    load_state,
    rebuild,
    save_weights,
    write_portable,
)
from kdistill.models.projector import Projector
from tests.cases.networks import untrained

CLASSES = ["ankle boot", "bag", "coat", "dress", "pullover", "shirt"]


def make_student(
    folder: Path, name: str, params: dict[str, Any], channels: int, size: tuple[int, int], **about: Any
) -> Classifier:
    """A student with random weights and batch statistics, and everything that lies in its folder."""
    student = untrained(name, params, CLASSES, channels, size)
    if reused := about.get("reused_head"):
        head = torch.nn.Linear(reused["projector"]["teacher_channels"], len(CLASSES))
        student.net = ReusedHead(student.net, reused["layer"], Projector(**reused["projector"]), head)
    student(torch.randint(0, 256, (8, channels, *size), dtype=torch.uint8))  # moves the batch statistics
    save_weights(student.net, folder / "model.safetensors")
    write_portable(
        folder,
        name=name,
        params=params,
        classes=CLASSES,
        channels=channels,
        image_size=size,
        mean=student.mean.flatten().tolist(),
        std=student.std.flatten().tolist(),
        **about,
    )
    return student.eval()


def run_alone(folder: Path, *arguments: str) -> str:
    """Run Python in the folder, with a `kdistill` in the way that cannot be imported."""
    blocked = folder.parent / "blocked"
    (blocked / "kdistill").mkdir(parents=True, exist_ok=True)
    (blocked / "kdistill" / "__init__.py").write_text("raise ImportError('kdistill is not needed here')")
    environment = os.environ | {"PYTHONPATH": str(blocked), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOGITS = """
import json, sys, use
from PIL import Image
import torch
with torch.inference_mode():
    print(json.dumps(use.load()(use.preprocess(Image.open(sys.argv[1])))[0].tolist()))
"""


@pytest.mark.parametrize(
    ("name", "params", "channels", "size"),
    [
        ("resnet8", {"width": 4}, 3, (16, 12)),
        ("mlp", {"hidden": [8]}, 1, (8, 8)),
        ("wrn_16_1", {"width": 8}, 1, (32, 32)),
        ("torchvision/squeezenet1_1", {"dropout": 0.2}, 1, (32, 32)),
        ("timm/mobilenetv3_small_050", {}, 1, (32, 32)),
    ],
)
def test_the_folder_gives_the_students_logits(
    tmp_path: Path, name: str, params: dict[str, Any], channels: int, size: tuple[int, int]
) -> None:
    """Bit for bit: the same architecture, weights and normalisation, in a process without kdistill."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    folder = tmp_path / "student"
    folder.mkdir()
    student = make_student(folder, name, params, channels, size)
    images = torch.randint(0, 256, (1, channels, *size), dtype=torch.uint8)
    pixels = images[0].permute(1, 2, 0).squeeze(-1).numpy()
    Image.fromarray(pixels).save(folder / "image.png")
    with torch.inference_mode():
        expected = student(images)[0].tolist()
    assert json.loads(run_alone(folder, "-c", LOGITS, "image.png")) == expected
    assert (folder / "architecture.py").exists() == ("/" not in name)


def test_the_script_prints_the_likeliest_classes(tmp_path: Path) -> None:
    """`python use.py image.png` takes an image of any size and mode, and prints the top five classes."""
    folder = tmp_path / "student"
    folder.mkdir()
    student = make_student(folder, "cnn", {"channels": [4]}, 1, (8, 8))
    Image.new("RGBA", (40, 30), "white").save(folder / "white.png")
    lines = run_alone(folder, "use.py", "white.png").splitlines()
    with torch.inference_mode():
        probabilities = student(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8))[0].softmax(dim=0)
    order = probabilities.argsort(descending=True)[:5].tolist()
    assert lines == [f"{probabilities[index].item():7.2%}  {CLASSES[index]}" for index in order]


def test_model_json_holds_what_the_network_needs(tmp_path: Path) -> None:
    """Defaults are filled in: the folder does not depend on a later kdistill's."""
    make_student(tmp_path, "mlp", {}, 1, (8, 8))
    model = json.loads((tmp_path / "model.json").read_text())
    assert model == {
        "name": "mlp",
        "params": {"hidden": [256, 256], "dropout": 0.0},
        "classes": CLASSES,
        "channels": 1,
        "image_size": [8, 8],
        "mean": [pytest.approx(0.4)],
        "std": [pytest.approx(0.3)],
    }


def test_model_json_builds_the_classifier_again(tmp_path: Path) -> None:
    """What is written can be passed to `build_classifier`, for grey images of a colour network too."""
    student = make_student(tmp_path, "torchvision/squeezenet1_1", {}, 1, (32, 32))
    model = json.loads((tmp_path / "model.json").read_text())
    again = build_classifier(
        model["name"],
        model["params"],
        classes=len(model["classes"]),
        channels=model["channels"],
        image_size=tuple(model["image_size"]),
        mean=model["mean"],
        std=model["std"],
    )
    assert torch.equal(again.mean, student.mean)
    assert again.state_dict().keys() == student.state_dict().keys()


def test_nothing_in_the_folder_mentions_an_import_of_kdistill(tmp_path: Path) -> None:
    """Neither the script nor the architecture imports it."""
    make_student(tmp_path, "wrn_16_1", {"width": 2}, 3, (8, 8))
    for file in ("use.py", "architecture.py"):
        source = (tmp_path / file).read_text()
        assert "import kdistill" not in source
        assert "from kdistill" not in source


PIXELS = """
import json, sys, torch, use
from PIL import Image
std, mean = (torch.tensor(use.MODEL[name]).view(-1, 1, 1) for name in ("std", "mean"))
print(json.dumps((255 * (use.preprocess(Image.open(sys.argv[1])) * std + mean)).round().int().flatten().tolist()))
"""


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "png"),
        ("RGBA", "png"),
        ("L", "png"),
        ("LA", "png"),
        ("I;16", "png"),
        ("I;16", "tif"),
        ("RGB", "jpg"),
    ],
)
def test_images_are_prepared_as_in_training(tmp_path: Path, mode: str, suffix: str) -> None:
    """The folder's own preprocess gives the pixels that an image folder gives in training: centre, resized."""
    folder = tmp_path / "student"
    folder.mkdir()
    make_student(folder, "cnn", {"channels": [4]}, 3, (16, 16))
    depth, bands = (65536, 1) if mode == "I;16" else (256, len(mode))
    noise = torch.randint(0, depth, (50, 70, bands), generator=torch.Generator().manual_seed(0))
    pixels = noise.numpy().astype("uint16" if mode == "I;16" else "uint8")
    Image.fromarray(pixels if bands > 1 else pixels[:, :, 0]).save(tmp_path / f"image.{suffix}")

    alone = json.loads(run_alone(folder, "-c", PIXELS, str(tmp_path / f"image.{suffix}")))

    assert decode(str(tmp_path / f"image.{suffix}"), 16, 3).flatten().tolist() == alone


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("source_channels", "view"),
    [
        (3, InputView(24, False)),
        (3, InputView(24, True)),
        (3, InputView(96, False)),
        (3, InputView(None, True)),
        (1, InputView(24, False)),
    ],
)
def test_what_is_shown_in_another_size_or_grey_is_prepared_likewise(
    tmp_path: Path, source_channels: int, view: InputView, suffix: str
) -> None:
    """Two photographs, pixel for pixel: first the data set's size and channels, then grey, then input.size."""
    folder = tmp_path / "student"
    folder.mkdir()
    channels, size = view.shape(source_channels, (64, 64))
    source = {"source_size": (64, 64), "source_channels": source_channels}
    make_student(folder, "cnn", {"channels": [4]}, channels, size, **source)
    for i, photograph in enumerate(load_sample_images().images):
        path = tmp_path / f"{i}.{suffix}"
        Image.fromarray(photograph).save(path)

        alone = json.loads(run_alone(folder, "-c", PIXELS, str(path)))

        assert view(decode(str(path), 64, source_channels)[None]).flatten().tolist() == alone


def test_model_json_says_the_source_only_where_it_is_another(tmp_path: Path) -> None:
    """A student that is shown the images as they are has no such keys."""
    same, other = tmp_path / "same", tmp_path / "other"
    for folder, source in ((same, (8, 8)), (other, (64, 48))):
        folder.mkdir()
        make_student(folder, "mlp", {}, 1, (8, 8), source_size=source, source_channels=1)
    assert "source_size" not in json.loads((same / "model.json").read_text())
    model = json.loads((other / "model.json").read_text())
    assert model["source_size"] == [64, 48]
    assert "source_channels" not in model


# --- a student that reuses its teacher's head ---

REUSED = {"layer": "stages.2", "projector": Projector(16, 32, (3, 2), 2).arguments}


@pytest.mark.parametrize(
    ("name", "params", "layer", "channels"),
    [
        ("resnet8", {"width": 4}, "stages.2", 16),
        ("wrn_16_1", {"width": 4}, "pool@in", 16),
        ("mlp", {"hidden": [8]}, "stages.0", 8),
        ("torchvision/squeezenet1_1", {}, "features", 512),
    ],
)
def test_a_reused_head_comes_along(
    tmp_path: Path, name: str, params: dict[str, Any], layer: str, channels: int
) -> None:
    """SimKD's student: the folder gives its logits bit for bit, from the sources in the folder."""
    folder = tmp_path / "student"
    folder.mkdir()
    reused = {"layer": layer, "projector": Projector(channels, 8, (2, 2), 2).arguments}
    student = make_student(folder, name, params, 1, (32, 32), reused_head=reused)
    images = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    Image.fromarray(images[0, 0].numpy()).save(folder / "image.png")
    with torch.inference_mode():
        expected = student(images)[0].tolist()
    assert json.loads(run_alone(folder, "-c", LOGITS, "image.png")) == expected
    own = {"architecture.py"} if "/" not in name else set()
    files = {file.name for file in folder.iterdir() if file.is_file()}
    assert files == own | {
        "image.png",
        "model.json",
        "model.safetensors",
        "projector.py",
        "reused_head.py",
        "use.py",
    }
    for file in folder.glob("*.py"):
        assert "import kdistill" not in file.read_text()
        assert "from kdistill" not in file.read_text()


@pytest.mark.parametrize("reused", [None, REUSED])
def test_rebuild_makes_what_model_json_describes(tmp_path: Path, reused: dict[str, Any] | None) -> None:
    """The stored weights fit, and the logits are the student's."""
    student = make_student(tmp_path, "resnet8", {"width": 4}, 3, (12, 8), reused_head=reused)
    again = rebuild(json.loads((tmp_path / "model.json").read_text()))
    assert type(again.net) is type(student.net)
    fit_state(again.net, load_state(tmp_path / "model.safetensors"), "model.safetensors")
    images = torch.randint(0, 256, (2, 3, 12, 8), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again.eval()(images), student(images))


# --- other tasks, other inputs ---


def predictor(folder: Path, **about: Any) -> tuple[Classifier, torch.Tensor]:
    """A student for 12 numbers, and its outputs for 0, -0.1, 0.2, ..."""
    folder.mkdir()
    student = make_student(folder, "mlp", {"hidden": [8]}, 12, (1, 1), input="vector", **about)
    with torch.no_grad():
        student.net.head.weight.mul_(5)  # some labels beyond doubt
    save_weights(student.net, folder / "model.safetensors")
    with torch.inference_mode():
        outputs: torch.Tensor = student(torch.tensor(NUMBERS).view(1, 12, 1, 1))[0]
    return student, outputs


NUMBERS = [(-1) ** i * i / 10 for i in range(12)]
WORDS = ",".join(map(str, NUMBERS))


def test_numbers_are_classified(tmp_path: Path) -> None:
    """`python use.py 0.1,0.2,...` takes floats as they are, not as pixels; the folder needs no Pillow."""
    _, logits = predictor(tmp_path / "student")
    lines = run_alone(tmp_path / "student", "use.py", WORDS).splitlines()
    probabilities = logits.softmax(dim=0)
    order = probabilities.argsort(descending=True)[:5].tolist()
    assert lines == [f"{probabilities[index].item():7.2%}  {CLASSES[index]}" for index in order]
    text = (tmp_path / "student" / "use.py").read_text()
    assert "PIL" not in text
    assert text.startswith(
        '"""Classify a row of numbers with the network in this folder:  python use.py 0.1,0.2,...\n\n'
        "kdistill made this folder and is not needed here: torch and safetensors are.\n"
    )


def test_a_wrong_number_of_numbers_is_told(tmp_path: Path) -> None:
    """Expected and got."""
    predictor(tmp_path / "student")
    code = "import use\ntry: use.preprocess('1,2')\nexcept ValueError as ex: print(ex)"
    assert run_alone(tmp_path / "student", "-c", code) == "expected 12 numbers, got 2\n"


def test_what_the_script_cannot_read_is_one_line(tmp_path: Path) -> None:
    """A wrong number, a missing file, a file that is no image: no traceback."""
    predictor(tmp_path / "numbers")
    (tmp_path / "images").mkdir()
    make_student(tmp_path / "images", "mlp", {}, 1, (8, 8))
    (tmp_path / "images" / "text.png").write_text("text")
    for folder, word, said in (
        ("numbers", "1,2", "1,2: expected 12 numbers, got 2"),
        ("numbers", "1,a", "1,a: could not convert string to float: 'a'"),
        ("images", "none.png", "none.png: [Errno 2] No such file or directory: 'none.png'"),
        ("images", "text.png", "text.png: cannot identify image file 'text.png'"),
    ):
        done = subprocess.run(
            [sys.executable, "use.py", word],
            cwd=tmp_path / folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"{said}\n"


def test_several_labels_are_printed_with_their_own_probabilities(tmp_path: Path) -> None:
    """Every label above one half, the likeliest first: sigmoids, which do not sum to one."""
    _, logits = predictor(tmp_path / "student", task="multilabel")
    expected = sorted(
        ((p, name) for p, name in zip(logits.sigmoid().tolist(), CLASSES, strict=True) if p > 0.5),
        reverse=True,
    )
    assert 1 < len(expected) < len(CLASSES)
    lines = run_alone(tmp_path / "student", "use.py", WORDS).splitlines()
    assert lines == [f"{p:7.2%}  {name}" for p, name in expected]


def test_the_best_label_is_printed_where_none_is_likely(tmp_path: Path) -> None:
    """One line, below one half."""
    student, logits = predictor(tmp_path / "student", task="multilabel")
    with torch.no_grad():
        student.net.head.bias.sub_(logits.max() + 1)
    save_weights(student.net, tmp_path / "student" / "model.safetensors")
    best = CLASSES[logits.argmax()]
    assert run_alone(tmp_path / "student", "use.py", WORDS) == f" 26.89%  {best}\n"  # sigmoid(-1)


def test_values_are_printed_in_their_own_units(tmp_path: Path) -> None:
    """Regression: output * target_std + target_mean, by the names of the values."""
    mean, std = [float(10 * i) for i in range(6)], [float(i + 1) for i in range(6)]
    _, outputs = predictor(tmp_path / "student", task="regression", target_mean=mean, target_std=std)
    lines = run_alone(tmp_path / "student", "use.py", WORDS).splitlines()
    values = [o * s + m for o, m, s in zip(outputs.tolist(), mean, std, strict=True)]
    assert [line.split("  ")[1] for line in lines] == CLASSES
    assert [float(line.split("  ")[0]) for line in lines] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_images_can_have_other_tasks_too(tmp_path: Path, task: str) -> None:
    """The script reads an image and prints what the task says."""
    folder = tmp_path / "student"
    folder.mkdir()
    make_student(folder, "cnn", {"channels": [4]}, 3, (8, 8), task=task)
    Image.new("RGB", (9, 9), "red").save(folder / "red.png")
    lines = run_alone(folder, "use.py", "red.png").splitlines()
    assert {line.split("  ")[-1] for line in lines} <= set(CLASSES)
    assert len(lines) == 6 if task == "regression" else lines


def test_model_json_says_task_and_input_only_where_they_are_others(tmp_path: Path) -> None:
    """Classification of images is what a folder without these keys is for."""
    predictor(tmp_path / "a", task="regression")
    model = json.loads((tmp_path / "a" / "model.json").read_text())
    assert {key: model[key] for key in ("task", "input", "target_mean", "target_std")} == {
        "task": "regression",
        "input": "vector",
        "target_mean": [0.0] * 6,
        "target_std": [1.0] * 6,
    }
