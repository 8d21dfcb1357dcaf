"""`kdistill predict`: the classes of images, from a student's folder or its exported file, in three forms."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdistill import load_network, predicting
from kdistill.artifacts import Artifact, ArtifactStore
from kdistill.cli import main
from kdistill.data.decoding import decode
from kdistill.exports.onnx_file import write
from kdistill.partial import Work
from kdistill.stages.networks import interface_of
from tests.test_portable import CLASSES, make_student

Said = tuple[int, str, str]


def student(
    runs: Path, name: str = "cnn", channels: int = 3, size: tuple[int, int] = (8, 8), **about: Any
) -> Path:
    """The folder of a student with random weights, as an artifact."""
    params = {"channels": [4]} if name == "cnn" else {"hidden": [8]}

    def make(work: Work) -> None:
        make_student(work.folder, name, params, channels, size, **about)
        work.payload = "model.safetensors"

    return ArtifactStore(runs).obtain("student", name, {}, "a1b2c3", make).folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five images of several sizes and modes in the current folder's `photos`, one of them below it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, shape in (
        ("a.png", (8, 8, 3)),
        ("b.jpg", (30, 20, 3)),
        ("c.png", (9, 12)),
        ("d.png", (10, 10, 4)),
        ("more/e.bmp", (8, 8, 3)),
    ):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run `kdistill predict`: exit code, stdout, stderr."""

    def run(*words: str) -> Said:
        capsys.readouterr()
        code = main(["predict", *words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


def expected(folder: Path, image: str, channels: int = 3) -> list[tuple[str, float]]:
    """All classes with their probabilities, the likeliest first, worked out from the folder's network."""
    with torch.inference_mode():
        shares = load_network(folder)(decode(image, 8, channels)[None])[0].softmax(0).tolist()
    return sorted(zip(CLASSES, shares, strict=True), key=lambda pair: -pair[1])


# --- forms ---


def test_a_table_has_a_line_for_each_image(
    predict: Callable[..., Said], photos: Path, tmp_path: Path
) -> None:
    """Every image of the folder and below it, in the order of their names."""
    folder = student(tmp_path)
    code, out, err = predict("photos", f"model={folder}", "predict.top=2")
    heading, *lines = out.splitlines()

    assert (code, err) == (0, "")
    assert heading.split() == ["image", "1", "%", "2", "%"]
    assert [line.split()[0] for line in lines] == [
        "photos/a.png",
        "photos/b.jpg",
        "photos/c.png",
        "photos/d.png",
        "photos/more/e.bmp",
    ]
    (first, a), (second, b), *_ = expected(folder, "photos/b.jpg")
    assert " ".join(lines[1].split()[1:]) == f"{first} {100 * a:.2f} {second} {100 * b:.2f}"


def test_json_is_a_list_of_all(predict: Callable[..., Said], photos: Path, tmp_path: Path) -> None:
    """The words in any order; probabilities to six digits."""
    folder = student(tmp_path)
    code, out, _ = predict("predict.format=json", "photos/a.png", f"model={folder}", "photos/more")
    first, second = json.loads(out)

    assert code == 0
    assert (first["image"], second["image"]) == ("photos/a.png", "photos/more/e.bmp")
    assert [entry["class"] for entry in first["classes"]] == [n for n, _ in expected(folder, "photos/a.png")][
        :5
    ]
    assert [entry["probability"] for entry in first["classes"]] == pytest.approx(
        [share for _, share in expected(folder, "photos/a.png")][:5], rel=1e-4
    )


def test_csv_has_a_line_for_each_class(predict: Callable[..., Said], photos: Path, tmp_path: Path) -> None:
    """Image, rank, class, probability."""
    folder = student(tmp_path)
    _, out, _ = predict("photos/a.png", f"model={folder}", "predict.format=csv", "predict.top=99")
    rows = list(csv.DictReader(io.StringIO(out)))

    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert {row["image"] for row in rows} == {"photos/a.png"}
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)


def test_values_are_written_by_name(predict: Callable[..., Said], photos: Path, tmp_path: Path) -> None:
    """Regression: a column for each value, in its own units, whatever `top` says."""
    folder = student(tmp_path, task="regression", target_mean=[100.0] * 6, target_std=[2.0] * 6)
    words = ("photos/a.png", f"model={folder}", "predict.top=1")
    table, text, listed = (predict(*words, f"predict.format={form}")[1] for form in ("table", "csv", "json"))
    with torch.inference_mode():
        values = (load_network(folder)(decode("photos/a.png", 8, 3)[None])[0] * 2 + 100).tolist()
    numbers = [f"{value:.6g}" for value in values]

    assert list(csv.reader(io.StringIO(text))) == [["image", *CLASSES], ["photos/a.png", *numbers]]
    assert table.splitlines()[1].split() == ["photos/a.png", *numbers]
    assert json.loads(listed) == [
        {"image": "photos/a.png", "values": dict(zip(CLASSES, map(float, numbers), strict=True))}
    ]


def test_labels_have_probabilities_of_their_own(
    predict: Callable[..., Said], photos: Path, tmp_path: Path
) -> None:
    """Multi-label: sigmoids, the largest first."""
    folder = student(tmp_path, task="multilabel")
    _, out, _ = predict("photos/a.png", f"model={folder}", "predict.format=json", "predict.top=6")
    (entry,) = json.loads(out)
    with torch.inference_mode():
        shares = load_network(folder)(decode("photos/a.png", 8, 3)[None])[0].sigmoid()

    assert [part["probability"] for part in entry["classes"]] == pytest.approx(
        shares.sort(descending=True).values.tolist(), rel=1e-4
    )


# --- reading ---


def test_batches_and_workers_change_nothing(
    predict: Callable[..., Said], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images held at a time give the lines that all at once give, decoded here or by a process."""
    words = ("photos", f"model={student(tmp_path)}", "predict.format=csv")
    together = predict(*words)
    monkeypatch.setattr(predicting, "BATCH_SIZE", 2)

    assert [row[:3] for row in csv.reader(io.StringIO(predict(*words)[1]))] == [
        row[:3] for row in csv.reader(io.StringIO(together[1]))
    ]
    assert predict(*words, "device.workers=1")[:2] == predict(*words)[:2]


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_what_cannot_be_read_is_reported_and_the_others_go_on(
    predict: Callable[..., Said], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Also where a whole batch is damaged; the exit code tells a script."""
    monkeypatch.setattr(predicting, "BATCH_SIZE", 1)
    (photos / "b.jpg").write_bytes(b"no image")
    code, out, err = predict("photos", f"model={student(tmp_path)}", f"predict.format={form}")

    assert code == 1
    assert err == "cannot read photos/b.jpg: cannot identify image file\n"
    assert all(f"photos/{name}" in out for name in ("a.png", "c.png", "d.png", "more/e.bmp"))
    if form == "json":
        assert json.loads(out)[1] == {"image": "photos/b.jpg", "error": "cannot identify image file"}
    else:
        assert "b.jpg" not in out


def test_what_the_student_was_shown_is_what_it_is_shown(
    predict: Callable[..., Said], photos: Path, tmp_path: Path
) -> None:
    """First the data set's size and colours, then the student's: the pixels of training."""
    folder = student(tmp_path, channels=1, source_size=(16, 16), source_channels=3)
    _, out, _ = predict("photos/b.jpg", f"model={folder}", "predict.format=csv")
    shown = interface_of(Artifact(folder)).view(decode("photos/b.jpg", 16, 3)[None])
    with torch.inference_mode():
        probability = load_network(folder)(shown)[0].softmax(0).max().item()

    assert float(out.splitlines()[1].rpartition(",")[2]) == pytest.approx(probability, rel=1e-4)


def test_an_exported_file_says_what_the_folder_says(
    predict: Callable[..., Said], photos: Path, tmp_path: Path
) -> None:
    """By the file or by its folder, in ONNX Runtime, without the network's source."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder = student(tmp_path)
    (tmp_path / "out").mkdir()
    write(load_network(folder), interface_of(Artifact(folder)), {}, tmp_path / "out" / "model.onnx")
    ours, file, place = (
        list(csv.reader(io.StringIO(predict("photos", f"model={path}", "predict.format=csv")[1])))
        for path in (folder, "out/model.onnx", "out")
    )

    assert file == place
    assert [row[:3] for row in file] == [row[:3] for row in ours]
    assert [float(row[3]) for row in file[1:]] == pytest.approx([float(row[3]) for row in ours[1:]], abs=1e-5)


# --- mistakes ---


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("model=STUDENT",),
            "predict needs an image or a folder of images: kdistill predict IMAGE|FOLDER [model=PATH]",
        ),
        (
            ("photos/aa.png", "model=STUDENT"),
            "photos/aa.png: there is no such image or folder. Did you mean 'a.png' or 'd.png'?",
        ),
        (
            ("empty", "model=STUDENT"),
            "empty: there are no images in this folder (.jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp)",
        ),
        (
            ("photos", "model=photo"),
            "model=photo: there is no such file or folder. Did you mean 'photos'? Expected an exported file, or the"
            " folder of a trained network, such as runs/artifacts/student/NAME",
        ),
        (
            ("photos", "model=photos/a.png"),
            "model=photos/a.png: expected a folder, or a file that ends in .onnx",
        ),
        (
            ("photos", "model=photos"),
            "model=photos: there is no manifest.json in it. Expected the folder of a trained network, such as"
            " runs/artifacts/teacher/NAME",
        ),
        (
            ("photos", "model=STUDENT", "predict.format=jsn"),
            "predict.format=jsn: must be table or json or csv. Did you mean 'json'?",
        ),
        (("photos", "model=STUDENT", "predict.top=0"), "predict.top=0: must be greater than or equal to 1"),
    ],
)
def test_mistakes_are_one_line(
    predict: Callable[..., Said], photos: Path, tmp_path: Path, words: tuple[str, ...], text: str
) -> None:
    """What is wrong, the nearest match, what helps; exit code 2."""
    (tmp_path / "empty").mkdir()
    folder = student(tmp_path / "made")

    assert predict(*(word.replace("STUDENT", str(folder)) for word in words)) == (2, "", f"{text}\n")


def test_a_network_of_numbers_takes_no_images(
    predict: Callable[..., Said], photos: Path, tmp_path: Path
) -> None:
    """It says what it takes."""
    folder = student(tmp_path, "mlp", channels=12, size=(1, 1), input="vector")

    assert predict("photos", f"model={folder}") == (
        2,
        "",
        "this network takes rows of 12 numbers and no images; `python use.py` in the student's folder takes a row\n",
    )


def test_without_model_the_student_of_these_settings(predict: Callable[..., Said], photos: Path) -> None:
    """Where it is not made yet, the command that makes it."""
    code, _, err = predict("photos", "student=mlp", "loss=ce")

    assert code == 2
    assert (
        err == "the student mlp is not distilled yet. Make it with:\n  kdistill distill student=mlp loss=ce\n"
    )


def test_a_damaged_student_is_named(predict: Callable[..., Said], photos: Path, tmp_path: Path) -> None:
    """Weights that are not those of the manifest are not used."""
    folder = student(tmp_path)
    shutil.copy(folder / "model.json", folder / "model.safetensors")
    code, out, err = predict("photos", f"model={folder}")

    assert (code, out) == (1, "")
    assert "model.safetensors is damaged" in err
