"""Soft targets by several processes: whose samples are whose, the same file as by one process, going on after a cut."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdistill import load_config, make_soft_targets, ranks, train_teacher
from kdistill.artifacts import Artifact, Work
from kdistill.data import AllViews
from kdistill.errors import Interrupted
from kdistill.files import save_state
from kdistill.partial import Assistance
from kdistill.shards import Shard, files_of
from kdistill.stages.job import Job
from kdistill.stages.soft_targets import _generate
from kdistill.teachers import LiveTeacher
from tests.conftest import TINY
from tests.test_ranks import lines_until, ranks_of

WORDS = (*TINY, "soft_targets.dtype=float32", "teacher.epochs=1", "device.threads=1")
AsRank = Callable[[int, int], None]


@pytest.fixture
def in_turn(as_rank: AsRank, monkeypatch: pytest.MonkeyPatch) -> AsRank:
    """Pretend to be one rank after another, the main one first: what it tells is kept for the others."""
    told: list[torch.Tensor] = []

    def broadcast(values: torch.Tensor) -> torch.Tensor:
        if ranks.is_main():
            told[:] = [values.clone()]
        return told[0].clone()

    monkeypatch.setattr(ranks, "broadcast", broadcast)
    monkeypatch.setattr(ranks, "most", lambda count: count)
    return as_rank


# --- whose samples are whose ---


def test_shards_by_hand(tmp_path: Path, in_turn: AsRank) -> None:
    """Of seven samples the first rank has three, the second four."""
    found = []
    for rank in range(2):
        in_turn(rank, 2)
        found.append(Shard.cut(tmp_path, 7).mine.tolist())

    assert found == [[0, 1, 2], [3, 4, 5, 6]]


@pytest.mark.parametrize(("samples", "size"), [(5, 1), (5, 2), (7, 3), (2, 6), (1, 5)])
def test_shards_are_all_of_it(tmp_path: Path, in_turn: AsRank, samples: int, size: int) -> None:
    """Each sample once and in order; shards differ by one sample at most."""
    shards = []
    for rank in range(size):
        in_turn(rank, size)
        shards.append(Shard.cut(tmp_path, samples).mine.tolist())

    assert [position for shard in shards for position in shard] == list(range(samples))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_what_is_left_is_cut_anew(tmp_path: Path, in_turn: AsRank, caplog: pytest.LogCaptureFixture) -> None:
    """Two ranks did three of eight samples, one rank goes on; what a file that is damaged says is done again."""
    for rank, positions in enumerate([[0], [4, 5]]):
        in_turn(rank, 2)
        shard = Shard.cut(tmp_path, 8)
        shard.done[positions] = True
        shard.save()
    in_turn(0, 1)
    assert Shard.cut(tmp_path, 8).mine.tolist() == [1, 2, 3, 6, 7]
    assert [path.name for path in files_of(tmp_path)] == ["checkpoint-0", "checkpoint-1"]

    with (tmp_path / "checkpoint-1").open("ab") as file:
        file.write(b"x")
    assert Shard.cut(tmp_path, 8).mine.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert caplog.messages == [
        f"{tmp_path / 'checkpoint-1'} is damaged: what it says to be done is done again"
    ]


def test_what_an_older_version_began_is_done_again(
    tmp_path: Path, in_turn: AsRank, caplog: pytest.LogCaptureFixture
) -> None:
    """It counted batches of views."""
    in_turn(0, 1)
    save_state(tmp_path / "checkpoint-0", {"done": torch.ones(3, 8, dtype=torch.bool), "seconds": 1.0})
    assert Shard.cut(tmp_path, 8).mine.tolist() == list(range(8))
    assert caplog.messages == [
        f"{tmp_path / 'checkpoint-0'} is of another version of kdistill: what it says to be done is done again"
    ]


# --- the same file ---


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a trained teacher."""
    runs = tmp_path_factory.mktemp("runs")
    train_teacher(load_config(*WORDS, f"runs={runs}"))
    return runs


def generate(job: Job, folder: Path, size: int, in_turn: AsRank) -> bytes:
    """The file that `size` ranks leave behind."""
    folder.mkdir(exist_ok=True)
    for rank in range(size):
        in_turn(rank, size)
        work = Assistance(folder / "nowhere", source=folder) if rank else Work(folder)
        _generate(job, job.require_teacher(), work)
    return next(folder.glob("*.npy")).read_bytes()


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ("soft_targets.views=3", (2, 3, 4)),
        ("soft_targets.views=2 soft_targets.top_k=2", (2, 3)),
        ("soft_targets.views=1 soft_targets.batch_size=128", (2, 5)),  # three batches
    ],
)
def test_any_number_of_ranks_writes_the_same_file(
    teacher: Path, tmp_path: Path, in_turn: AsRank, words: str, sizes: tuple[int, ...]
) -> None:
    """Bit for bit; with uneven parts, and with ranks that have nothing to do."""
    job = Job.open(load_config(*WORDS, f"runs={teacher}", *words.split()))
    alone = generate(job, tmp_path / "1", 1, in_turn)

    assert not (tmp_path / "nowhere").exists()
    for size in sizes:
        assert generate(job, tmp_path / str(size), size, in_turn) == alone


