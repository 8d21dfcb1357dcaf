"""Shared by all tests: no user's config, and small configs composed from the shipped YAML."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kdistill.config.schema import Config

# The tests' networks are tiny: a second thread costs more than it brings, above all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: a whole pipeline in seconds: synthetic 8 x 8 images, a tiny teacher and student
TINY = (
    "dataset=synthetic",
    "dataset.samples=320",
    "dataset.test_samples=64",
    "dataset.classes=4",
    "dataset.image_size=8",
    "dataset.channels=1",
    "dataset.augment.crop=1",
    "dataset.augment.flip=true",
    "teacher=resnet8",
    "teacher.params.width=8",
    "teacher.epochs=3",
    "teacher.batch_size=32",
    "teacher.keep=last",
    "student=cnn",
    "student.params.channels=[8]",
    "student.epochs=3",
    "student.batch_size=32",
    "student.keep=last",
    "finetune.epochs=1",
    "finetune.batch_size=32",
    "soft_targets.batch_size=32",
    "eval.cost=false",
    "device=cpu",
)

#: `dataset.augment` of images that stay as they are
NO_AUGMENT = {
    "crop": 0,
    "flip": False,
    "resized_crop": None,
    "resized_crop_ratio": None,
    "randaugment": None,
    "randaugment_magnitude": None,
    "brightness": None,
    "contrast": None,
    "saturation": None,
    "hue": None,
    "erase": None,
}


@pytest.fixture(autouse=True)
def _no_user_configs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("KDISTILL_CONFIG_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp()))


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """Compose the tiny pipeline's config, with further overrides; runs go to a temporary folder."""
    from kdistill import load_config

    def compose(*overrides: str) -> Config:
        return load_config(*TINY, f"runs={tmp_path / 'runs'}", *overrides)

    return compose


@pytest.fixture(scope="session")
def digits_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `kdistill run -m` on digits: MLPs, two temperatures, two seeds; made with relative paths."""
    from kdistill.cli import main

    place = tmp_path_factory.mktemp("digits")
    words = "teacher=mlp teacher.epochs=3 student=mlp student.params.hidden=[8] student.epochs=2 finetune.epochs=1"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.delenv("KDISTILL_CONFIG_DIR", raising=False)
        patch.setenv("HOME", str(place))
        sweep = ["-m", "loss.T=2,4", "student.seed=0,1", "eval.runs=3", "device=cpu"]
        assert main(["run", *words.split(), *sweep]) == 0
    return next((place / "runs" / "run").glob("sweep_*"))


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretend to be a rank of several; nothing can be sent."""
    from kdistill import ranks

    def pretend(rank: int, size: int) -> None:
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "size", lambda: size)

    return pretend
