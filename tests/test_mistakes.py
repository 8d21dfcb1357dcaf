"""What a user who makes a mistake is told: one short message, what helps, the exit code; nothing is started.

Mistakes in the config itself are in `tests/cases/config_errors.txt`; here the machine, the data, the weights
and the order of the stages are wrong; `test_mistakes_on_disk.py` has the disk and what lies on it.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdistill.config import compose
from kdistill.models import build_network
from tests.cases.stages import one
from tests.conftest import TINY, Command

# --- the machine, models, weights: refused before anything starts ---


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("device.name=mps", "device.name=mps: there is no mps device here. Use device="),
        ("device.precision=fp16", "device.precision=fp16 needs a GPU; on a CPU use bf16 or fp32"),
        (
            "student=torchvision student.name=torchvision/resnet81",
            "torchvision has no classifier 'resnet81'. Did you mean 'resnet18' or 'resnet152'?",
        ),
        (
            "student=torchvision student.name=torchvision/inception_v3",
            "torchvision/inception_v3 cannot take 8 x 8 images: ",
        ),
        ("student.weights=DEFAULT", "cnn has no published weights. Expected weights=null or weights=PATH"),
        (
            "teacher.weights=modul.pt",
            "teacher.weights=modul.pt: there is no such file. Did you mean 'module.pt'? Expected a file of"
            " weights (safetensors, or a state dict), DEFAULT or null",
        ),
        (
            "teacher.weights=net.pt",
            "weights net.pt do not fit: head.weight: file has 7 classes, the data has 4. Train a network for"
            " these classes, or choose the data set that the file was trained on",
        ),
        (
            "teacher.weights=module.pt",
            "module.pt holds pickled Python objects, and loading those can run any code: they are never"
            " loaded. Save the tensors alone, torch.save(network.state_dict(), PATH), or as safetensors",
        ),
        ("teacher.weights=keys.pt", "weights keys.pt do not fit: 0 of 56 keys match by name and shape\n"),
        (
            "teacher.weights=cut.safetensors",
            "cut.safetensors is no file of weights, or is cut off; expected safetensors or torch.save of",
        ),
        (
            "dataset.train_samples=1000",
            "dataset.train_samples=1000, but only 288 training samples are there",
        ),
        (
            "dataset.train_samples=2",
            "dataset.train_samples=2 is too few for 4 classes: each needs at least one",
        ),
    ],
)
def test_refused_before_the_run(words: str, text: str, kdistill: Command) -> None:
    """Also what concerns the student, which is built only after the teacher's training; no folder is made."""
    net = build_network("resnet8", {"width": 8}, classes=7, channels=1, image_size=(8, 8))
    torch.save(net.state_dict(), "net.pt")
    torch.save(net, "module.pt")
    torch.save({f"x.{key}": value for key, value in net.state_dict().items()}, "keys.pt")
    Path("cut.safetensors").write_bytes(b"junk")
    # the tiny student's own parameters do not fit another architecture
    tiny = [word for word in TINY if "torchvision" not in words or not word.startswith("student")]
    said = kdistill(f"run {words}", tiny)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(text)
    assert not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a cuda device")
def test_no_cuda(kdistill: Command) -> None:
    """What there is instead is named."""
    said = kdistill("run device.name=cuda")
    assert said == (2, "", "device.name=cuda: there is no cuda device here. Use device=cpu\n")


def test_a_batch_larger_than_the_data(kdistill: Command) -> None:
    """One step per epoch sees all samples, and the user is told so."""
    said = kdistill("train-teacher teacher.batch_size=1000 teacher.epochs=1")
    assert said.code == 0
    assert said.err.startswith(
        "warning: batch_size=1000 is more than the 288 training samples: every step sees them all\n"
    )


def test_a_warning_comes_once(kdistill: Command) -> None:
    """On the console, before the work begins."""
    said = kdistill("run mixing=mixup soft_targets=stored")
    assert said.code == 0
    assert said.err.count("is an approximation") == 1
    assert said.err.startswith("warning: mixing=mixup with stored soft targets is an approximation")


def test_a_loss_with_feature_terms_is_taken_apart(kdistill: Command) -> None:
    """A weight that drowns the other terms is seen in the epochs' lines."""
    said = kdistill("run loss=kd feature=at")
    lines = [line for line in said.err.splitlines() if line.startswith("student epoch")]
    assert len(lines) == 3
    for line in lines:
        found = re.match(r"student epoch ./3  loss (\S+) \(hard (\S+), soft (\S+), at (\S+)\)  val ", line)
        assert found
        loss, *terms = map(float, found.groups())
        assert loss == pytest.approx(sum(terms), rel=1e-2)
    assert "(" not in next(line for line in said.err.splitlines() if line.startswith("teacher epoch"))


# --- data ---


