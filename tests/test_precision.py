"""`device.precision=auto`: a fixed rule, by the machine and the network's size, each network for itself."""

import logging
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdistill import distill, engine, load_config, train_teacher
from kdistill.config.schema import Config
from kdistill.models import build_network, multiply_adds
from kdistill.stages.job import Job

Tiny = Callable[..., Config]
LARGE = ("dataset.image_size=32", "teacher.params.width=16", "dataset.train_samples=60")


@pytest.fixture
def gains_from_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is faster with bfloat16, whatever runs the tests."""
    monkeypatch.setattr(engine, "cpu_gains_from_bf16", lambda: True)


def precisions(config: Config) -> tuple[str, str]:
    job = Job.open(config)
    return job.engine_for("teacher").precision, job.engine_for("student").precision


@pytest.mark.parametrize(
    ("name", "params", "shape", "expected"),
    [
        # 4x4 outputs of 4 channels, 9 inputs each; 10 classes
        ("cnn", {"channels": [4]}, (1, 8), 16 * 4 * 9 + 4 * 10),
        ("mlp", {"hidden": [5]}, (1, 8), 64 * 5 + 5 * 10),
        # stem, three stages of six, seven and seven convolutions, the last two of half the size and twice the width
        ("resnet20", {}, (3, 32), 40_551_040 + 262_144),
    ],
)
def test_multiply_adds(name: str, params: dict, shape: tuple[int, int], expected: int) -> None:
    """By hand; the published count of ResNet-20, 40.55 million, and its two 1x1 shortcuts."""
    channels, size = shape
    found = multiply_adds(name, params, classes=10, channels=channels, image_size=(size, size))
    assert found == expected


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "torchvision/mobilenet_v3_small", "wrn_16_2"])
def test_multiply_adds_are_those_that_torch_counts(name: str) -> None:
    """Grouped and 1x1 convolutions, grey images that become three channels."""
    found = multiply_adds(name, {}, classes=10, channels=1, image_size=(64, 64))
    net = build_network(name, {}, classes=10, channels=1, image_size=(64, 64)).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(1, 3 if name.startswith("torchvision") else 1, 64, 64))

    assert found == counter.get_total_flops() / 2


def test_large_networks_get_bfloat16(
    gains_from_bf16: None, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    """Teacher and student each by their own size; the log says so, and the artifact remembers it."""
    caplog.set_level(logging.INFO)
    config = tiny(*LARGE, "teacher.epochs=1", "student.epochs=1")
    teacher = train_teacher(config)
    student = distill(config)

    assert precisions(config) == ("bf16", "fp32")
    assert teacher.manifest["made_from"]["precision"] == "bf16"
    assert student.manifest["made_from"]["precision"] == "fp32"
    told = [r.getMessage() for r in caplog.records if "precision" in r.getMessage()]
    assert told == ["teacher: precision bf16, as its size suits this CPU (device.precision=auto)"]


def test_what_is_chosen_is_what_would_be_set(gains_from_bf16: None, tiny: Tiny) -> None:
    """auto adds nothing to a key: the same artifacts as with the precision named."""
    auto, named = Job.open(tiny(*LARGE)).identity, Job.open(tiny(*LARGE, "device.precision=bf16")).identity
    assert auto.teacher == named.teacher
    assert auto.soft_targets == named.soft_targets
    assert auto.student["precision"] == "fp32"


def test_a_live_teacher_s_precision_is_part_of_the_student(gains_from_bf16: None, tiny: Tiny) -> None:
    """Where it is not the student's own, it cannot be told from the teacher's key alone."""
    live = Job.open(tiny(*LARGE, "soft_targets=live")).identity
    assert live.student["signal"]["precision"] == "bf16"
    same = Job.open(tiny(*LARGE, "soft_targets=live", "device.precision=fp32")).identity
    assert "precision" not in same.student["signal"]


def test_an_assistant_is_asked_as_it_was_trained(gains_from_bf16: None, tiny: Tiny) -> None:
    """The teacher of the last step is the student of the step before, of its own size."""
    config = tiny(*LARGE, "assistant=resnet8", "assistant.params.width=16")
    assert precisions(config) == ("bf16", "fp32")
    assert precisions(tiny("assistant=resnet8")) == ("fp32", "fp32")


def test_no_bfloat16_where_the_cpu_gains_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """There float32 it is, whatever the size; and where a precision is named, that one."""
    monkeypatch.setattr(engine, "cpu_gains_from_bf16", lambda: False)
    assert precisions(tiny(*LARGE)) == ("fp32", "fp32")
    monkeypatch.setattr(engine, "cpu_gains_from_bf16", lambda: True)
    assert precisions(tiny(*LARGE, "device.precision=fp32")) == ("fp32", "fp32")


def test_the_default_is_float32_on_digits(gains_from_bf16: None, tmp_path: Path) -> None:
    """ResNet-20 on images of 8 x 8 is small: the README's first numbers do not depend on the CPU's kind."""
    assert precisions(load_config("device=cpu", f"runs={tmp_path}")) == ("fp32", "fp32")


INTEL, AMD = "vendor_id\t: GenuineIntel", "AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD"


@pytest.mark.parametrize(
    ("instructions", "about", "expected"),
    [
        ({"avx512_bf16", "amx_tile"}, INTEL, True),
        # as where a virtual machine hides AMX: measured, and slower than float32
        ({"avx512_bf16"}, INTEL, False),
        ({"avx512_bf16"}, AMD, True),
        (set(), INTEL, False),
        (set(), AMD, False),
    ],
)
def test_which_cpus_gain(
    instructions: set[str], about: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what torch says of the instructions, and the system of the maker."""
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in instructions)
    monkeypatch.setattr(engine, "_about_cpu", lambda: about)
    assert engine.cpu_gains_from_bf16() is expected


def test_a_cpu_is_known_by_its_maker() -> None:
    """This very machine's own words; an Arm has other ones, or none."""
    if platform.machine() in ("x86_64", "AMD64"):
        assert any(maker in engine._about_cpu() for maker in ("GenuineIntel", "AuthenticAMD"))
