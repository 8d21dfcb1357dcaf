"""`kdistill artifacts`: what it lists, what it removes, what it leaves alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdistill.artifacts import Artifact, ArtifactStore, Work
from kdistill.housekeeping import main

KEYS = {"teacher": "aaa1", "student": "bbb2", "finetuned": "ccc3"}
Say = Callable[[], list[str]]


def test_list_says_what_each_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    """The loss with its feature terms, and the score by its name."""
    monkeypatch.chdir(tmp_path)
    store = ArtifactStore(Path("runs/artifacts"))
    made: list[tuple[dict, dict, list[str]]] = [
        ({"alpha": 1.0}, {"top1": 0.5}, ["ce", "top-1", "50.00", "%"]),
        ({"kind": "kd", "features": {"at": {}, "sp": {}}}, {"top1": 0.925}, ["kd", "+", "at", "+", "sp"]),
        ({"kind": "features", "features": {"at": {}}}, {"map": 0.25}, ["at", "mAP", "25.00", "%"]),
        ({"kind": "own", "name": "cosine"}, {"r2": 0.41}, ["cosine", "R2", "0.4100"]),
    ]
    for number, (loss, scores, _) in enumerate(made):

        def write(work: Work, scores: dict = scores) -> None:
            (work.folder / "model.safetensors").write_text("")
            work.payload = "model.safetensors"
            work.about = {"validation": scores, "dataset": "digits"}

        store.obtain("student", "net", {"loss": loss}, f"aaa{number}", write)
    main([])

    rows = [line.split()[2:] for line in lines() if "net-" in line]
    assert [row[: len(expected) + 1] for row, (_, _, expected) in zip(rows, made, strict=True)] == [
        ["digits", *expected] for _, _, expected in made
    ]


def make(store: ArtifactStore, kind: str, content: str, parent: Artifact | None = None) -> Artifact:
    def write(work: Work) -> None:
        (work.folder / "model.safetensors").write_text(content)
        work.payload = "model.safetensors"
        work.about = {"validation": {"top1": 0.5}}

    parents = {parent.kind: parent} if parent else {}
    return store.obtain(kind, "net", {}, KEYS[kind], write, parents=parents)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """A teacher, a student made from it, and that student fine-tuned, in ./runs."""
    monkeypatch.chdir(tmp_path)
    store = ArtifactStore(Path("runs/artifacts"))
    make(store, "finetuned", "f", make(store, "student", "s", make(store, "teacher", "t")))
    return store


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Say:
    return lambda: capsys.readouterr().out.splitlines()


def kinds(store: ArtifactStore) -> list[str]:
    return [artifact.kind for artifact in store.all()]


def replace_teacher(store: ArtifactStore) -> None:
    store.obtain("teacher", "net", {}, KEYS["teacher"], _another_teacher, force=True)


def _another_teacher(work: Work) -> None:
    (work.folder / "model.safetensors").write_text("another")
    work.payload = "model.safetensors"


def cut_off(store: ArtifactStore, name: str = "net-ddd4") -> Path:
    partial = store.root / "student" / f"{name}.partial"
    partial.mkdir(parents=True)
    (partial / "checkpoint").write_bytes(b"state")
    return partial


def answer(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: word)


def test_list_names_the_damaged(store: ArtifactStore, lines: Say) -> None:
    """A file that was cut short is seen by its size."""
    replace_teacher(store)
    (store.root / "teacher" / "net-aaa1" / "model.safetensors").write_text("anoth")
    main([])
    teacher, student, tuned = (line for line in lines() if "net-" in line)
    assert teacher.split() == ["teacher", "net-aaa1", "-", "-", "-", "-", "-", "damaged"]
    assert not student.endswith("stale")  # a damaged teacher says nothing of its children
    assert not tuned.endswith("stale")


def test_list_passes_staleness_on(store: ArtifactStore, lines: Say) -> None:
    """The student of a replaced teacher is stale, and so is the fine-tuned network made from it."""
    main(["list"])
    assert not any("stale" in line for line in lines())

    replace_teacher(store)
    main(["list"])

    stale = [line.split()[0] for line in lines() if line.endswith("stale")]
    assert stale == ["student", "finetuned"]


def test_rm_takes_what_was_made_from_it(store: ArtifactStore, lines: Say) -> None:
    """Removing the student removes what was fine-tuned from it; the teacher stays."""
    assert main(["rm", "bbb2", "--yes"]) == 0

    assert kinds(store) == ["teacher"]
    assert lines()[-1] == "removed 2 folders"


def test_rm_takes_a_damaged_dependant(store: ArtifactStore) -> None:
    """A student whose weights are cut short still counts as made from its teacher."""
    (store.root / "student" / "net-bbb2" / "model.safetensors").write_text("")

    main(["rm", "aaa1", "--yes"])

    assert kinds(store) == []


@pytest.mark.parametrize(("word", "left"), [("y", []), ("n", ["teacher", "student", "finetuned"])])
def test_the_prompt(
    word: str, left: list[str], store: ArtifactStore, lines: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """y removes, anything else removes nothing."""
    answer(monkeypatch, word)

    assert main(["rm", "aaa1"]) == 0

    assert kinds(store) == left
    assert lines()[-1] == ("removed 3 folders" if word == "y" else "nothing removed")


def test_gc_takes_stale_damaged_and_cut_off(store: ArtifactStore, lines: Say) -> None:
    """Stale artifacts, a cut-off run, the rest of a replaced artifact; not the good teacher."""
    partial = cut_off(store)
    (store.root / "teacher" / "net-aaa1.replaced").mkdir()
    replace_teacher(store)
    (store.root / "teacher" / "net-aaa1.replaced").mkdir()

    main(["gc", "--yes"])

    assert kinds(store) == ["teacher"]
    assert not partial.exists()
    assert [p.name for p in (store.root / "teacher").iterdir()] == ["net-aaa1"]
    assert lines()[-1] == "removed 4 folders"
    main(["gc", "--yes"])
    assert lines() == ["nothing to remove"]


def test_gc_leaves_a_complete_run_to_the_next_command(store: ArtifactStore, lines: Say) -> None:
    """A `.partial` with a manifest only lacks its name."""
    partial = cut_off(store)
    (partial / "manifest.json").write_text("{}")

    main(["gc", "--yes"])

    assert lines() == ["nothing to remove"]
    assert partial.exists()


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(store: ArtifactStore, name: str) -> subprocess.Popen[str]:
    """Another process at work on an artifact, until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(store.root / ".locks" / f"{name}.lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_gc_does_not_see_a_run_in_progress(store: ArtifactStore, lines: Say) -> None:
    """While a process holds its lock, a `.partial` is no leftover."""
    partial = cut_off(store)
    process = hold(store, "student-ddd4")
    main(["gc", "--yes"])
    process.communicate()

    assert lines() == ["nothing to remove"]
    assert partial.exists()


def test_gc_skips_a_run_that_goes_on_at_the_prompt(
    store: ArtifactStore, lines: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command resumes the cut-off run while gc waits for the answer: it is left alone, the other goes."""
    partial, other = cut_off(store), cut_off(store, "net-eee5")
    started: list[subprocess.Popen[str]] = []

    def resume_and_say_yes(question: str) -> str:
        started.append(hold(store, "student-ddd4"))
        return "y"

    answer(monkeypatch, "y")
    monkeypatch.setattr("builtins.input", resume_and_say_yes)
    main(["gc"])
    started[0].communicate()

    assert partial.exists()
    assert not other.exists()
    assert lines()[-2:] == [
        f"left alone, another process is at work on it: {partial}",
        "removed 1 folder",
    ]
