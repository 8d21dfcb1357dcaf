"""The command as a process: what it imports, what it composes, its garbage, and how it ends."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

from kdistill import launch
from kdistill.cli import main
from kdistill.config.schema import Config
from kdistill.records import Result
from tests.conftest import Stages


def test_the_config_that_was_checked_is_the_one_that_runs(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command composes once: nothing that changes in between reaches the run, and no time is lost."""
    composed = []
    compose = ConfigLoaderImpl.load_configuration

    def counted(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        composed.append(compose(self, *args, **kwargs))
        return composed[-1]

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    assert main(["distill", "loss.T=3"]) == 0
    assert len(composed) == 1
    assert [config.loss.T for config in stages.asked] == [3]


@pytest.mark.parametrize(
    ("words", "code", "heavy"),
    [
        ("--help", 0, "hydra"),
        ("distill --help", 0, "hydra"),
        ("explain", 0, "hydra"),
        ("explain --help", 0, "hydra"),
        ("explain dkd", 0, ""),
        ("explain crd", 0, ""),
        ("list", 0, ""),
        ("distill --cfg job", 0, ""),
        ("distill loss.T=-1", 2, ""),
    ],
)
def test_torch_is_not_imported_before_a_run(words: str, code: int, heavy: str, tmp_path: Path) -> None:
    """Help, lists, texts, configs and mistakes do not wait for torch; help and overviews not even for Hydra."""
    program = (
        "import sys; from kdistill.cli import main; code = main(sys.argv[2:]);"
        " found = {'torch', 'torchvision', 'sklearn', sys.argv[1]} & set(sys.modules); assert not found, found;"
        " sys.exit(code)"
    )
    command = [sys.executable, "-c", program, heavy, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code, done.stderr


def test_a_process_of_its_own_settles_before_it_works(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it imports and plans, nobody looks for garbage; when it works, not among what that has made."""
    planning, working = [], []

    def check_before(configs: list[Config], overrides: object = ()) -> None:
        planning.append(gc.isenabled())

    def answer(config: Config) -> Result:
        working.append((gc.isenabled(), gc.get_freeze_count() > before))
        return stages.result(config)

    before, stages.answer = gc.get_freeze_count(), answer
    monkeypatch.setattr(stages, "check_before", check_before)
    monkeypatch.setattr(sys, "argv", ["kdistill", "distill"])
    monkeypatch.setattr(launch, "end", sys.exit)
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        gc.unfreeze()
        gc.enable()
    assert end.value.code == 0
    assert (planning, working) == ([False], [(True, True)])


def test_the_caller_s_garbage_is_its_own(stages: Stages) -> None:
    """A command line that another program gives leaves that one's collector as it is."""
    before = gc.isenabled(), gc.get_freeze_count()
    assert main(["distill", "loss.T=2"]) == 0
    assert (gc.isenabled(), gc.get_freeze_count()) == before


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """`kdistill --help | head -0` prints no traceback."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; (sleep 0.5; exec {sys.executable} -m kdistill --help) | true"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


def test_exit_code_of_the_process(tmp_path: Path) -> None:
    """`python -m kdistill` hands the exit code to the shell, and its message to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "kdistill", "distil"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("unknown command 'distil'. Did you mean 'distill'")


# --- its end ---

#: says when Python clears up what a module still holds
CLEARED_UP = """
import atexit, threading, time
from kdistill import launch

def late(what):
    time.sleep(0.2)
    print(what)

class Held:
    def __del__(self):
        print("cleared up")

held = Held()
atexit.register(print, "registered")
threading.Thread(target=late, args=["thread"]).start()
print("done")
"""
#: what is done before
DONE = ["done", "thread", "registered"]


@pytest.mark.parametrize(
    ("last", "said"),
    [("launch.end(3)", DONE), ("exit(3)", [*DONE, "cleared up"])],
)
def test_a_process_ends_before_python_clears_up(last: str, said: list[str]) -> None:
    """Threads are waited for and what is registered for the end is done, in Python's order, and no more."""
    done = subprocess.run(
        (sys.executable, "-c", CLEARED_UP + last), capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (3, said, "")


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["trian"], 2)])
def test_the_command_ends_so(words: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it went well or not; with words of its own it returns."""
    monkeypatch.setattr(launch, "end", sys.exit)
    monkeypatch.setattr(sys, "argv", ["kdistill", *words])
    monkeypatch.setattr(gc, "disable", lambda: None)

    assert main(words) == code
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
