"""Damaged artifacts, folders that cannot be written, full disks: what a user is told, and how it goes on."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cases.stages import one
from tests.conftest import Command

FULL = "free some space (`kdistill artifacts gc`) or choose another folder with runs=DIR, and give the same"


# --- damaged artifacts ---


def test_damaged_weights(pipeline: Path, kdistill: Command) -> None:
    """The command in the message removes them, with what was made from them; the next run makes all anew."""
    path = one(pipeline, "teacher/*/model.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    said = kdistill("eval")
    assert said.code == 1
    message, log = said.err.splitlines()
    key = path.parent.name.rpartition("-")[2]
    assert message == (
        f"{path} is damaged: it has 1,000 bytes, not 84,600. Remove the artifact with"
        f" `kdistill artifacts rm {key}` and give the command again to make it anew"
    )
    assert log.startswith("log: ")
    said = kdistill(f"artifacts rm {key} --yes")
    assert (said.code, said.out.splitlines()[-1]) == (0, "removed 7 folders")
    assert kdistill("run").code == 0


@pytest.mark.parametrize("content", ['{"kind": "student", "di', "{}", "[]"])
def test_a_damaged_manifest(content: str, pipeline: Path, kdistill: Command) -> None:
    """It is named, it does not keep `artifacts` from its work, and both rm and gc take it away."""
    path = one(pipeline, "student/*/manifest.json")
    path.write_text(content)
    said = kdistill("run")
    assert said.code == 1
    assert said.err.startswith(f"{path} is damaged: it is not ")
    assert f"`kdistill artifacts rm {path.parent.name.rpartition('-')[2]}`" in said.err
    said = kdistill("artifacts")
    assert [line.split()[-1] for line in said.out.splitlines() if path.parent.name in line] == ["damaged"]
    assert kdistill("artifacts gc --yes").out.splitlines()[-1] == "removed 1 folder"
    assert kdistill("run").code == 0


# --- kdistill artifacts ---


def test_artifacts_in_a_pipe_are_whole_lines(pipeline: Path, kdistill: Command) -> None:
    """Keys are for copying: nothing is cut off, coloured or drawn."""
    said = kdistill("artifacts")
    assert len(said.out.splitlines()) == 9
    assert said.out.isascii()
    assert one(pipeline, "soft-targets/*").name in said.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("artifacts rm", "artifacts rm needs a KEY; `kdistill artifacts` shows them"),
        ("artifacts remove x", "artifacts cannot 'remove'."),
        ("artifacts lst", "artifacts cannot 'lst'. Did you mean 'list'?"),
        ("artifacts gc x", "artifacts gc takes no 'x'"),
        ("artifacts rm x --yess", "unknown option '--yess'. Did you mean '--yes'?"),
        ("artifacts run=x", "unknown option 'run=x'. Did you mean 'runs'?"),
    ],
)
def test_artifacts_mistakes(line: str, message: str, kdistill: Command) -> None:
    """The first line says what is wrong, the usage follows."""
    said = kdistill(line)
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[0] == message


def test_artifacts_asks_first(pipeline: Path, kdistill: Command) -> None:
    """An unknown key has near matches; without a terminal nobody can say yes, and nothing is removed."""
    teacher = one(pipeline, "teacher/*").name
    said = kdistill(f"artifacts rm {teacher[:-1]}")
    assert said.code == 2
    assert said.err.startswith(f"no artifact '{teacher[:-1]}' in runs/artifacts. Did you mean '{teacher}'")
    said = kdistill(f"artifacts rm {teacher}")
    assert (said.code, said.err) == (2, "there is nobody to ask: add --yes to remove these\n")
    assert kdistill("artifacts gc") == (0, "nothing to remove\n", "")
    assert kdistill("artifacts runs=elsewhere").out == (
        "no artifacts in elsewhere/artifacts. `kdistill run` makes some\n"
    )


# --- folders and disks ---


@pytest.mark.parametrize("runs", ["/dev/null/x", "file/x"])
def test_runs_under_a_file(runs: str, kdistill: Command) -> None:
    """A file is no place for a folder."""
    Path("file").touch()
    said = kdistill(f"run runs={runs}")
    message = f"cannot write to {runs}: not a directory. Choose another folder with runs=DIR\n"
    assert said == (2, "", message)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_runs_where_no_folder_can_be(kdistill: Command) -> None:
    """Even root cannot make a folder there."""
    said = kdistill("run runs=/proc/x")
    assert said.code == 2
    assert said.err.startswith("cannot make the folder /proc/x/run/")
    assert said.err.endswith("Choose another folder with runs=DIR\n")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system of the asked-for size, or change its size."""
    folder = tmp_path / "disk"

    def resize(size: str) -> Path:
        again = "remount," if folder.exists() else ""
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"{again}size={size}", "none", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
        return folder

    yield resize
    if folder.exists():
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def test_a_full_disk_at_a_checkpoint(kdistill: Command, small_disk: Callable[[str], Path]) -> None:
    """One message; nothing half-written takes up space; with more of it the same command goes on."""
    small_disk("250k")
    said = kdistill("train-teacher runs=disk/runs")
    assert said.code == 2
    assert FULL in said.err.splitlines()[-1]
    assert said.err.splitlines()[-1].startswith("the disk is full: cannot write to disk/runs")
    assert list(Path("disk").rglob("*.new")) == []
    small_disk("4m")
    assert kdistill("train-teacher runs=disk/runs").code == 0


def test_a_full_disk_at_soft_targets(
    finished: Path, kdistill: Command, small_disk: Callable[[str], Path]
) -> None:
    """Their size is known first."""
    small_disk("400k")
    shutil.copytree(finished / "artifacts" / "teacher", "disk/runs/artifacts/teacher")
    line = "soft-targets soft_targets.views=200 runs=disk/runs"
    said = kdistill(line)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(
        "the soft targets need 0.46 MB (views x samples x outputs: 200 x 288 x 4), but 0."
    )
    small_disk("8m")
    assert kdistill(line).code == 0


def test_a_full_disk_in_the_middle_of_soft_targets(
    finished: Path,
    kdistill: Command,
    small_disk: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where neither the free space is known nor can any be reserved, writing tells: it is no signal that ends it."""
    monkeypatch.setattr("kdistill.stages.soft_targets.free_bytes", lambda folder: sys.maxsize)
    monkeypatch.delattr(os, "posix_fallocate")
    small_disk("400k")
    shutil.copytree(finished / "artifacts" / "teacher", "disk/runs/artifacts/teacher")
    line = "soft-targets soft_targets.views=200 runs=disk/runs"
    said = kdistill(line)
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith("the disk is full: cannot write to disk/runs")
    small_disk("8m")
    assert kdistill(line).code == 0


def test_a_disk_that_is_full_before(kdistill: Command, small_disk: Callable[[str], Path]) -> None:
    """Hydra's own files are the first that do not fit; of a sweep as well."""
    disk = small_disk("64k")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (disk / "fill").write_bytes(bytes(100_000))
    for sweep in ("", "-m teacher.seed=1,2"):
        said = kdistill(f"train-teacher runs=disk/runs {sweep}")
        assert said.code == 2
        assert said.err.splitlines()[-1].startswith("the disk is full: cannot write to disk/runs.")
