"""What several jobs of a sweep use is made before they start side by side, once, and told of."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from kdistill.artifacts import Artifact
from kdistill.config.schema import Config
from kdistill.errors import Interrupted
from kdistill.logs import ConsoleHandler
from kdistill.stages import parts, sharing
from kdistill.stages.distill import distill
from kdistill.stages.job import Job
from kdistill.stages.parts import parts_of, teaching
from kdistill.stages.sharing import make_shared
from kdistill.stages.train_teacher import train_teacher
from tests.cases.stages import at_stage, rebuild

Tiny = Callable[..., Config]
ASSISTANT = ("assistant=resnet8", "assistant.params.width=6", "assistant.epochs=1")
WIDE, NARROW = "student.params.channels=[8]", "student.params.channels=[4]"


def share(*configs: Config, folder: Path) -> None:
    (folder / "sweep").mkdir(exist_ok=True)
    make_shared(configs, [()] * len(configs), folder / "sweep")


def made(folder: Path) -> list[str]:
    """Kinds of the artifacts that are there."""
    return sorted(path.parent.parent.name for path in folder.glob("runs/artifacts/*/*/manifest.json"))


# --- the parts of a run ---


def test_a_chains_parts_stand_in_their_order(tiny: Tiny) -> None:
    job = Job.open(tiny(*ASSISTANT))

    assert [(part.kind, part.model) for part in parts_of(job)] == [
        ("teacher", "resnet8"),
        ("soft-targets", "resnet8"),
        ("student", "resnet8"),
        ("soft-targets", "resnet8"),
        ("student", "cnn"),
        ("finetuned", "cnn"),
    ]
    assert list(teaching(job)) == list(parts_of(job))[:4]
    assert len({part.key for part in parts_of(job)}) == 6


def test_parts_are_found_once_they_are_made(tiny: Tiny) -> None:
    """Each is made from those before it; with force=true none is found."""
    config = tiny("teacher.epochs=1", "student.epochs=1")
    assert [part.found for part in parts_of(Job.open(config))] == [None] * 4
    artifacts = [part.make() for part in parts_of(Job.open(config))]

    assert [part.found for part in parts_of(Job.open(config))] == artifacts
    assert [artifact.kind for artifact in artifacts] == list(parts.MAKERS)
    assert [artifact.key for artifact in artifacts] == [part.key for part in parts_of(Job.open(config))]
    assert all(part.found is None for part in parts_of(Job.open(config.model_copy(update={"force": True}))))


# --- what is shared ---


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        (["loss.T=1"], ["loss.T=4"], ["soft-targets", "teacher"]),
        (
            [WIDE, *ASSISTANT],
            [NARROW, *ASSISTANT],
            ["soft-targets"] * 2 + ["student", "teacher"],
        ),
        (["soft_targets.views=1"], ["soft_targets.views=2"], ["teacher"]),
        (["loss=ce"], ["loss=kd"], ["teacher"]),
        (["finetune.epochs=1"], ["finetune.epochs=2"], ["soft-targets", "student", "teacher"]),
        (["teacher.seed=0"], ["teacher.seed=1"], []),
    ],
)
def test_what_two_runs_use_is_made(
    first: list[str], second: list[str], kinds: list[str], tiny: Tiny, tmp_path: Path
) -> None:
    short = ["teacher.epochs=1", "student.epochs=1"]
    share(tiny(*short, *first), tiny(*short, *second), folder=tmp_path)

    assert made(tmp_path) == kinds


def test_distill_shares_soft_targets_alone(tiny: Tiny, tmp_path: Path) -> None:
    """Those of its own step: what comes before in a chain is there already, or was refused."""
    words = ["teacher.epochs=1", *ASSISTANT]
    first, second = (at_stage(tiny(*words, size), "distill") for size in (WIDE, NARROW))
    step = Job.open(first).chain[0]
    train_teacher(step)
    (soft,) = (part for part in teaching(step) if part.kind == "soft-targets")
    distill(step)
    step.store.remove(soft.make().folder)
    share(first, second, folder=tmp_path)

    assert made(tmp_path) == ["soft-targets", "student", "teacher"]
    assert [part.found is None for part in teaching(Job.open(second))] == [False, True, False, False]


def test_each_is_told_once_and_of_the_first_job(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """On the console and in the sweep's log, each once, though a command before has set up logging in this process.

    The second time there is nothing to tell, and no file.
    """
    left_over = ConsoleHandler()
    logging.getLogger().addHandler(left_over)
    request.addfinalizer(lambda: logging.getLogger().removeHandler(left_over))
    short = ["teacher.epochs=1", "student.epochs=1"]
    configs = [
        tiny(*short, *words) for words in (["teacher.seed=1"], ["loss.T=1"], ["loss.T=2"], ["loss.T=3"])
    ]
    share(*configs, folder=tmp_path)
    lines = capsys.readouterr().err.splitlines()

    assert lines[0] == "made first, for several jobs: teacher resnet8, soft-targets resnet8"
    assert [line.split()[:3] for line in lines[1:]][:2] == [
        ["teacher", "epoch", "1/1"],
        ["soft", "targets", "100%"],
    ]
    log = tmp_path / "sweep" / "kdistill.log"
    assert [line.split(" INFO kdistill: ")[1] for line in log.read_text().splitlines()] == lines
    log.unlink()
    share(*configs, folder=tmp_path)
    assert capsys.readouterr().err == ""
    assert not log.exists()


def test_what_is_stale_is_made_anew_and_named_once(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Looking for it and making it both come upon it."""
    first, second = (tiny("teacher.epochs=1", "student.epochs=1", f"loss.T={T}") for T in (1, 2))
    teacher, soft, *_ = parts_of(Job.open(first))
    teacher.make()
    before = soft.make().parents["teacher"]["digest"]
    rebuild(teacher.make().folder)
    capsys.readouterr()
    share(first, second, folder=tmp_path)
    said = capsys.readouterr().err
    after = soft.job.find_soft_targets({})

    assert said.count("is stale") == 1
    assert "made first, for several jobs: soft-targets resnet8\n" in said
    assert after is not None
    assert after.parents["teacher"]["digest"] == Artifact(teacher.make().folder).digest != before