@pytest.fixture
def images(kdistill: Command) -> Path:
    """50 grey images of 8 x 8 pixels in each of two classes."""
    pixels = np.random.default_rng(0)
    for number in range(100):
        folder = Path("images", "ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(0, 255, (8, 8), np.uint8)).save(folder / f"{number:02}.png")
    return Path("images")


ON_IMAGES = [
    *(word for word in TINY if not word.startswith("dataset")),
    *("dataset=image_folder", "dataset.root=images", "dataset.image_size=8", "dataset.channels=1"),
]


def test_a_missing_folder(images: Path, kdistill: Command) -> None:
    """With its nearest neighbour."""
    said = kdistill("run dataset.root=image", ON_IMAGES)
    assert said == (2, "", "dataset.root=image: there is no such folder. Did you mean 'images'?\n")


def test_a_corrupt_image(images: Path, kdistill: Command) -> None:
    """It is named before training begins; with on_error=skip it is counted and left out, in every split."""
    for path in sorted(images.glob("*/*.png"))[::10]:
        path.write_bytes(b"junk")
    said = kdistill("run", ON_IMAGES)
    assert said.code == 2
    assert said.err.startswith("cannot decode images/")
    assert said.err.endswith(
        ".png (cannot identify image file); dataset.on_error=skip leaves such images out\n"
    )
    assert not Path("runs").exists()
    said = kdistill("run dataset.on_error=skip dataset.test=0.4 dataset.validation=0.2", ON_IMAGES)
    assert said.code == 0
    told = [line.split()[3] for line in said.err.splitlines() if line.startswith("warning: left out ")]
    counted = json.loads(one(Path("runs"), "teacher/*/manifest.json").read_text())["left_out"]
    tested = int(said.out.removeprefix("image_folder: ").split()[0])
    assert sum(map(int, told)) == 10
    assert tested < 40
    assert counted == 10 - (40 - tested)


def test_a_class_missing_from_a_split(images: Path, kdistill: Command) -> None:
    """Also in the test split, which is read last: found before the training."""
    images.rename("all")
    for part in ("train", "test"):
        shutil.copytree("all", f"images/{part}")
    shutil.rmtree("images/test/b")
    said = kdistill("run", ON_IMAGES)
    assert said == (2, "", "images/test must have the classes of images/train: missing b\n")


# --- the order of the stages ---


def test_stages_out_of_order(kdistill: Command) -> None:
    """Each message holds the command that makes what is missing; the chain of them ends with a result."""
    said = kdistill("eval")
    assert said.code == 2
    assert said.err.startswith("the student cnn is not distilled yet. Make it with:\n  kdistill distill ")
    said = kdistill(last_words(said.err), ())
    assert said.code == 2
    assert said.err.startswith(
        "the teacher resnet8 is not trained yet. Make it with:\n  kdistill train-teacher "
    )
    assert "student" not in said.err
    assert kdistill(last_words(said.err), ()).code == 0
    assert kdistill("distill").code == 0
    said = kdistill("eval")
    assert (said.code, said.err) == (0, "")


def last_words(message: str) -> str:
    """The command that a message ends with."""
    return message.splitlines()[-1].removeprefix("  kdistill ")


def test_nothing_to_finetune(pipeline: Path, kdistill: Command) -> None:
    """finetune.epochs=0 contradicts the command."""
    said = kdistill("finetune finetune.epochs=0")
    assert said.code == 2
    assert said.err == (
        "finetune.epochs=0: there is nothing to fine-tune; set finetune.epochs, for example finetune.epochs=5\n"
    )


def test_a_sweep_with_one_impossible_job(pipeline: Path, kdistill: Command) -> None:
    """Nothing is started: not the jobs before it either."""
    before = sorted(pipeline.rglob("*"))
    said = kdistill("distill -m student.weights=null,DEFAULT loss.T=3")
    assert said.code == 2
    assert said.err == "cnn has no published weights. Expected weights=null or weights=PATH\n"
    assert sorted(p for p in pipeline.rglob("*") if ".locks" not in p.parts) == [
        p for p in before if ".locks" not in p.parts
    ]


# --- in a run ---


def test_divergence(pipeline: Path, kdistill: Command) -> None:
    """Where, which term, what may help, the log; the teacher and its soft targets stay."""
    said = kdistill("distill student.optim.lr=1e30")
    assert (said.code, said.out) == (1, "")
    message, log = said.err.splitlines()
    assert message.startswith("the loss is not finite at epoch 1/3 step 1/9 (terms: hard=")
    assert "A smaller optim.lr (now 1e+30)" in message
    assert "Traceback" in Path(log.removeprefix("log: ")).read_text()
    assert kdistill("eval").code == 0


def test_a_sweep_with_one_job_that_diverges(pipeline: Path, kdistill: Command) -> None:
    """The others finish; the table says it in short and the CSV in full."""
    said = kdistill("distill -m student.optim.lr=1e30,0.1")
    assert said.code == 1
    rows = said.out.splitlines()[1:3]
    assert "failed: the loss is not finite at epoch 1/3" in rows[0]
    assert rows[1].endswith("  ok")
    assert max(map(len, rows)) < 200
    (csv,) = pipeline.glob("distill/sweep_*/sweep.csv")
    assert "optim.clip_norm=1" in csv.read_text().splitlines()[1]
    assert "1 of 2 jobs failed; logs: runs/distill/sweep_" in said.err.splitlines()[-1]


def test_ctrl_c_before_the_run(kdistill: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the config is composed or torch is imported: one word."""

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compose, "plan", interrupt)
    assert kdistill("run") == (130, "", "interrupted\n")


# --- the installed command ---


def test_in_a_pipe(tmp_path: Path) -> None:
    """One plain line per epoch on stderr, results on stdout, no control characters, exit code 0."""
    command = [sys.executable, "-m", "kdistill", "train-teacher", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert [line.split("  ")[0] for line in done.stderr.splitlines()] == [
        f"teacher epoch {n}/3" for n in (1, 2, 3)
    ]
    assert done.stdout.startswith("teacher\nmodel")
    assert all(char.isprintable() or char == "\n" for char in done.stdout + done.stderr)


@pytest.mark.slow
def test_ctrl_c_in_training(tmp_path: Path) -> None:
    """SIGINT: the state is saved, one message, exit code 130."""
    command = [sys.executable, "-m", "kdistill", "train-teacher", *TINY, "teacher.epochs=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("teacher epoch 1/")
    process.send_signal(signal.SIGINT)
    last = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 130
    assert last.startswith("stopped at epoch ")
    assert last.endswith("; the state is saved: give the same command again to go on")
