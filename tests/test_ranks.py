"""Several processes: their shares, what they agree on, the same result as one process, and how they end."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kdistill
from kdistill import launch, ranks
from kdistill.artifacts import Artifact
from kdistill.config.schema import Config
from kdistill.errors import ConfigError, DataError, RunError
from kdistill.stages.checks import check_shares
from kdistill.stages.job import Job
from tests.conftest import TINY


def torchrun(logs: Path) -> tuple[str, ...]:
    """Starts two processes; `logs` is for what it writes itself, which it leaves behind."""
    program = (sys.executable, "-m", "torch.distributed.run")
    return (*program, "--standalone", "--nproc-per-node=2", f"--log-dir={logs}")


# --- alone, and pretending not to be ---


def test_alone_everything_is_as_it_was() -> None:
    """One process has all of the work, and decides alone."""
    rows, terms, module = torch.arange(3), [torch.tensor(1.0)], torch.nn.Linear(1, 1)

    assert ranks.share(rows) is not None
    assert torch.equal(ranks.share(rows), rows)
    assert ranks.gather(rows) is rows
    assert ranks.means(terms) is terms
    assert ranks.wrap(module) is module
    assert (ranks.size(), ranks.rank(), ranks.weight(3)) == (1, 0, 1.0)
    assert ranks.agree(True)
    assert not ranks.decided(False)
    assert list(ranks.in_step(iter("ab"))) == ["a", "b"]


def test_steps_end_when_one_is_to_stop() -> None:
    """Asked before each step; what was not begun is not done."""
    stop: list[str] = []
    steps = ranks.in_step(iter("abc"), stop)
    assert next(steps) == "a"
    stop.append("now")
    assert list(steps) == []


@pytest.mark.parametrize(("count", "size"), [(8, 2), (7, 3), (33, 4), (5, 5)])
def test_shares_are_all_of_it_in_order(count: int, size: int, as_rank: Callable) -> None:
    """Consecutive, each sample once, sizes that differ by one at most, and weights of mean 1."""
    shares, weights = [], []
    for rank in range(size):
        as_rank(rank, size)
        shares.append(ranks.share(torch.arange(count)))
        weights.append(ranks.weight(count))

    assert torch.equal(torch.cat(shares), torch.arange(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sum(weights) / size == pytest.approx(1)


def test_too_little_to_share(as_rank: Callable) -> None:
    """Fewer samples than processes."""
    as_rank(0, 4)
    with pytest.raises(DataError) as error:
        ranks.share(torch.arange(3))

    assert str(error.value) == "3 samples or batches cannot be shared among 4 processes; use fewer"


def test_no_readable_image(as_rank: Callable) -> None:
    """The other processes would wait for this one for ever."""
    ranks.refuse_idle()
    as_rank(1, 2)
    with pytest.raises(DataError, match="none of the images that process 1 has of a batch can be decoded"):
        ranks.refuse_idle()


# --- what is refused ---


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "device.processes=64 student.batch_size=63",
            "student.batch_size=63 is too small to be shared by device.processes=64",
        ),
        (
            "device.processes=3 student.optim.accumulate=2",
            "student.batch_size=32 cannot be split into student.optim.accumulate=2 equal parts for each of"
            " device.processes=3; a multiple of 6 can",
        ),
    ],
)
def test_batches_that_cannot_be_shared(words: str, text: str, tiny: Callable[..., Config]) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError) as error:
        check_shares(Job.open(tiny("teacher.batch_size=128", "finetune.batch_size=128", *words.split())))

    assert str(error.value) == text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["loss=crd", "teacher.epochs=1"],
            "crd remembers every image, and processes would each remember their own; use device.processes=1",
        ),
        (
            ["loss=rkd", "student.batch_size=4"],
            "rkd compares the samples of a batch: it needs at least 3 of them at once, got student.batch_size=4"
            " in 2 parts (device.processes=2)",
        ),
        (
            ["-m", "student.seed=0,1"],
            "-m goes with device.processes=1 alone: give the command once for each job instead",
        ),
    ],
)
def test_refused_before_a_process_starts(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command itself, in one line."""
    from kdistill.cli import main

    code = main(["run", *TINY, f"runs={tmp_path}", "device.processes=2", *words])

    assert (code, capsys.readouterr().err) == (2, text + "\n")


