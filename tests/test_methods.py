"""Every method trains for real: on scikit-learn's digits, with one small ResNet as the teacher of them all."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from kdistill import distill, finetune, load_config, load_network, train_teacher
from kdistill.artifacts import Artifact
from kdistill.config.folders import groups
from kdistill.config.schema import Config
from kdistill.config.section import largest
from kdistill.errors import Interrupted
from kdistill.identity import TEACHERLESS
from kdistill.loop import predict
from kdistill.models import build_network, fit_state, load_state
from kdistill.stages.job import Job
from kdistill.tally import Tally

DIGITS = (
    "dataset=digits",
    "dataset.train_samples=320",
    "dataset.augment.crop=1",
    "teacher=resnet8",
    "teacher.params.width=4",
    "teacher.epochs=6",
    "teacher.batch_size=32",
    "student=cnn",
    "student.params.channels=[8,12]",
    "student.epochs=4",
    "student.batch_size=32",
    "student.keep=last",
    "finetune.epochs=1",
    "finetune.batch_size=32",
    "soft_targets.batch_size=32",
    "device=cpu",
)
FEATURES = list(groups()["feature"])
#: `features` is nothing without a term; those of one term each are tried on top of KD as well, so here they are slow
LOSSES = [
    pytest.param(name, marks=pytest.mark.slow) if name in FEATURES and name != "simkd" else name
    for name in groups()["loss"]
    if name != "features"
]
#: those with a bank, with adapters and batch norms, with another head; the others are slow tests in some cases
SPECIAL = ["crd", "review_kd", "simkd"]
SLOWLY = [name if name in SPECIAL else pytest.param(name, marks=pytest.mark.slow) for name in FEATURES]
WITH_ADAPTERS = ["crd", "hint", "review_kd", "vid"]

Compose = Callable[..., Config]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a trained teacher in it."""
    folder = tmp_path_factory.mktemp("methods") / "runs"
    train_teacher(load_config(*DIGITS, f"runs={folder}"))
    return folder


@pytest.fixture
def digits(runs: Path) -> Compose:
    return lambda *words: load_config(*DIGITS, f"runs={runs}", *words)


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Compose:
    """Like `digits`, in a folder of the test's own that has the teacher alone."""
    shutil.copytree(runs / "artifacts" / "teacher", tmp_path / "runs" / "artifacts" / "teacher")
    return lambda *words: load_config(*DIGITS, f"runs={tmp_path / 'runs'}", *words)


def history(student: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in student.file("metrics.jsonl").read_text().splitlines()]


def tensors(artifact: Artifact, name: str = "model") -> dict[str, Tensor]:
    return load_state(artifact.file(f"{name}.safetensors"))


def content(config: Config) -> dict[str, str]:
    """Checksum of every file of the teachers' folders."""
    folder = Path(config.runs, "artifacts", "teacher")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_learns(config: Config) -> Artifact:
    """Train the student; the loss falls, each term is in the history, and the teacher stays as it is."""
    before = content(config)
    student = distill(config)
    rows = history(student)
    loss = config.loss
    terms = {"hard": loss.alpha, "soft": loss.soft_weight}
    terms |= {name: term.weight for name, term in loss.features.items()}
    expected = {name for name, weight in terms.items() if largest(weight)}

    assert len(rows) == 4
    assert rows[-1]["loss"] < rows[0]["loss"]
    for row in rows:
        found = {name: row[name] for name in row if name in terms}
        assert found.keys() == expected
        assert all(math.isfinite(value) for value in found.values())
        assert sum(found.values()) == pytest.approx(row["loss"], rel=1e-5)
    assert content(config) == before
    return student


def recorded_score_of(student: Artifact, network: torch.nn.Module, config: Config) -> bool:
    """Whether the network's validation scores are those in the manifest."""
    job = Job.open(config)
    found = job.task.summarise(*predict(network, job.data.validation, config.student.batch_size, job.engine))
    return found == pytest.approx(student.manifest["validation"], abs=1e-6)


