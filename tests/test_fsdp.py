"""Sharded networks: their units, what is refused, and the same results as whole ones, from a part in each process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vit_b_16

from kdistill import fsdp
from kdistill.artifacts import Artifact
from kdistill.cli import main
from kdistill.config.schema import Config
from kdistill.engine import Engine
from kdistill.errors import ModelError
from kdistill.fsdp import check, units
from kdistill.models import build_network, load_weights
from kdistill.partial import Work
from kdistill.stages.job import Job
from tests.conftest import TINY
from tests.test_loop import network
from tests.test_ranks import finish, torchrun
from tests.training_of_fsdp import ADAMW, student, trained

Result = dict[str, Any]


# --- units ---


def names_of(network: nn.Module) -> list[str]:
    found = list(units(network))
    names = {module: name for name, module in network.named_modules()}
    return [names[unit] for unit in found]


def test_units_are_the_blocks_of_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in no chain, or too small, is gathered with the network; what is within a block, with the block."""
    monkeypatch.setattr(fsdp, "UNIT", 1000)
    resnet = build_network("resnet8", {"width": None}, classes=4, channels=1, image_size=(8, 8))
    mlp = build_network("mlp", {"hidden": [16, 16]}, classes=4, channels=1, image_size=(8, 8))

    assert names_of(resnet) == ["stages.0.0", "stages.1.0", "stages.2.0"]
    assert names_of(mlp) == ["stages.0.0"]


def test_units_of_a_transformer() -> None:
    """Its blocks: a layer within one, whose weight attention asks for by itself, is none."""
    with torch.device("meta"):
        vit = vit_b_16(image_size=32)

    assert names_of(vit) == [f"encoder.layers.encoder_layer_{i}" for i in range(12)]


# --- what is refused ---


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (
            Scaled(),
            "device.shard=true cannot cut the parameter scale, a single number; use device.shard=false",
        ),
        (
            Tied(),
            "device.shard=true cannot cut the parameter second.weight, which is also first.weight;"
            " use device.shard=false",
        ),
    ],
)
def test_networks_that_cannot_be_cut(network: nn.Module, text: str) -> None:
    """Refused when they are built, before anything is trained."""
    with pytest.raises(ModelError) as error:
        Engine(torch.device("cpu"), "fp32", shard=True).place(network)

    assert str(error.value) == text
    check(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("stage", "words", "text"),
    [
        (
            "run",
            ["device.processes=1"],
            "device.shard=true shares networks out among several processes: set device.processes=2 or more",
        ),
        ("run", ["device.compile=true"], "device.shard=true needs device.compile=false"),
        (
            "run",
            ["device.precision=fp16"],
            "device.shard=true needs device.precision=bf16 or fp32, got fp16",
        ),
        (
            "plan",
            [],
            "kdistill plan tries steps in one process, with whole networks: plan with device.shard=false",
        ),
    ],
)
def test_refused_before_a_process_starts(
    stage: str, words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command itself, in one line."""
    command = [stage, *TINY, f"runs={tmp_path}", "device.processes=2", "device.shard=true", *words]

    assert (main(command), capsys.readouterr().err) == (2, text + "\n")


def test_sharding_is_no_part_of_a_key(tiny: Callable[..., Config]) -> None:
    """The results are the same but for rounding, and one may go on with what the other began."""
    whole, sharded = (
        Job.open(tiny("device.processes=2", *words)).identity for words in ((), ("device.shard=true",))
    )

    assert (whole.teacher, whole.student) == (sharded.teacher, sharded.student)


# --- two processes ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Where `training_of_fsdp.py` left its results: alone, and in two processes."""
    alone, two = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    script = ("-m", "tests.training_of_fsdp")
    finish(sys.executable, *script, alone, alone)
    finish(*torchrun(tmp_path_factory.mktemp("logs")), *script, two, alone)
    return [alone, two]


@pytest.fixture(scope="module")
def results(folders: list[Path]) -> list[Result]:
    """Alone, then of both ranks."""
    alone, two = folders
    return [torch.load(file, weights_only=True) for file in (alone / "0.pt", two / "0.pt", two / "1.pt")]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


TRAININGS = [
    "kd",
    "unequal shares",
    "adamw, accumulate",
    "feature",
    "only a feature",
    "peers",
    "uninterrupted",
]


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAININGS)
def test_two_sharded_train_as_one_whole(case: str, results: list[Result]) -> None:
    """Weights and losses of 10 or 12 steps, with a sharded teacher; nothing normalises over a batch."""
    one, main, other = (result[case] for result in results)

    assert_close(main, one)
    assert_close(other, main)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "whole"),
    [
        ("batch norm", "batch norm"),
        ("within a block", "within a block"),
        ("within the only unit", "within a block"),
    ],
)
def test_sharded_is_as_data_parallel(case: str, whole: str, results: list[Result]) -> None:
    """With batch norm over each process's share, and a feature from within a unit whose output is not asked for."""
    _, main, _ = results

    assert_close(main[case], main[f"{whole}, whole"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["resumed", "resumed from the other"])
def test_cut_off_and_resumed(case: str, results: list[Result]) -> None:
    """Within the second epoch, with AdamW and a moving average: the same; also from what one whole process saved."""
    _, main, _ = results

    assert_close(main[case], main["uninterrupted"])


@pytest.mark.slow
def test_one_whole_process_goes_on_with_what_two_began(folders: list[Path], results: list[Result]) -> None:
    """The state that two sharded processes saved is one like any other."""
    gone_on = trained(
        student(), checkpoint=Work(folders[1] / "cut"), ema=0.9, clip_norm=0.5, accumulate=2, **ADAMW
    )

    assert_close(gone_on, results[0]["uninterrupted"])


@pytest.mark.slow
def test_each_process_holds_its_half(results: list[Result]) -> None:
    """Of parameters, of gradients and of the optimizer's momentum."""
    one, main, other = (result["held"] for result in results)

    assert one == dict.fromkeys(["parameters", "gradients", "momentum"], 8580)
    assert main == other == dict.fromkeys(["parameters", "gradients", "momentum"], 4290)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["predicted", "few", "asked"])
