"""`kdistill eval`: its files, what it says of any model, what it refuses."""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from kdistill import distill, evaluate, finetune, load_config, load_network, run, train_teacher, trial
from kdistill.artifacts import ArtifactStore
from kdistill.config.schema import Config
from kdistill.errors import ConfigError, ModelError
from kdistill.models import load_state
from kdistill.predictions import FILE, Predictions, read_predictions
from kdistill.stages import check_before, run_stage
from kdistill.stages.job import Job
from kdistill.stages.subjects import subjects
from tests.cases.stages import at_stage

Tiny = Callable[..., Config]


@pytest.fixture
def seven(tiny: Tiny) -> Tiny:
    """Of seven classes, hard to tell apart, so that nothing is all right."""
    words = ("dataset.classes=7", "dataset.noise=0.9", "student.epochs=2")
    return lambda *overrides: tiny(*words, *overrides)


# --- files ---


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Logits, labels of either form, names of samples and classes."""
    for labels in (torch.tensor([2, 0]), torch.tensor([[0.0, 1, 1], [1, 0, 0]])):
        written = Predictions(torch.rand(2, 3), labels, ["a/1.png", "b/2.png"], ["x", "y", "z"])
        written.save(tmp_path / FILE)
        read = read_predictions(tmp_path / FILE)

        assert torch.equal(read.logits, written.logits)
        assert torch.equal(read.labels, labels)
        assert (read.ids, read.classes) == (written.ids, written.classes)


def test_json_and_csv_lie_beside_the_last_artifact(seven: Tiny) -> None:
    """All scores of teacher, student and fine-tuned, side by side; the matrix a line a row."""
    config = seven()
    scores = run(config)
    place = finetune(config).beside("evaluation.json")
    found = json.loads(place.read_text())
    with place.with_suffix(".csv").open(newline="") as file:
        lines = {line["model"]: line for line in csv.DictReader(file)}

    assert found["dataset"] == "synthetic"
    assert list(found["models"]) == list(lines) == ["teacher", "student", "fine-tuned"]
    for name, values in scores.items():
        assert values.items() <= found["models"][name].items()
        for key in ("top1", "top5", "nll", "brier", "ece", "agreement", "kl", "parameters", "bytes"):
            assert float(lines[name][key]) == values[key]
        assert sum(map(sum, values["confusion"])) == values["images"] == 64
    assert "confusion" not in lines["teacher"]
    row = json.dumps(scores["teacher"]["confusion"][0])[1:-1]
    assert f"[ {row} ]," in place.read_text()


def test_the_scores_are_those_of_the_predictions(seven: Tiny) -> None:
    """Of each model they are kept with labels and ids, and scikit-learn finds the same in them."""
    scores = run(seven())["student"]
    found = read_predictions(Path(scores["predictions"]) / FILE)
    chosen = found.logits.argmax(1)

    assert found.ids == [str(i) for i in range(64)]
    assert accuracy_score(found.labels, chosen) == scores["top1"]
    assert log_loss(found.labels, found.logits.double().softmax(1)) == pytest.approx(scores["nll"])
    assert scores["by_class"].keys() == set(found.classes)
    mean = sum(scores["by_class"][found.classes[k]] for k in found.labels.tolist()) / 64
    assert mean == pytest.approx(scores["top1"])  # every sample counts as its class


def test_the_temperature_is_fitted_to_validation(seven: Tiny) -> None:
    """The same T as from the network's answers on the validation split, and not on the test split."""
    config = seven()
    scores = run(config)["teacher"]
    job = Job.open(config)
    (teacher, *_) = subjects(job)
    logits, rows = teacher.rows(job.data.validation)

    assert scores["temperature"] == job.task.temperature(logits, job.data.validation.labels[rows])
    assert scores["nll_scaled"] != scores["nll"]