def plain_network(student: Artifact, file: str = "model") -> torch.nn.Module:
    """The student's architecture with the stored weights: every key fits, none is left over."""
    about = json.loads(student.file("model.json").read_text())
    net = build_network(
        about["name"],
        about["params"],
        classes=len(about["classes"]),
        channels=about["channels"],
        image_size=tuple(about["image_size"]),
    )
    fit_state(net, tensors(student, file), file)
    return load_network(student.folder).with_net(net).eval()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(loss: str, digits: Compose) -> None:
    """`loss=NAME` alone, with the shipped values; what ships is a network without adapters, with its score."""
    config = digits(f"loss={loss}")
    student = check_learns(config)
    network = load_network(student.folder) if loss == "simkd" else plain_network(student)

    assert recorded_score_of(student, network, config)
    controls = ("ce", "label_smoothing", *TEACHERLESS)
    assert list(student.parents) == ([] if loss in controls else student_parents(config))


def student_parents(config: Config) -> list[str]:
    return ["teacher"] if config.loss.features else ["teacher", "soft-targets"]


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_trains_on_top_of_kd(feature: str, digits: Compose) -> None:
    """`loss=kd feature=NAME`: three terms; adapters lie beside the student, not in it, and are trained."""
    config = digits("loss=kd", f"feature={feature}")
    student = check_learns(config)
    network = load_network(student.folder) if feature == "simkd" else plain_network(student)

    assert recorded_score_of(student, network, config)
    assert (student.folder / "adapters.safetensors").exists() == (feature in WITH_ADAPTERS)
    if feature in WITH_ADAPTERS:
        untrained = tensors(distill(digits("loss=kd", f"feature={feature}", "student.epochs=0")), "adapters")
        trained = tensors(student, "adapters")
        assert trained.keys() == untrained.keys()
        assert [name for name in trained if torch.equal(trained[name], untrained[name])] == []


def test_several_features_train_together(digits: Compose) -> None:
    """`loss=features feature=[at,hint,rkd]`: each term has its own place in the history."""
    student = check_learns(digits("loss=features", "feature=[at,hint,rkd]"))

    assert list(history(student)[0])[2:6] == ["loss", "hard", "at", "hint"]
    assert all(name.startswith("1.") for name in tensors(student, "adapters"))  # the second term's


# --- SimKD: what ships is student, projector and the teacher's head ---