@pytest.mark.parametrize("is_stopped", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_was_cut_off_goes_on_with_any_number_of_ranks(
    teacher: Path,
    tmp_path: Path,
    in_turn: AsRank,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    size: int,
    is_stopped: bool,
) -> None:
    """Of three shards of 96 samples one is finished, one stopped or killed, one not begun."""
    monkeypatch.setattr("kdistill.data.allviews.PART_BATCHES", 1)  # 11 samples
    monkeypatch.setattr("kdistill.stages.soft_targets.CHECKPOINT_SECONDS", 0)
    job = Job.open(load_config(*WORDS, f"runs={teacher}"))
    alone = generate(job, tmp_path / "1", 1, in_turn)
    real, calls, images = LiveTeacher.outputs, 0, 0
    cut_at = 1 + 9 + 1 + 5  # each rank tries the teacher on one image, to learn the number of outputs

    def cut_off(self: LiveTeacher, asked: torch.Tensor) -> object:
        nonlocal calls, images
        calls, images = calls + 1, images + len(asked)
        if calls == cut_at and not is_stopped:
            raise KeyboardInterrupt
        if calls == cut_at:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, asked)

    monkeypatch.setattr(LiveTeacher, "outputs", cut_off)
    with pytest.raises(Interrupted if is_stopped else KeyboardInterrupt):
        generate(job, tmp_path / "cut", 3, in_turn)
    in_turn(0, 1)
    left = Shard.cut(tmp_path / "cut", 288).mine
    # the stopped rank keeps all samples whose images 5 x 32 answers speak of, the killed one parts of 11 after four
    shown = torch.stack([job.teacher_views.window(torch.arange(96, 192), view) for view in range(3)], dim=1)
    images_up_to = torch.tensor([len(windows.unique()) for windows in shown]).cumsum(0)
    kept = int((images_up_to <= 160).sum()) if is_stopped else int((images_up_to <= 128).sum()) // 11 * 11
    assert kept > 40
    assert left.tolist() == list(range(96 + kept, 288))
    images = 0
    with caplog.at_level("INFO", logger="kdistill"):
        assert generate(job, tmp_path / "cut", size, in_turn) == alone

    every = AllViews(job.transfer_set, job.teacher_views, 3)
    assert images - size == sum(len(seen) for seen in every.read([left]))
    assert f"soft targets: going on at sample {288 - len(left) + 1} of 288" in caplog.text


def test_nothing_is_left_but_the_manifest(
    teacher: Path, tmp_path: Path, in_turn: AsRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed at the very end asks the teacher about nothing."""
    job = Job.open(load_config(*WORDS, f"runs={teacher}"))
    alone = generate(job, tmp_path / "a", 2, in_turn)
    real = LiveTeacher.outputs

    def only_one(self: LiveTeacher, asked: torch.Tensor) -> object:
        assert len(asked) == 1, "asked again"  # which shows the number of outputs
        return real(self, asked)

    monkeypatch.setattr(LiveTeacher, "outputs", only_one)
    assert generate(job, tmp_path / "a", 3, in_turn) == alone


def test_a_file_that_is_gone_is_begun_anew(teacher: Path, tmp_path: Path, in_turn: AsRank) -> None:
    """What the ranks say to be done is done in that file alone."""
    job = Job.open(load_config(*WORDS, f"runs={teacher}"))
    alone = generate(job, tmp_path / "a", 2, in_turn)
    (tmp_path / "a" / "logits.npy").unlink()

    assert generate(job, tmp_path / "a", 1, in_turn) == alone
    assert [path.name for path in files_of(tmp_path / "a")] == ["checkpoint-0"]


# --- several processes ---


def words(runs: Path, teacher: Path, *more: str) -> list[str]:
    (folder,) = (teacher / "artifacts" / "teacher").iterdir()
    common = [word for word in WORDS if not word.startswith("teacher")]
    return [*common, "teacher=folder", f"teacher.weights={folder}", f"runs={runs}", *more]


def start(*settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kdistill", "soft-targets", *settings]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def made(runs: Path) -> Artifact:
    (folder,) = (runs / "artifacts" / "soft-targets").iterdir()
    return Artifact(folder)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_make_the_artifact_of_one(teacher: Path, tmp_path: Path, processes: int) -> None:
    """The same key and the same bytes; one log."""
    settings = words(tmp_path / "alone", teacher, "soft_targets.batch_size=4")
    alone = make_soft_targets(load_config(*settings))
    process = start(*settings, f"runs={tmp_path / 'several'}", f"device.processes={processes}")
    _, err = process.communicate(timeout=300)
    several = made(tmp_path / "several")

    parts = -(-288 // processes) // 22 + 1  # of 22 samples, which show about 64 images
    reached = [10 * (10 * min(22 * n, 288 // processes) // (288 // processes)) for n in range(1, parts + 1)]
    assert [line.split("  ")[0] for line in err.splitlines()] == [f"soft targets {n}%" for n in reached]
    assert several.folder.name == alone.folder.name
    assert several.digest == alone.digest
    assert sorted(path.name for path in several.folder.iterdir()) == ["logits.npy", "manifest.json"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for the processes in /proc")
def test_a_killed_process_ends_the_job_which_goes_on(teacher: Path, tmp_path: Path) -> None:
    """One message; then Ctrl-C, which all hear; then alone, to the same file as without all that."""
    settings = words(tmp_path / "cut", teacher, "soft_targets.views=100", "dataset.augment.erase=2")
    process = start(*settings, "device.processes=2")
    list(lines_until(process, "soft targets 10%"))
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert [line for line in err.splitlines() if "images/s" not in line] == [
        "process 1 of 2, counted from 0, was ended by SIGKILL. Give the same command again: it goes on from the state"
        " that was saved last"
    ]

    process = start(*settings, "device.processes=2")
    assert "soft targets: going on at sample" in "".join(lines_until(process, "images/s"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped; the state is saved: give the same command again to go on"

    finished = make_soft_targets(load_config(*settings))
    straight = make_soft_targets(load_config(*settings, f"runs={tmp_path / 'straight'}"))
    assert finished.folder == made(tmp_path / "cut").folder
    assert finished.digest == straight.digest
