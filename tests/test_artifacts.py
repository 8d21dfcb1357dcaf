"""The artifact store: made once, never half-written, never altered, never stale."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdistill import artifacts, partial
from kdistill.artifacts import Artifact, ArtifactStore, Work
from kdistill.errors import DamagedArtifact
from kdistill.files import load_state, save_state, write_bytes


def writing(content: str, calls: list[str] | None = None):
    def make(work: Work) -> None:
        if calls is not None:
            calls.append(content)
        (work.folder / "model.safetensors").write_text(content)
        work.payload = "model.safetensors"

    return make


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def obtain(store: ArtifactStore, content: str, **more) -> Artifact:
    return store.obtain(
        "teacher", "net", {"n": 1}, "abc123", writing(content, more.pop("calls", None)), **more
    )


def test_two_write_the_same_file_at_once(tmp_path: Path) -> None:
    """Each writes aside under a name of its own: neither finds the other's work gone, and one of them is whole."""
    path, contents = tmp_path / "evaluation.json", [b"a" * 100_000, b"b" * 100_000]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda n: write_bytes(path, contents[n % 2]), range(100)))

    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    """A half-written checkpoint is of no use to the next attempt, which needs the disk."""
    cut_off = tmp_path / "teacher" / "net-abc123.partial"
    cut_off.mkdir(parents=True)
    (cut_off / "origin.json").write_text(json.dumps({"parents": {}, "versions": partial.versions()}))
    (cut_off / "checkpoint").write_bytes(b"a state")
    (cut_off / "checkpoint.0f.new").write_bytes(b"half a st")
    seen: list[list[str]] = []

    def make(work: Work) -> None:
        seen.append(sorted(path.name for path in work.folder.iterdir()))
        writing("x")(work)

    ArtifactStore(tmp_path).obtain("teacher", "net", {"n": 1}, "abc123", make)

    assert seen == [["checkpoint", "origin.json"]]


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
        patched.setattr(partial, "replace", interrupt)
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
    artifact = obtain(ArtifactStore(tmp_path / "artifacts"), "abcdefghij")
    path = artifact.folder / "model.safetensors"
    damage(path)

    with pytest.raises(DamagedArtifact) as caught:
        artifact.file("model.safetensors")

    assert str(caught.value) == (
        f"{path} is damaged: {problem}."
        f" Remove the artifact with `kdistill artifacts rm abc123 runs={tmp_path}`"
        " and give the command again to make it anew"
    )


