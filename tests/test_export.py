"""`kdistill export`: which network, tested before it has its name, kept once; nothing is left of what fails."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from kdistill import distill, evaluate, export, finetune, load_config
from kdistill.artifacts import Artifact
from kdistill.cli import main
from kdistill.config.schema import Config
from kdistill.errors import DataError, MissingArtifact, ModelError, RunError
from kdistill.exports import FORMATS
from kdistill.exports.onnx_file import OnnxNetwork
from tests.conftest import TINY

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

Tiny = Callable[..., Config]
#: students need no teacher here
QUICK = (*TINY, "loss=ce", "student.epochs=1", "student.params.channels=[4]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a distilled and fine-tuned student."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    config = load_config(*QUICK, f"runs={runs}")
    distill(config)
    finetune(config)
    return runs


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def config(runs: Path) -> Tiny:
    return lambda *words: load_config(*QUICK, f"runs={runs}", *words)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hydras_logging: Callable[[], None]
) -> Callable[..., int]:
    """Run a command line beside the runs folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: main(list(words))


class Wrong(OnnxNetwork):
    """A file whose outputs are larger by a half."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return super().__call__(inputs) + 0.5


def with_format(monkeypatch: pytest.MonkeyPatch, **parts: object) -> None:
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], **parts))


# --- what is exported ---


def test_the_manifest_compares_the_file_with_the_network(config: Tiny) -> None:
    """Its scores on the test split are those that `eval` gives the fine-tuned student; the rest is there."""
    artifact = export(config())
    about, student = artifact.manifest, evaluate(config())["fine-tuned"]

    assert about["difference"] < 1e-4
    assert {name: about["test"][name] for name in ("top1", "nll")} == {
        name: pytest.approx(student[name], abs=1e-5) for name in ("top1", "nll")
    }
    assert about["test"]["agreement"] == 1
    assert about["torch_test"]["top1"] == student["top1"]
    assert about["images"] == 64
    assert about["torch_bytes"] == student["bytes"]
    assert artifact.payload_bytes == (artifact.folder / "model.onnx").stat().st_size
    assert about["ms"] > 0
    assert set(about["packages"]) == {"onnx", "onnxscript", "onnxruntime"}
    assert {path.name for path in artifact.folder.iterdir()} == {"manifest.json", "model.onnx"}


def test_it_is_made_once_and_again_where_something_else_is_asked_for(config: Tiny) -> None:
    """Another tolerance or network is another file; `finetune.epochs=0` means the distilled student."""
    first = export(config())
    made = (first.folder / "manifest.json").stat().st_mtime_ns
    again = export(config())

    assert again.folder == first.folder
    assert (again.folder / "manifest.json").stat().st_mtime_ns == made
    assert export(config("export.tolerance=0.1")).folder != first.folder
    assert set(first.parents) == {"finetuned"}
    assert set(export(config("finetune.epochs=0")).parents) == {"student"}


def test_a_folder_is_exported_too(config: Tiny, tmp_path: Path) -> None:
    """By its path, copied elsewhere as well; what it was trained with does not matter, the data set does."""
    folder = next((tmp_path / "runs" / "artifacts" / "student").iterdir())
    shutil.copytree(folder, tmp_path / "my student")
    artifact = export(config(f"model='{tmp_path}/my student'", "student.seed=5"))

    assert artifact.manifest["model"] == "cnn"
    assert artifact.parents["student"]["digest"] == Artifact(folder).digest


def test_what_the_student_is_shown_is_what_the_file_takes(tiny: Tiny) -> None:
    """A student of small images: the file takes 4 x 4 pixels, and its metadata name the data set's 8 x 8."""
    config = tiny(*QUICK[len(TINY) :], "student.input.size=4", "finetune.epochs=0", "dataset.augment.crop=0")
    distill(config)
    artifact = export(config)
    takes = OnnxNetwork(artifact.folder / "model.onnx").interface

    assert artifact.manifest["difference"] < 1e-4
    assert (takes.image_size, takes.source) == ((4, 4), (1, (8, 8)))


@pytest.mark.parametrize(
    ("words", "task", "score"),
    [
        (
            ("dataset=synthetic_multilabel", "dataset.samples=200", "dataset.image_size=8"),
            "multilabel",
            "map",
        ),
        (("dataset=diabetes", "teacher=mlp", "student=mlp"), "regression", "r2"),
    ],
)
def test_other_tasks(tmp_path: Path, words: tuple[str, ...], task: str, score: str) -> None:
    """Several labels; numbers from rows of numbers: the same comparison with the task's own scores."""
    small = ("student.epochs=1", "finetune=none", "loss=ce", "device=cpu", f"runs={tmp_path / 'runs'}")
    config = load_config(*words, *small)
    distill(config)
    artifact = export(config)
    about = artifact.manifest

    assert OnnxNetwork(artifact.folder / "model.onnx").interface.task == task
    assert about["test"][score] == pytest.approx(about["torch_test"][score], abs=1e-4)


