"""Weights and temperatures that change during the training: what each epoch is trained with."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from kdistill import distill, load_config, plugins, register_loss, train_teacher
from kdistill.artifacts import Artifact
from kdistill.config.schema import Config
from kdistill.errors import Interrupted
from kdistill.losses import build_objective
from kdistill.tally import Tally
from tests.conftest import TINY

#: no augmentation, one batch of all samples and hardly a step: every epoch sees the same student and images
STILL = (
    *(
        "dataset.augment.crop=0",
        "dataset.augment.flip=false",
        "student.optim.lr=1e-9",
        "student.batch_size=288",
    ),
    *("student.epochs=4", "soft_targets.dtype=float32"),
)

Compose = Callable[..., Config]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the teachers of both kinds of images."""
    folder = tmp_path_factory.mktemp("ramps") / "runs"
    train_teacher(load_config(*TINY, f"runs={folder}", *STILL))
    train_teacher(load_config(*TINY, f"runs={folder}"))
    return folder


@pytest.fixture
def still(runs: Path) -> Compose:
    return lambda *words: load_config(*TINY, f"runs={runs}", *STILL, *words)


@pytest.fixture
def constants() -> Iterator[None]:
    """Losses that do not depend on the student: `one` is 1, `temperature` is T."""

    @register_loss("one")
    def one(student_logits: Tensor) -> Tensor:
        return 1 + 0 * student_logits.sum()

    @register_loss("temperature", alpha=0, beta=1)
    def temperature(student_logits: Tensor, T: float) -> Tensor:
        return T + 0 * student_logits.sum()

    yield
    plugins.forget()


def history(student: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in student.file("metrics.jsonl").read_text().splitlines()]


def column(student: Artifact, name: str) -> list[float]:
    return [row.get(name, 0.0) for row in history(student)]


def proportions(values: list[float]) -> list[float]:
    return [value / max(values) for value in values]


# --- values by hand ---


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        ("{start:0,end:1,until:1}", [0.25, 0.5, 0.75, 1]),
        ("{start:0,end:1,until:0.5}", [0.5, 1, 1, 1]),
        ("{start:0,end:8,until:0.1}", [8, 8, 8, 8]),
        ("{start:3,end:1,until:1}", [2.5, 2, 1.5, 1]),
        ("{start:2,end:0,until:0.5}", [1, 0, 0, 0]),
        ("0.7", [0.7, 0.7, 0.7, 0.7]),
    ],
)
def test_the_weight_of_each_epoch(ramp: str, expected: list[float], still: Compose, constants: None) -> None:
    """Of a loss that is always 1 the history shows its weight: epoch e of 4 is at the share e / 4."""
    student = distill(still("loss=one", "loss.alpha=1", f"loss.beta={ramp}"))
    assert column(student, "soft") == pytest.approx(expected)


def test_temperatures_change_too(still: Compose, constants: None) -> None:
    """A loss that returns T shows it: from 4 to 1 in a straight line over three quarters of the training."""
    student = distill(still("loss=temperature", "loss.T={start:4,end:1,until:0.75}"))
    assert column(student, "soft") == pytest.approx([3, 2, 1, 1])
    assert column(student, "loss") == pytest.approx([3, 2, 1, 1])


def test_kd_is_at_the_temperature_of_its_epoch(still: Compose) -> None:
    """T from 7 to 3 over 4 epochs is 6, 5, 4, 3: each epoch's soft term is that of a run at that T."""
    ramped = column(distill(still("loss.T={start:7,end:3,until:1}")), "soft")
    constant = [column(distill(still(f"loss.T={T}")), "soft")[0] for T in (6, 5, 4, 3)]
    assert ramped == pytest.approx(constant, rel=1e-5)
    assert len({round(value, 5) for value in ramped}) == 4


def test_labels_for_the_teacher(still: Compose) -> None:
    """beta=null with a ramp of alpha is 1 - alpha in each epoch; a term of weight 0 is left out."""
    student = distill(still("loss.alpha={start:0,end:1,until:1}"))
    assert proportions(column(student, "hard")) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1], rel=1e-4)
    assert proportions(column(student, "soft")) == pytest.approx([1, 2 / 3, 1 / 3, 0], rel=1e-4)
    assert "soft" not in history(student)[-1]


def test_features_have_ramps_of_their_own(still: Compose) -> None:
    """Two terms, one fading in and one fading out."""
    words = (
        "loss.features.at.weight={start:0,end:2,until:1}",
        "loss.features.sp.weight={start:4,end:0,until:1}",
    )
    student = distill(still("loss=features", "feature=[at,sp]", *words))
    assert proportions(column(student, "at")) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1], rel=1e-4)
    assert proportions(column(student, "sp")) == pytest.approx([1, 2 / 3, 1 / 3, 0], rel=1e-4)


def test_peers_have_ramps_too(still: Compose) -> None:
    """Mutual learning's weights change like any."""
    student = distill(still("loss=dml", "loss.alpha={start:0,end:1,until:1}"))
    assert proportions(column(student, "hard")) == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1], rel=1e-4)


# --- as published ---


def test_published_warm_ups() -> None:
    """DKD's and ReviewKD's weights grow over the first 20 of 240 epochs: min(e / 20, 1) of their value."""
    dkd = build_objective(load_config("loss=dkd").loss)
    review = load_config("loss=review_kd").loss.features["review_kd"]
    for epoch in range(1, 241):
        share = min(epoch / 20, 1)
        assert dkd.at(epoch / 240).beta == pytest.approx(share, rel=1e-3)
        assert dkd.at(epoch / 240).alpha == 1
    assert dkd.at(20 / 240).beta == 1
    assert review.weight.model_dump() == {"start": 0, "end": 5, "until": dkd.beta.until}


@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_alpha_and_beta_add_up(epochs: int) -> None:
    """beta=null: the weights sum to 1 whatever the ramp is."""
    for ramp in ("{start:0.2,end:0.9,until:0.5}", "{start:1,end:0,until:1}"):
        objective = build_objective(load_config(f"loss.alpha={ramp}").loss)
        for epoch in range(epochs):
            now = objective.at((epoch + 1) / epochs)
            assert now.alpha + now.beta == pytest.approx(1)


# --- resuming ---


def test_a_resumed_run_has_the_same_ramps(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second of three epochs: weights, T and the student go on as without the stop."""
    words = (
        "loss.alpha={start:0,end:1,until:1}",
        "loss.beta={start:1,end:0,until:1}",
        "loss.T={start:8,end:2,until:1}",
        "feature=hint",
        "loss.features.hint.weight={start:9,end:0,until:1}",
    )
    straight = distill(load_config(*TINY, f"runs={runs}", *words))
    shutil.copytree(runs / "artifacts" / "teacher", tmp_path / "artifacts" / "teacher")
    config = load_config(*TINY, f"runs={tmp_path}", *words)
    steps = 0
    real = Tally.add

    def stopping(self: Tally, *added: Any) -> None:
        nonlocal steps
        real(self, *added)
        steps += 1
        if steps == 13:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Tally, "add", stopping)
    with pytest.raises(Interrupted, match="stopped at epoch 2/3 step 4/9"):
        distill(config)
    again = distill(config)

    assert steps == 27
    for name in ("hard", "soft", "hint", "loss"):
        assert column(again, name) == column(straight, name)
    for name in ("model", "adapters"):
        assert (
            again.file(f"{name}.safetensors").read_bytes()
            == straight.file(f"{name}.safetensors").read_bytes()
        )