def test_a_damaged_copy_outside_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short relative path works too; a folder that is in no store cannot be removed by key."""
    shutil.copytree(obtain(ArtifactStore(tmp_path), "x").folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    Path("copy/model.safetensors").write_text("y")

    with pytest.raises(DamagedArtifact) as caught:
        Artifact(Path("copy")).file("model.safetensors")
    assert str(caught.value) == ("copy/model.safetensors is damaged: its content does not match its checksum")

    Path("copy/manifest.json").unlink()
    with pytest.raises(DamagedArtifact) as caught:
        Artifact(Path("copy")).file("model.safetensors")
    assert str(caught.value) == "copy is not a finished artifact: there is no manifest.json in it"


def test_force_makes_anew_once_per_process(tmp_path: Path) -> None:
    """Jobs of a sweep with force=true share the teacher that the first of them makes anew."""
    calls: list[str] = []
    obtain(ArtifactStore(tmp_path), "old", calls=calls)
    for content in ("job 1", "job 2"):
        obtain(ArtifactStore(tmp_path), content, force=True, calls=calls)

    assert calls == ["old", "job 1"]


def test_force_replaces_a_damaged_manifest(tmp_path: Path) -> None:
    """Nothing of the damaged artifact is needed to make it anew."""
    store = ArtifactStore(tmp_path)
    (obtain(store, "x").folder / "manifest.json").write_text("{")
    teacher = obtain(ArtifactStore(tmp_path / "other"), "teacher")

    artifact = obtain(store, "y", force=True, parents={"teacher": teacher})

    assert artifact.file("model.safetensors").read_text() == "y"


@pytest.mark.parametrize("complete", [False, True])
def test_a_run_cut_off_under_other_versions_starts_over(
    complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither its checkpoint nor its complete folder is taken over, and the log says why."""
    store = ArtifactStore(tmp_path)
    seen: list = []

    def make(work: Work) -> None:
        seen.append(work.load_checkpoint())
        work.save_checkpoint({"epoch": 3})
        writing("x")(work)

    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "versions", lambda: {"torch": "1.0"})
        patched.setattr(partial, "replace" if complete else "write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.obtain("teacher", "net", {}, "abc123", make)
    monkeypatch.setattr(artifacts, "versions", lambda: {"torch": "2.0"})

    artifact = store.obtain("teacher", "net", {}, "abc123", make)

    assert seen == [None, None]
    assert artifact.manifest["versions"] == {"torch": "2.0"}
    unfinished = f"{artifact.folder}.partial"
    assert caplog.messages == [f"{unfinished} starts over: it was begun with torch 1.0, now 2.0"]


def test_a_complete_run_of_a_rebuilt_parent_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just before its rename, and then the teacher was replaced: it is made again."""
    store, calls = ArtifactStore(tmp_path), []
    teacher = obtain(store, "teacher 1")
    with monkeypatch.context() as patched:
        patched.setattr(partial, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            child(store, teacher, "student 1", calls)

    child(store, obtain(store, "teacher 2", force=True), "student 2", calls)

    assert calls == ["student 1", "student 2"]


def test_the_payload_is_what_children_pin(tmp_path: Path) -> None:
    """The digest is the checksum of the payload file; a maker that names none is wrong."""
    manifest = obtain(ArtifactStore(tmp_path), "x").manifest

    assert manifest["digest"] == manifest["files"]["model.safetensors"]["sha256"]
    with pytest.raises(AssertionError, match=r"must set work\.payload"):
        ArtifactStore(tmp_path).obtain("student", "net", {}, "c0ffee", lambda work: None)


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


def test_staleness_passes_on(tmp_path: Path) -> None:
    """What was made from a stale student is stale, though the student itself has not changed."""
    store = ArtifactStore(tmp_path)
    student = child(store, obtain(store, "teacher 1"))
    tuned = store.obtain("finetuned", "net", {}, "f00d", writing("tuned"), parents={"student": student})
    assert not store.is_stale(tuned)

    obtain(store, "teacher 2", force=True)

    assert store.is_stale(tuned)


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


# --- kills at every line of the bookkeeping ---

BOOKKEEPING = {
    function.__code__
    for function in (
        partial.prepare_partial,
        partial.write_manifest,
        partial.replace,
        partial.set_aside,
        partial.discard,
        write_bytes,
    )
}


@contextmanager
def killed_at(n: int) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt before the n-th line (from 0) that runs in the bookkeeping."""
    lines: list[str] = []

    def trace(frame, event, arg):
        if frame.f_code not in BOOKKEEPING:
            return None
        if event == "line":
            lines.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            if len(lines) > n:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def making(content: str):
    """A training in short: resume or start, save a state, write the result."""

    def make(work: Work) -> None:
        work.load_checkpoint()
        work.write_lines("metrics.jsonl", [{"epoch": 1}])
        work.save_checkpoint({"epoch": 1})
        (work.folder / "checkpoint.0f.new").write_bytes(b"half a st")
        writing(content)(work)

    return make


def assert_complete(artifact: Artifact, *contents: str) -> None:
    names = {"metrics.jsonl", "model.safetensors"}
    assert artifact.manifest["files"].keys() == names
    assert all(artifact.file(name) for name in names)
    assert {p.name for p in artifact.folder.iterdir()} == {*names, "manifest.json"}
    assert artifact.file("model.safetensors").read_text() in contents


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # a kill closes nothing
@pytest.mark.parametrize("before", ["nothing", "an artifact", "a run of other versions", "a complete run"])
def test_a_kill_at_any_line_of_the_bookkeeping(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is no artifact or a complete one; the next command makes a complete one and leaves no rest."""
    force = before == "an artifact"

    def command(root: Path, content: str) -> Artifact:
        return ArtifactStore(root).obtain("teacher", "net", {}, "abc123", making(content), force=force)

    killed: set[str] = set()
    for n in range(1000):
        root = tmp_path / str(n)
        with monkeypatch.context() as patched:
            patched.setattr(artifacts, "_forced", set())
            if before == "a run of other versions":
                patched.setattr(artifacts, "versions", lambda: {"torch": "1.0"})
            if before in ("a run of other versions", "a complete run"):
                patched.setattr(partial, "replace", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    command(root, "old")
            elif force:
                command(root, "old")
        monkeypatch.setattr(artifacts, "_forced", set())
        try:
            with killed_at(n) as lines:
                command(root, "new")
            ended = True
        except KeyboardInterrupt:
            ended = False
            killed.add(lines[-1])

        found = ArtifactStore(root).find("teacher", "abc123")
        if found is not None:
            assert_complete(found, "old", "new")
        after = command(root, "new")
        assert_complete(after, *(["old", "new"] if before == "a complete run" else ["new"]))
        assert [p.name for p in (root / "teacher").iterdir() if p.suffix != ".replaced"] == ["net-abc123"]
        if ended:
            break

    assert ended
    assert len(killed) > 10


MAKER = """
import sys, time
from pathlib import Path
from kdistill.artifacts import ArtifactStore
def make(work):
    (Path(sys.argv[1]) / f"started-{sys.argv[2]}").touch()
    time.sleep(float(sys.argv[3]))
    (work.folder / "w").write_text(sys.argv[2])
    work.payload = "w"
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