# --- what is refused, and what is left of it ---


def test_other_outputs_are_refused_and_nothing_is_left(
    config: Tiny, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how large the difference is beside the outputs."""
    with_format(monkeypatch, read=Wrong)
    with pytest.raises(
        RunError, match=r"differ by up to 0\.5, more than export\.tolerance=0\.001 \(largest output: "
    ):
        export(config())
    assert list((runs / "artifacts" / "export").iterdir()) == []
    assert export(config("export.tolerance=0.6")).manifest["difference"] == pytest.approx(0.5, abs=1e-4)


def test_an_interrupted_export_leaves_nothing(
    config: Tiny, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the file is written, before it is tested; the next one goes through."""

    def interrupted(path: Path) -> OnnxNetwork:
        assert path.name == "model.onnx"
        assert path.parent.suffix == ".partial"
        assert path.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        with_format(patch, read=interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(config())
    assert list((runs / "artifacts" / "export").iterdir()) == []
    assert export(config()).manifest["images"] == 64


def test_outputs_that_are_no_numbers_are_refused(config: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """nan is not within any tolerance."""

    class Nowhere(OnnxNetwork):
        def __call__(self, inputs: Tensor) -> Tensor:
            return super().__call__(inputs) * float("nan")

    with_format(monkeypatch, read=Nowhere)
    with pytest.raises(RunError, match=r"differ by up to nan"):
        export(config())


def test_a_network_of_other_classes(config: Tiny, runs: Path) -> None:
    """The test split of another data set says nothing about it."""
    folder = next((runs / "artifacts" / "student").iterdir())
    with pytest.raises(DataError) as caught:
        export(config(f"model={folder}", "dataset.classes=3"))
    assert str(caught.value) == (
        f"{folder} was trained on synthetic, and synthetic has other classes: its test split cannot judge this"
        " network. Choose the network's data set with dataset=NAME"
    )


def test_a_folder_that_is_not_there_or_holds_no_network(config: Tiny, runs: Path) -> None:
    """The nearest match, and what was expected."""
    folder = next((runs / "artifacts" / "student").iterdir())
    with pytest.raises(
        ModelError, match=rf"no such folder\. Did you mean '{folder.name}'\? Expected the folder of"
    ):
        export(config(f"model={folder}x"))
    exported = export(config())
    with pytest.raises(
        ModelError, match=r"holds no network: it is an artifact of kind export without model\.json"
    ):
        export(config(f"model={exported.folder}"))


def test_a_student_that_is_not_made_yet(config: Tiny) -> None:
    """The command that makes it."""
    with pytest.raises(
        MissingArtifact, match=r"the student cnn is not distilled yet\. Make it with:\n  kdistill distill"
    ):
        export(config("student.seed=5"))


# --- as a user runs it ---


def test_the_command_tells_both_and_what_comes_next(
    command: Callable[..., int], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for PyTorch, one for the file, the file's path, and the command that uses it."""
    assert command("export", *QUICK) == 0
    title, heading, network, file, note, path, following = capsys.readouterr().out.splitlines()

    assert title == "cnn, synthetic: 64 test images"
    assert heading.split() == ["top-1", "%", "NLL", "ECE", "%", "agree", "%", "file", "kB", "ms"]
    assert network.split()[:2] == ["PyTorch", file.split()[1]]
    assert file.split()[0] == "onnx"
    assert file.split()[4] == "100.00"
    assert note.startswith("largest difference of two outputs: ")
    assert Path(path).is_file()
    assert following == f"next: kdistill predict IMAGE model={path}"
    (result,) = Path("runs/export").glob("*/result.json")
    assert json.loads(result.read_text())["row"]["difference"] < 1e-4


def test_exports_are_listed_and_go_with_their_student(
    command: Callable[..., int], config: Tiny, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`artifacts` shows them; `rm` of the student removes them."""
    artifact = export(config())
    assert command("artifacts") == 0
    assert f"export     {artifact.folder.name}" in capsys.readouterr().out
    student = next((runs / "artifacts" / "student").iterdir())
    assert command("artifacts", "rm", student.name, "--yes") == 0
    assert not artifact.folder.exists()


def test_a_missing_extra_is_said_before_anything_is_made(
    command: Callable[..., int],
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 and the command that installs it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert command("export", *QUICK) == 2
    assert capsys.readouterr().err.endswith("ONNX needs onnxruntime: pip install 'kdistill[onnx]'\n")
    assert not Path("runs/export").exists()


@pytest.mark.parametrize("stage", ["distill", "run"])
def test_other_stages_take_no_trained_network(
    command: Callable[..., int], runs: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    """Else `model` would be ignored there."""
    assert command(stage, *QUICK, "model=somewhere") == 2
    assert capsys.readouterr().err == (
        "model=somewhere is for `kdistill eval`, `export` and `predict`; a student starts from student.weights=FILE,"
        " and teacher=folder teacher.weights=FOLDER teaches\n"
    )