def test_simkd_ships_projector_and_head(digits: Compose, tmp_path: Path) -> None:
    """The folder classifies an image where kdistill cannot be imported; the head is the teacher's."""
    student = distill(digits("loss=simkd"))
    teacher = tensors(train_teacher(digits()))
    state = tensors(student)

    assert {name.partition(".")[0] for name in state} == {"net", "projector", "head"}
    assert torch.equal(state["head.weight"], teacher["head.weight"])
    assert torch.equal(state["head.bias"], teacher["head.bias"])

    pixels = (torch.arange(64).reshape(8, 8) * 4).to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "image.png")
    (tmp_path / "kdistill").mkdir()
    (tmp_path / "kdistill" / "__init__.py").write_text("raise ImportError('kdistill is not needed here')")
    done = subprocess.run(
        [sys.executable, "use.py", str(tmp_path / "image.png")],
        cwd=student.folder,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with torch.inference_mode():
        probabilities = load_network(student.folder)(pixels[None, None])[0].softmax(dim=0)
    best = probabilities.argmax().item()
    assert done.stdout.splitlines()[0] == f"{probabilities[best].item():7.2%}  {best}"


def test_simkd_is_fine_tuned_in_front_of_the_head(digits: Compose) -> None:
    """Fine-tuning moves the student and the projector; the teacher's head stays."""
    config = digits("loss=simkd", "finetune.keep=last")
    before, after = tensors(distill(config)), tensors(finetune(config))
    same = {name for name in before if torch.equal(before[name], after[name])}

    # the student's own head is not used, so nothing reaches it
    assert before.keys() == after.keys()
    assert same == {"head.weight", "head.bias", "net.head.weight", "net.head.bias"}


# --- mutual learning ---


def test_peers_are_two_networks(digits: Compose) -> None:
    """`loss=dml` keeps the second student in a file beside the first: the same architecture, other weights."""
    config = digits("loss=dml")
    student = distill(config)
    first, second = tensors(student), tensors(student, "peer")

    assert first.keys() == second.keys()
    assert not any(torch.equal(first[name], second[name]) for name in first if first[name].ndim > 1)
    assert not recorded_score_of(student, plain_network(student, "peer"), config)


# --- mixed images ---


@pytest.mark.parametrize("mixing", [name for name in groups()["mixing"] if name != "none"])
@pytest.mark.parametrize("words", ["loss=kd", "loss=kd soft_targets=stored", "loss=ce", "loss=kd feature=at"])
def test_mixed_images_train(mixing: str, words: str, digits: Compose) -> None:
    """Labels, live and stored teacher logits, and features all go with mixed images."""
    check_learns(digits(f"mixing={mixing}", *words.split()))


# --- optimisation ---


@pytest.mark.parametrize("feature", SLOWLY)
def test_features_go_with_averaging_accumulation_and_clipping(feature: str, digits: Compose) -> None:
    """The average, a batch in two parts and a small gradient norm: the averaged student has its recorded score."""
    config = digits(
        *("loss=kd", f"feature={feature}", "student.keep=best"),
        *("student.optim.ema=0.9", "student.optim.accumulate=2", "student.optim.clip_norm=1"),
    )
    student = distill(config)
    averaged = load_network(student.folder)

    assert all(value.isfinite().all() for value in averaged.state_dict().values())
    assert recorded_score_of(student, averaged, config)
    assert all(math.isfinite(row["loss"]) for row in history(student))


@pytest.mark.parametrize("feature", SLOWLY)
def test_features_train_in_bfloat16(feature: str, digits: Compose) -> None:
    """`device.precision=bf16`: loss, weights and adapters stay finite, and the loss falls."""
    config = digits("device.precision=bf16", "loss=kd", f"feature={feature}")
    train_teacher(config)
    student = check_learns(config)

    for path in student.folder.glob("*.safetensors"):
        assert all(value.isfinite().all() for value in load_state(path).values())


# --- exactness ---


@pytest.mark.parametrize(
    "loss",
    [
        "dkd",
        "dist",
        pytest.param("mlkd", marks=pytest.mark.slow),
        pytest.param("nkd", marks=pytest.mark.slow),
    ],
)
def test_stored_targets_are_the_live_ones(loss: str, digits: Compose) -> None:
    """One view per epoch in float32: stored and live teacher give the same student, bit for bit."""
    words = (f"loss={loss}", "soft_targets.dtype=float32", "soft_targets.mode=")
    stored, live = (distill(digits(*words[:-1], words[-1] + mode)) for mode in ("stored", "live"))

    assert stored.folder != live.folder
    assert stored.file("model.safetensors").read_bytes() == live.file("model.safetensors").read_bytes()


@pytest.mark.parametrize("feature", SPECIAL)
@pytest.mark.parametrize("stop_after", [pytest.param(3, marks=pytest.mark.slow), 13])
def test_a_stopped_run_ends_with_the_same_weights(
    feature: str, stop_after: int, digits: Compose, copied: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first or second epoch (of 10 steps): banks, adapters and averages go on as they were."""
    words = ("loss=kd", f"feature={feature}", "student.optim.ema=0.9")
    straight = distill(digits(*words))
    steps = 0
    real = Tally.add

    def stopping(self: Tally, *added: Any) -> None:
        nonlocal steps
        real(self, *added)
        steps += 1
        if steps == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Tally, "add", stopping)
    where = f"epoch {stop_after // 10 + 1}/4 step {stop_after % 10}/10"
    with pytest.raises(Interrupted, match=f"stopped at {where}; the state is saved"):
        distill(copied(*words))
    again = distill(copied(*words))

    assert steps == 40
    for path in straight.folder.glob("*.safetensors"):
        assert path.read_bytes() == again.file(path.name).read_bytes()
    assert [row["loss"] for row in history(again)] == [row["loss"] for row in history(straight)]
