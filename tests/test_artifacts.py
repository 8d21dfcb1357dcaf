"""The artifact store: made once, never half-written, never altered, never stale."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdistill.artifacts import Artifact, ArtifactStore, Work
from kdistill.errors import DamagedArtifact
from kdistill.files import load_state, save_state


def writing(content: str, calls: list[str] | None = None):
    def make(work: Work) -> None:
        if calls is not None:
            calls.append(content)
        (work.folder / "model.safetensors").write_text(content)
        work.payload = ["model.safetensors"]

    return make


def obtain(store: ArtifactStore, content: str, **more) -> Artifact:
    return store.obtain(
        "teacher", "net", {"n": 1}, "abc123", writing(content, more.pop("calls", None)), **more
    )


def test_made_once_and_found_again(tmp_path: Path) -> None:
    """The second request returns the first one's artifact without work."""
    store, calls = ArtifactStore(tmp_path), []
    first = obtain(store, "x", calls=calls)

    assert obtain(store, "y", calls=calls).file("model.safetensors").read_text() == "x"
    assert calls == ["x"]
    assert first.folder == tmp_path / "teacher" / "net-abc123"
    assert store.find("teacher", "abc123") == first
    assert store.find("teacher", "abc124") is None


def test_manifest_describes_the_artifact(tmp_path: Path) -> None:
    """Key, what it was computed from, checksums, versions."""
    manifest = obtain(ArtifactStore(tmp_path), "x").manifest

    assert manifest["key"] == "abc123"
    assert manifest["made_from"] == {"n": 1}
    assert manifest["files"]["model.safetensors"]["bytes"] == 1
    assert {"kdistill", "torch", "python"} <= set(manifest["versions"])


def test_a_failure_leaves_no_artifact_and_the_next_start_goes_on(tmp_path: Path) -> None:
    """What an interrupted run wrote is not found as an artifact; its checkpoint is there for the next one."""
    store = ArtifactStore(tmp_path)

    def broken(work: Work) -> None:
        work.save_checkpoint({"epoch": 3})
        raise RuntimeError("cut off")

    def resumed(work: Work) -> None:
        seen.append(work.load_checkpoint())
        writing("x")(work)

    seen: list = []
    with pytest.raises(RuntimeError):
        store.obtain("teacher", "net", {}, "abc123", broken)
    assert store.find("teacher", "abc123") is None

    artifact = store.obtain("teacher", "net", {}, "abc123", resumed)

    assert seen == [{"epoch": 3}]
    assert sorted(p.name for p in artifact.folder.iterdir()) == ["manifest.json", "model.safetensors"]


def test_killed_between_manifest_and_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete `.partial` folder is taken as it is: nothing is made twice."""
    store, calls = ArtifactStore(tmp_path), []
    with monkeypatch.context() as patched:
        patched.setattr(store, "_replace", lambda final, partial: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            obtain(store, "x", calls=calls)

    assert obtain(store, "y", calls=calls).file("model.safetensors").read_text() == "x"
    assert calls == ["x"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda p: p.write_text("x" * 9), "it has 9 bytes, not 10"),
        (lambda p: p.write_text("abcdefghiX"), "its content does not match its checksum"),
        (lambda p: p.unlink(), "it is missing"),
    ],
)
def test_damage_is_found_and_named(tmp_path: Path, damage, problem: str) -> None:
    """A truncated, altered or missing file: the file, the problem and the command that helps."""
    artifact = obtain(ArtifactStore(tmp_path), "abcdefghij")
    path = artifact.folder / "model.safetensors"
    damage(path)

    with pytest.raises(DamagedArtifact) as caught:
        artifact.file("model.safetensors")

    assert str(caught.value) == (
        f"{path} is damaged: {problem}."
        f" Remove the artifact with `kdistill artifacts rm abc123 runs={tmp_path.parent}`"
        " and give the command again to make it anew"
    )


def test_damaged_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    """A flipped byte in a checkpoint is found; the state counts as absent."""
    path = tmp_path / "checkpoint"
    save_state(path, {"epoch": 3})
    assert load_state(path) == {"epoch": 3}

    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)

    assert load_state(path) is None
    assert load_state(tmp_path / "absent") is None


def child(
    store: ArtifactStore, teacher: Artifact, content: str = "student", calls: list | None = None
) -> Artifact:
    return store.obtain("student", "net", {}, "c0ffee", writing(content, calls), parents={"teacher": teacher})


def test_a_child_of_a_rebuilt_parent_is_stale_and_rebuilt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other teacher weights under the same key: the student is named as stale and made again."""
    store, calls = ArtifactStore(tmp_path), []
    child(store, obtain(store, "teacher 1"), "student 1", calls)
    rebuilt = obtain(store, "teacher 2", force=True)
    assert store.is_stale(store.find("student", "c0ffee"))

    student = child(store, rebuilt, "student 2", calls)

    assert calls == ["student 1", "student 2"]
    assert student.file("model.safetensors").read_text() == "student 2"
    assert "student net-c0ffee is stale: it was made from another build of teacher net-abc123" in caplog.text


def test_a_parent_rebuilt_bit_for_bit_keeps_its_children(tmp_path: Path) -> None:
    """The same weights again: the child is still what it would become."""
    store, calls = ArtifactStore(tmp_path), []
    child(store, obtain(store, "teacher"), "student", calls)

    child(store, obtain(store, "teacher", force=True), "student", calls)

    assert calls == ["student"]


def test_a_cut_off_child_of_a_rebuilt_parent_starts_over(tmp_path: Path) -> None:
    """A checkpoint made under another teacher is not resumed from."""
    store = ArtifactStore(tmp_path)
    seen: list = []

    def broken(work: Work) -> None:
        seen.append(work.load_checkpoint())
        work.save_checkpoint({"epoch": 3})
        raise RuntimeError

    for content, force in (("1", False), ("1", False), ("2", True)):
        teacher = obtain(store, content, force=force)
        with pytest.raises(RuntimeError):
            store.obtain("student", "net", {}, "c0ffee", broken, parents={"teacher": teacher})

    assert seen == [None, {"epoch": 3}, None]


MAKER = """
import sys, time
from pathlib import Path
from kdistill.artifacts import ArtifactStore
def make(work):
    (Path(sys.argv[1]) / f"started-{sys.argv[2]}").touch()
    time.sleep(float(sys.argv[3]))
    (work.folder / "w").write_text(sys.argv[2])
    work.payload = ["w"]
artifact = ArtifactStore(Path(sys.argv[1])).obtain("teacher", "net", {}, "abc123", make)
print(artifact.file("w").read_text())
"""


def start(root: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(root), name, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_two_processes_one_makes_the_other_waits(tmp_path: Path) -> None:
    """Both get the first one's artifact; the second never starts to work."""
    first = start(tmp_path, "first", 1.5)
    wait_for(tmp_path / "started-first")
    second = start(tmp_path, "second", 0)

    assert first.communicate()[0] == "first\n"
    assert second.communicate()[0] == "first\n"
    assert not (tmp_path / "started-second").exists()


def test_a_killed_maker_frees_the_lock(tmp_path: Path) -> None:
    """SIGKILL while making: the next process is not kept waiting and makes the artifact."""
    first = start(tmp_path, "first", 60)
    wait_for(tmp_path / "started-first")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert ArtifactStore(tmp_path).find("teacher", "abc123") is None

    assert start(tmp_path, "second", 0).communicate()[0] == "second\n"