def test_a_model_is_asked_once(seven: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions are found again, by students that share a teacher too; force=true makes them anew."""
    config = seven()
    before = run(config)
    asked: list[str] = []
    monkeypatch.setattr("kdistill.stages.predict._ask", lambda subject, work: asked.append(subject.name))

    assert evaluate(config) == before
    assert asked == []
    other = seven("student.seed=1")
    distill(other)
    with pytest.raises(AssertionError, match="payload"):
        evaluate(other)
    with pytest.raises(AssertionError, match="payload"):
        evaluate(at_stage(seven("force=true"), "eval"))
    assert asked == ["student", "teacher"]


def test_an_evaluation_goes_with_its_artifact(seven: Tiny) -> None:
    """Removing the artifact removes the files beside it; making it anew does, too: they were of the other one."""
    config = seven("finetune.epochs=0")
    run(config)
    student = distill(config)
    place = student.beside("evaluation.json")
    assert place.is_file()
    distill(at_stage(seven("finetune.epochs=0", "force=true"), "distill"))
    assert not place.exists()
    evaluate(config)
    assert place.is_file()
    ArtifactStore(Path(config.runs) / "artifacts").remove(student.folder)

    assert list(student.folder.parent.glob("*")) == []


# --- tables ---


def test_the_tables_are_narrow_and_name_the_weakest(seven: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores, then costs with where they were measured; no line of them is wider than 100 columns."""
    from kdistill.console import plain_table

    monkeypatch.setattr(trial, "SECONDS", 0.0)
    config = seven("eval.cost=true", "eval.runs=3", "device.threads=1")
    result = run_stage(config)
    scores, costs = result.tables
    shown = [plain_table(table).splitlines() for table in result.tables]

    assert scores.columns[1:] == [
        "top-1 %", "top-5 %", "NLL", "Brier", "ECE %", "at T %", "T", "agree %", "KL"
    ]  # fmt: skip
    assert costs.columns[1:] == [
        "parameters", "file kB", "MFLOPs", "p50 ms", "p95 ms", "images/s", "MB", "seconds"
    ]  # fmt: skip
    assert costs.title.startswith("on cpu, 1 thread, ")
    assert "p50, p95: one image, 3 runs" in costs.note
    assert "weakest of student cnn, fine-tuned: " in scores.note
    assert max(len(line) for lines in shown for line in lines) <= 100
    assert f"evaluation: {finetune(config).beside('evaluation.json')}\nnext: " in result.message
    cost = json.loads(finetune(config).beside("evaluation.json").read_text())["models"]["student"]["cost"]
    assert cost.keys() >= {"flops", "memory", "latency_p50", "latency_p95", "runs", "throughput", "precision"}


def test_costs_can_be_left_out(seven: Tiny) -> None:
    """eval.cost=false: nothing is timed; what is known without stays."""
    config = seven()
    run(config)
    costs = run_stage(at_stage(config, "eval")).tables[1]

    assert costs.columns == ["", "parameters", "file kB", "seconds"]
    assert (costs.title, costs.note) == ("", "seconds: training time")


def test_a_missing_temperature_is_said(tiny: Tiny) -> None:
    """Where all of the validation split is right there is no best T: the table says so, and shows none."""
    config = tiny("dataset.noise=0", "teacher.epochs=8", "finetune.epochs=0")
    scores = run(config)
    table = run_stage(at_stage(config, "eval")).tables[0]

    assert train_teacher(config).manifest["validation"]["top1"] == 1
    assert "temperature" not in scores["teacher"]
    assert (
        "no T for teacher resnet8: none is best on validation, as where all or nothing is right" in table.note
    )


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (("dataset=synthetic_multilabel", "dataset.samples=160"), {"map", "brier", "ece", "kl", "confusion"}),
        (
            ("dataset=diabetes", "teacher=mlp", "student=mlp", "soft_targets.dtype=float32"),
            {"r2", "rmse", "mae", "distance"},
        ),
    ],
)
def test_the_other_tasks(tmp_path: Path, words: tuple[str, ...], keys: set[str]) -> None:
    """Each has its own scores, of each class or value, too, and files that are JSON."""
    epochs = ("teacher.epochs=1", "student.epochs=1", "finetune.epochs=0", "eval.cost=false")
    config = load_config(*words, *epochs, "device=cpu", f"runs={tmp_path / 'runs'}")
    scores = run(config)["student"]

    assert scores.keys() >= {*keys, "by_class", "nll"}
    assert json.loads(distill(config).beside("evaluation.json").read_text())["models"].keys() == {
        "teacher",
        "student",
    }


# --- any model ---