def test_one_device_for_several(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process needs a GPU of its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for words, text in (
        (
            ["device.name=cuda:1", "device.processes=2"],
            "device.name=cuda:1 is one device, and device.processes=2 need one each; use device=cuda or device=cpu",
        ),
        (
            ["device.name=cuda", "device.processes=4"],
            "device.processes=4 need 4 cuda devices on this machine, and there are 2",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            Job.open(tiny("device.precision=fp32", *words))
        assert str(error.value) == text


def test_only_the_command_starts_processes(tiny: Callable[..., Config]) -> None:
    """A function is called in the process that there is."""
    with pytest.raises(ConfigError) as error:
        kdistill.distill(tiny("device.processes=2"))

    assert str(error.value) == (
        "device.processes=2: only the command `kdistill` starts processes; from Python use device.processes=1"
    )


def test_torchrun_says_how_many(tiny: Callable[..., Config], as_rank: Callable) -> None:
    """The number that torchrun started counts, also for the key; another one is refused."""
    two = Job.open(tiny("device.processes=2")).identity.teacher
    as_rank(0, 2)

    assert Job.open(tiny()).identity.teacher == two
    with pytest.raises(ConfigError) as error:
        Job.open(tiny("device.processes=4"))
    assert str(error.value) == "device.processes=4, but torchrun started 2; leave device.processes out"


# --- how they end ---


def failure(exitcode: int, message: str = launch.NO_MESSAGE) -> Any:
    return SimpleNamespace(exitcode=exitcode, message=message, error_file_data={"message": message})


@pytest.mark.parametrize(
    ("failures", "text"),
    [
        ({1: failure(-9), 0: failure(75)}, "was ended by SIGKILL"),
        ({1: failure(-9), 0: failure(-15)}, "was ended by SIGKILL"),
        (
            {0: failure(75), 1: failure(1, "RuntimeError: out of memory")},
            "failed: RuntimeError: out of memory",
        ),
        (
            {0: failure(75), 1: failure(-15, "RuntimeError: out of memory")},
            "failed: RuntimeError: out of memory",
        ),
        ({1: failure(75)}, "lost the others"),
    ],
)
def test_one_message_names_the_cause(failures: dict[int, Any], text: str) -> None:
    """Not the processes that ended because another one had."""
    with pytest.raises(RunError) as error:
        launch._answer(failures, 2)

    assert str(error.value) == (
        f"process 1 of 2, counted from 0, {text}. Give the same command again: it goes on from the state that was"
        " saved last"
    )


@pytest.mark.parametrize("failures", [{0: failure(2), 1: failure(-15)}, {1: failure(2)}])
def test_what_the_main_rank_has_said_is_not_said_again(failures: dict[int, Any]) -> None:
    """Its exit code is the command's."""
    assert launch._answer(failures, 2) == 2


# --- two processes ---


def finish(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of `training_of_ranks.py`: alone, then of both ranks."""
    alone, two = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    script = ("-m", "tests.training_of_ranks")
    finish(sys.executable, *script, alone)
    finish(*torchrun(alone), *script, two)
    return [torch.load(file, weights_only=True) for file in (alone / "0.pt", two / "0.pt", two / "1.pt")]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["kd", "unequal shares", "accumulate", "mixing", "feature"])
def test_two_train_as_one(case: str, results: list[dict[str, Any]]) -> None:
    """The same batches in shares: without batch norm the same weights and losses, but for rounding."""
    one, main, other = (result[case] for result in results)

    for name, value in one.items():
        torch.testing.assert_close(main[name], value, rtol=1e-5, atol=1e-5)
        assert torch.equal(main[name], other[name])


@pytest.mark.slow
def test_each_sample_is_predicted_once(results: list[dict[str, Any]]) -> None:
    """33 samples in batches of 8, and 3 in batches of 8: all logits and labels, in the order of the split."""
    for case, count in (("predicted", 33), ("few", 3)):
        one, main, other = (result[case] for result in results)
        assert len(main[0]) == count
        for expected, a, b in zip(one, main, other, strict=True):
            torch.testing.assert_close(a, expected)
            assert torch.equal(a, b)


@pytest.mark.slow
def test_batch_norm_ends_with_the_same_statistics(results: list[dict[str, Any]]) -> None:
    """Each process has seen other samples; the main one's statistics count."""
    _, main, other = (result["batch norm"] for result in results)

    assert main
    assert all(torch.equal(main[name], other[name]) for name in main)


@pytest.mark.slow
def test_what_two_tell_each_other(results: list[dict[str, Any]]) -> None:
    """Shares, rows of different numbers, means, votes."""
    _, main, other = results

    assert [part["share"].tolist() for part in (main, other)] == [[0, 1], [2, 3, 4]]
    assert [part["weight"] for part in (main, other)] == [0.8, 1.2]
    for result in (main, other):
        assert result["gathered"].tolist() == [0, 1, 0, 1, 2]
        assert result["means"] == [1.5, 2.0]
        assert result["agree"] == [False, True, True]
        assert result["decided"] == [False, True]
        assert result["stopped"] == []
    assert (main["in step"], other["in step"]) == (["a", None, None], ["a", "b", "c"])


def start(runs: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kdistill", "run", *TINY, f"runs={runs}", "device.processes=2", *words]
    (runs / "tmp").mkdir(parents=True, exist_ok=True)
    variables = os.environ | {"TMPDIR": str(runs / "tmp")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids, in the order of the ranks."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        if parent == process.pid:
            found[next(int(v[5:]) for v in environment if v.startswith("RANK="))] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def lines_until(process: subprocess.Popen[str], pattern: str) -> Iterator[str]:
    assert process.stderr is not None
    for line in process.stderr:
        yield line
        if re.search(pattern, line):
            return


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for the processes in /proc")
def test_a_killed_process_ends_the_command_which_goes_on_when_given_again(tmp_path: Path) -> None:
    """One message, no traceback; then Ctrl-C, which all agree on; then the run to its end."""
    long = ("teacher.epochs=30",)
    process = start(tmp_path, *long)
    list(lines_until(process, "teacher epoch 2/"))
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    said = [line for line in err.splitlines() if not line.startswith("teacher epoch")]
    assert process.returncode == 1
    assert said == [
        "process 1 of 2, counted from 0, was ended by SIGKILL. Give the same command again: it goes on from the state"
        " that was saved last"
    ]
    assert not list((tmp_path / "tmp").glob("tmp*"))  # where Python makes what is thrown away

    process = start(tmp_path, *long)
    assert "going on at epoch" in "".join(lines_until(process, "teacher epoch"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert re.search(r"^stopped at epoch \d+/30 step \d+/9; the state is saved", err.splitlines()[-1])

    process = start(tmp_path, *long)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "going on at epoch" in err
    assert err.count("fine-tuning epoch 1/1") == 1
    assert out.count("synthetic: 64 test images") == 1
    assert len(list(tmp_path.glob("run/*/result.json"))) == 3
    assert not list(tmp_path.glob("artifacts/*/*.partial"))


FAILING = """
import os
import kdistill

@kdistill.register_loss("failing")
def failing(student_logits, teacher_logits, T):
    if os.environ.get("RANK") == "{rank}" and len(student_logits) > 4:  # not when it is tried out
        raise ValueError("no more memory")
    return (student_logits - teacher_logits).square().mean()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_alone_fails(rank: int, tmp_path: Path) -> None:
    """Its message is told once, whichever it is."""
    own = tmp_path / "own.py"
    own.write_text(FAILING.format(rank=rank))
    process = start(
        tmp_path / "runs", "teacher.epochs=1", "--trust", str(own), "loss=failing", "soft_targets=live"
    )
    _, err = process.communicate(timeout=300)
    said = [line for line in err.splitlines() if "epoch" not in line]

    assert process.returncode == 1
    assert err.count("ValueError: no more memory") == 1
    assert "gloo" not in err
    if rank:
        assert said == [
            "process 1 of 2, counted from 0, failed: ValueError: no more memory. Give the same command again: it goes"
            " on from the state that was saved last"
        ]


@pytest.mark.slow
def test_torchrun_starts_the_same(tmp_path: Path) -> None:
    """The command under torchrun makes what `device.processes=2` would, once."""
    runs = tmp_path / "runs"
    finish(*torchrun(tmp_path), "-m", "kdistill", "train-teacher", *TINY, f"runs={runs}", "teacher.epochs=1")

    (folder,) = runs.glob("artifacts/teacher/*")
    assert Artifact(folder).manifest["processes"] == 2
    assert Artifact(folder).manifest["made_from"]["processes"] == 2
    assert len(list(runs.glob("train-teacher/*"))) == 1


@pytest.mark.slow
def test_a_mistake_under_torchrun_is_told_once(tmp_path: Path) -> None:
    """By the main process, before torchrun's own report."""
    command = [*torchrun(tmp_path), "-m", "kdistill", "distill", *TINY, f"runs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert done.returncode == 1
    assert done.stderr.count("the teacher resnet8 is not trained yet") == 1