def test_what_fails_is_left_to_the_jobs(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, the traceback in the log; what other jobs use is made."""
    short = ["teacher.epochs=1", "student.epochs=1"]
    bad = [tiny(*short, "teacher.optim.lr=1e30", f"loss.T={T}") for T in (1, 2)]
    good = [tiny(*short, f"loss.T={T}") for T in (1, 2)]
    share(*bad, *good, folder=tmp_path)
    said = capsys.readouterr().err

    assert made(tmp_path) == ["soft-targets", "teacher"]
    assert "error: the loss is not finite" in said
    assert ". The jobs that need it try again\n" in said
    assert "Traceback" not in said
    assert "Traceback" in (tmp_path / "sweep" / "kdistill.log").read_text()


def test_a_stop_ends_it(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(job: Job) -> None:
        raise Interrupted("stopped; the state is saved: give the same command again to go on")

    monkeypatch.setitem(parts.MAKERS, "teacher", stopped)
    with pytest.raises(Interrupted):
        share(tiny("loss.T=1"), tiny("loss.T=2"), folder=tmp_path)


def test_a_tracker_is_told_of_it(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run of its own, in the sweep's folder: the jobs do not train the teacher, and tell nothing of it."""
    pytest.importorskip("tensorboard")
    config = tiny("tracker=tensorboard", "teacher.epochs=1")
    share(config, config.model_copy(update={"stage": "run"}), folder=tmp_path)

    assert len(list((tmp_path / "sweep" / sharing.SHARED).glob("events.out.tfevents.*"))) == 1