def test_a_sharded_network_answers_as_a_whole_one(case: str, results: list[Result]) -> None:
    """Bit for bit, also where the processes have other numbers of batches."""
    for result in results:
        found, expected = (
            value if isinstance(value, tuple) else (value,)
            for value in (result[case], result[f"{case}, whole"])
        )
        assert all(map(torch.equal, found, expected))


@pytest.mark.slow
def test_the_saved_student_is_whole(folders: list[Path], results: list[Result]) -> None:
    """The file of any process loads in a plain network."""
    for rank in range(2):
        plain = network("mlp", hidden=[16, 16], seed=3)
        load_weights(plain.net, str(folders[1] / f"model-{rank}.safetensors"))
        for name, value in plain.state_dict().items():
            assert torch.equal(value, results[1]["kd"][name])


@pytest.mark.slow
def test_the_whole_pipeline(tmp_path: Path) -> None:
    """The command, with 8 batches of soft targets for one and 9 for the other; the student's folder works by itself.

    Then features.
    """
    once = [f"{section}.epochs=1" for section in ("teacher", "student")]
    words = (
        *TINY,
        f"runs={tmp_path}",
        "device.processes=2",
        "device.shard=true",
        "soft_targets.views=3",
        "soft_targets.batch_size=51",
        *once,
    )
    finish(sys.executable, "-m", "kdistill", "run", *words)
    finish(sys.executable, "-m", "kdistill", "distill", *words, "feature=at", "student.optim.ema=0.9")

    students = [Artifact(folder) for folder in tmp_path.glob("artifacts/student/*")]
    assert [student.manifest["processes"] for student in students] == [2, 2]
    (folder,) = tmp_path.glob("artifacts/finetuned/*/")
    code = "import torch, use; print(list(use.load()(torch.zeros(3, 1, 8, 8)).shape))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "[3, 4]\n", done.stderr