def test_a_file_of_weights(seven: Tiny, tmp_path: Path) -> None:
    """A state dict, and the student's own file: the scores of the student that they are, beside the teacher's."""
    config = seven("finetune.epochs=0")
    scores = run(config)
    file = distill(config).folder / "model.safetensors"
    torch.save({"state_dict": load_state(file)}, tmp_path / "mine.pt")
    for path in (file, tmp_path / "mine.pt"):
        found = evaluate(seven(f"model={path}"))

        assert list(found) == ["teacher", "model"]
        same = ("top1", "nll", "temperature", "agreement", "kl", "by_class", "parameters")
        assert [found["model"][key] for key in same] == [scores["student"][key] for key in same]
        assert found["model"]["bytes"] == path.stat().st_size
        assert found["model"]["artifact"] == str(path)
    place = Path(found["model"]["predictions"] + ".evaluation.json")
    assert json.loads(place.read_text())["models"]["model"]["title"] == "model mine.pt"
    assert list(tmp_path.glob("mine*")) == [tmp_path / "mine.pt"]


def test_a_folder_of_another_run(seven: Tiny, tmp_path: Path) -> None:
    """It says itself what it is: no teacher and no setting of the student is needed."""
    config = seven("finetune.epochs=0")
    scores = run(config)["student"]
    folder = distill(config).folder
    other = seven(f"model={folder}", f"runs={tmp_path / 'other'}", "student.seed=5")
    result = run_stage(at_stage(other, "eval"))
    found = evaluate(other)

    assert list(found) == ["model"]
    assert found["model"]["top1"] == scores["top1"]
    assert found["model"]["nll"] == pytest.approx(scores["nll"])
    assert result.tables[0].rows[0][0] == "model cnn"
    assert "next:" not in result.message
    assert load_network(folder) is not None


def refused(config: Config, stage: str = "eval") -> str:
    with pytest.raises((ModelError, ConfigError)) as caught:
        check_before([at_stage(config, stage)])
    return str(caught.value)


def test_models_that_cannot_be_judged(seven: Tiny, tmp_path: Path, tiny: Tiny) -> None:
    """Each is refused before any work, with what was expected."""
    folder = train_teacher(seven("teacher.epochs=0")).folder
    (tmp_path / "mine.pt").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    expected = "Expected a file of weights (safetensors, or a state dict), or the folder of a trained network"

    assert refused(seven(f"model={tmp_path / 'mine.pth'}")) == (
        f"model={tmp_path / 'mine.pth'}: there is no such file. Did you mean 'mine.pt'? {expected}"
    )
    assert refused(seven(f"model={tmp_path / 'empty'}")) == (
        f"model={tmp_path / 'empty'}: there is no manifest.json in it. {expected}"
    )
    other = refused(seven(f"model={folder / 'model.safetensors'}"))
    assert f"weights {folder / 'model.safetensors'} do not fit:" in other
    assert other.endswith(
        f"model={folder / 'model.safetensors'} is taken for a cnn: student=NAME and student.params choose another"
    )
    assert refused(tiny("dataset.classes=9", f"model={folder}")) == (
        f"model={folder} was not trained for 2 of the 9 classes of synthetic: '7', '8'. It has '0', '1', '2', ..."
    )
    assert refused(seven(f"model={folder}"), "distill") == (
        f"model={folder} is for `kdistill eval`, `export` and `predict`; a student starts from student.weights=FILE,"
        " and teacher=folder teacher.weights=FOLDER teaches"
    )


def test_images_that_cannot_be_decoded_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others keep their labels and names, and teacher and student are compared on the same ones."""
    from PIL import Image

    caplog.set_level(logging.ERROR)
    for split, count in (("train", 8), ("test", 4)):
        for k, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), 100 * k + i).save(tmp_path / split / name / f"{i}.png")
    (tmp_path / "test" / "cat" / "1.png").write_bytes(b"no image")
    config = load_config(
        "dataset=image_folder", f"dataset.root={tmp_path}", "dataset.image_size=8", "dataset.on_error=skip",
        "dataset.validation=0.25", "teacher=cnn", "teacher.epochs=1", "student.epochs=1", "finetune.epochs=0",
        "eval.cost=false", "device=cpu", f"runs={tmp_path / 'runs'}",
    )  # fmt: skip
    scores = run(config)
    found = read_predictions(Path(scores["student"]["predictions"]) / FILE)

    assert {values["images"] for values in scores.values()} == {7}
    assert "test/cat/1.png" not in found.ids
    assert [name.split("/")[1] for name in found.ids] == [found.classes[k] for k in found.labels.tolist()]
