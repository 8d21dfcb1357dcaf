"""Shared by all tests: no user's config, small configs composed from the shipped YAML, stages that do nothing."""

import logging
import os
import shlex
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from kdistill.config import folders
from kdistill.config.schema import Config
from kdistill.records import Result, Table

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

#: the tiny pipeline's teacher is a ResNet of a width of its own: what takes it out for another one
NO_WIDTH = "~teacher.params.width"

#: digits, a student that learns them in some seconds
DIGITS = (
    "dataset=digits",
    "dataset.train_samples=400",
    "dataset.augment.crop=0",
    "student=mlp",
    "student.epochs=8",
    "student.optim=adamw",
    "student.optim.lr=0.01",
    "student.batch_size=32",
    "finetune=none",
    "device=cpu",
)

#: images of 8 x 8 in folders
FOLDER = (
    "dataset=image_folder",
    "dataset.image_size=8",
    "dataset.channels=1",
    "dataset.augment.crop=1",
    "dataset.augment.flip=true",
    "dataset.validation=0.2",
    "dataset.test=0.25",
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


class Said(NamedTuple):
    """What a command line gave."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def _no_user_configs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("KDISTILL_CONFIG_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp()))


@pytest.fixture
def hydras_logging() -> Iterator[Callable[[], None]]:
    """Takes down the log handlers that Hydra sets up for a command: when it is called, and at the end."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def take_down() -> None:
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            with suppress(OSError):  # the disk of a test may be full
                handler.close()
        root.handlers[:] = before
        root.setLevel(level)

    yield take_down
    take_down()


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
def small(tmp_path: Path) -> Callable[..., Config]:
    """Composes a config on digits."""
    from kdistill import load_config

    return lambda *overrides: load_config(*DIGITS, f"runs={tmp_path / 'runs'}", *overrides)


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Config]:
    """Composes a small pipeline for an image folder: (root, overrides) -> config."""
    from kdistill import load_config

    def compose(root: Path, *overrides: str) -> Config:
        dropped = ("dataset", "teacher.params") if "teacher=f" in " ".join(overrides) else ("dataset",)
        common = [word for word in TINY if not word.startswith(dropped)]
        return load_config(*FOLDER, *common, f"dataset.root={root}", f"runs={tmp_path / 'runs'}", *overrides)

    return compose


@pytest.fixture
def kdistill(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    hydras_logging: Callable[[], None],
) -> Command:
    """Run a command line in an empty current folder; the stages get the tiny pipeline's settings."""
    from kdistill.cli import main

    monkeypatch.chdir(tmp_path)

    def run(line: str, tiny: Sequence[str] = TINY) -> Said:
        command, *words = shlex.split(line)
        capsys.readouterr()
        code = main([command, *(() if command in ("artifacts", "list") else tiny), *words])
        said = Said(code, *capsys.readouterr())
        assert "Traceback" not in said.err
        hydras_logging()
        return said

    return run


@pytest.fixture
def refused(kdistill: Command) -> Refused:
    """The text that a command is refused with: exit code 2, and no folder made."""

    def refuse(line: str, tiny: Sequence[str] = TINY) -> str:
        said = kdistill(line, tiny)
        assert said.code == 2, said.err
        assert not Path("runs").exists()
        return said.err.removesuffix("\n")

    return refuse


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder after the whole tiny pipeline."""
    from kdistill import load_config, run

    folder = tmp_path_factory.mktemp("finished") / "runs"
    run(load_config(*TINY, f"runs={folder}"))
    return folder


@pytest.fixture
def pipeline(kdistill: Command, finished: Path) -> Path:
    """A copy of the finished pipeline in the current folder's `runs`."""
    shutil.copytree(finished, "runs")
    return Path("runs")


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretend to be a rank of several; nothing can be sent."""
    from kdistill import ranks

    def pretend(rank: int, size: int) -> None:
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "size", lambda: size)

    return pretend


class Stages(types.ModuleType):
    """Stands in for `kdistill.stages`: remembers what it was asked, and answers as the test says."""

    def __init__(self) -> None:
        super().__init__("kdistill.stages")
        self.asked: list[Config] = []
        self.checked: list[list[Config]] = []
        self.answer: Callable[[Config], Result] = self.result

    def check_before(self, configs: list[Config], overrides: object = ()) -> None:
        self.checked.append(list(configs))

    def run_stage(self, config: Config, overrides: list[str], folder: Path) -> Result:
        self.asked.append(config)
        self.words = overrides
        logging.getLogger("kdistill").info("epoch 1/1")
        return self.answer(config)

    @staticmethod
    def result(config: Config) -> Result:
        table = Table(
            "Student", ["model", "top-1"], [[config.student.name, "91.23"], ["x" * 90, "1"]], "on test"
        )
        return Result(
            0.5, {"top1": 0.123456, "T": config.loss.T}, [table], "next: kdistill eval", {"student": "a/b"}
        )


@pytest.fixture
def stages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hydras_logging: Callable[[], None]
) -> Iterator[Stages]:
    """The stand-in, in an empty current folder."""
    fake = Stages()
    monkeypatch.setitem(sys.modules, "kdistill.stages", fake)
    monkeypatch.setattr("kdistill.stages", fake, raising=False)
    monkeypatch.chdir(tmp_path)
    yield fake
    folders.use_folders()
