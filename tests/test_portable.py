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

from kdistill.data.folder import decode
from kdistill.models import build_classifier, save_weights, write_portable
from kdistill.models.classifier import Classifier

CLASSES = ["ankle boot", "bag", "coat", "dress", "pullover", "shirt"]


def make_student(
    folder: Path, name: str, params: dict[str, Any], channels: int, size: tuple[int, int]
) -> Classifier:
    """A student with random weights and batch statistics, and everything that lies in its folder."""
    torch.manual_seed(0)
    student = build_classifier(
        name,
        params,
        classes=len(CLASSES),
        channels=channels,
        image_size=size,
        mean=[0.4] * channels,
        std=[0.3] * channels,
    )
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
