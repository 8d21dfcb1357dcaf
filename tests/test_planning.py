"""`kdistill plan`: every artifact of a run is named, what it takes is its own work's, advice follows from numbers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from kdistill import completion, distill, run, train_teacher
from kdistill.cli import main
from kdistill.config.schema import Config
from kdistill.partial import Work
from kdistill.planning import advice, duration
from kdistill.stages.estimates import Estimate, estimates, speed_up
from kdistill.trial import pace
from tests.conftest import TINY

Tiny = Callable[..., Config]
MB = 10**6


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps are measured, however fast they are."""
    monkeypatch.setattr("kdistill.trial.SECONDS", 0.0)


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Lines that `kdistill plan` prints for the tiny pipeline with these further words."""

    def lines(*words: str) -> list[str]:
        assert main(["plan", *TINY, f"runs={tmp_path / 'runs'}", *words]) == 0
        return capsys.readouterr().out.splitlines()

    return lines


def counts(found: list[Estimate]) -> list[tuple[str, str, int]]:
    return [(e.part.kind, e.part.model, e.count) for e in found]


def costs(config: Config) -> dict[str, Estimate]:
    return {e.part.kind: e for e in estimates([config])}


# --- the table ---


def test_every_stage_has_a_line(plan: Callable[..., list[str]]) -> None:
    """288 images in batches of 32: 9 steps an epoch; the total is the last line.

    Of a sample's three views, each one of 18 windows, 18 (1 - (17/18)^3) = 2.836 differ: 816.8 images, 26 batches.
    """
    heading, *rows, total = plan()
    cells = [row.split() for row in rows]

    assert heading.split()[:5] == ["stage", "model", "loss", "count", "steps"]
    assert [row[:5] for row in cells] == [
        ["teacher", "resnet8", "-", "1", "27"],
        ["soft-targets", "resnet8", "-", "1", "26"],
        ["student", "cnn", "kd", "1", "27"],
        ["finetuned", "cnn", "kd", "1", "9"],
    ]
    assert total.startswith("total: ")
    assert "memory" in total


def test_nothing_is_written_and_no_random_number_drawn(
    plan: Callable[..., list[str]], tmp_path: Path
) -> None:
    """There is no runs folder afterwards, and torch's generator stands where it stood."""
    before = torch.get_rng_state()
    plan()

    assert list(tmp_path.iterdir()) == []
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_there_is_done(plan: Callable[..., list[str]], tiny: Tiny) -> None:
    """With a teacher only the rest is left; after the run nothing; `force=true` makes all of it again."""
    train_teacher(tiny())
    assert ["done" in line for line in plan()[1:-1]] == [True, False, False, False]
    run(tiny())
    lines = plan()
    assert ["done" in line for line in lines[1:-1]] == [True] * 4
    assert lines[-1].startswith("total: 0.0 s; ")
    assert ["done" in line for line in plan("student.seed=1")[1:-1]] == [True, True, False, False]
    assert not any("done" in line for line in plan("force=true"))


def test_a_sweep_makes_shared_artifacts_once(plan: Callable[..., list[str]]) -> None:
    """Jobs that differ in seeds and T are measured together; those with and without a teacher apart."""
    rows = [line.split()[:4] for line in plan("-m", "loss=kd,ce", "student.seed=0,1,2")[1:-1]]

    assert rows == [
        ["teacher", "resnet8", "-", "1"],
        ["soft-targets", "resnet8", "-", "1"],
        ["student", "cnn", "kd", "3"],
        ["finetuned", "cnn", "kd", "3"],
        ["student", "cnn", "ce", "3"],
        ["finetuned", "cnn", "ce", "3"],
    ]
    assert [line.split()[3] for line in plan("-m", "loss.T=1,2,4")[1:-1]] == ["1", "1", "3", "3"]


# --- all kinds of runs ---


def test_every_step_of_a_chain(tiny: Tiny) -> None:
    """Teacher, its soft targets, the assistant, the assistant's soft targets, two generations of students."""
    config = tiny("assistant=resnet8", "assistant.params.width=6", "generations=2", "finetune.epochs=0")

    assert counts(estimates([config])) == [
        ("teacher", "resnet8", 1),
        ("soft-targets", "resnet8", 1),
        ("student", "resnet8", 1),
        ("soft-targets", "resnet8", 1),
        ("student", "cnn", 1),
        ("soft-targets", "cnn", 1),
        ("student", "cnn", 1),
    ]


def test_members_of_an_ensemble(tiny: Tiny) -> None:
    """Each is trained and asked for itself; two that differ in the seed alone are measured as one."""
    members = "{a: {name: cnn}, b: {name: cnn, seed: 1}, c: {name: mlp}}"
    params = f"+teacher.params={{members: {members}, average: logits, weights: null}}"
    found = counts(estimates([tiny("teacher=ensemble", "~teacher.params", params)]))

    assert found == [
        ("teacher", "cnn", 2),
        ("soft-targets", "cnn", 2),
        ("teacher", "mlp", 1),
        ("soft-targets", "mlp", 1),
        ("student", "cnn", 1),
        ("finetuned", "cnn", 1),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("soft_targets=live",),
        ("loss=simkd",),
        ("loss=crd", "feature=[]"),
        ("loss=dml",),
        ("mixing=mixup",),
        ("dataset=synthetic_multilabel", "dataset.augment.crop=0"),
        ("teacher.input.augment=false", "student.optim.ema=0.9", "student.optim.accumulate=2"),
    ],
    ids=" ".join,
)
def test_steps_are_the_run_s_own(tiny: Tiny, words: tuple[str, ...]) -> None:
    """Whatever a run can do is tried; live teachers take their part of a step."""
    config = tiny(*words)
    found = costs(config)
    asks = "soft-targets" not in found and config.loss.kind != "dml"

    assert all(e.cost.seconds and e.cost.memory for e in found.values())
    assert (found["student"].cost.asking_seconds > 0) == asks


def test_the_time_of_scikit_learn_is_not_known(plan: Callable[..., list[str]]) -> None:
    """Neither how long an estimator fits nor how fast it answers: the total is a lower bound, and says so."""
    pytest.importorskip("skops")
    forest = ("teacher=random_forest", "~teacher.params", "+teacher.params={n_estimators: 5}")
    teacher, soft_targets, *_, total = plan(*forest)[1:]

    assert "not known" in teacher
    assert "not known" in soft_targets
    assert total.startswith("total: more than ")


# --- numbers ---


def test_soft_targets_on_disk(tiny: Tiny) -> None:
    """3 views x 288 samples x 4 classes x 2 bytes, 4 bytes in float32; 1 view where it is set."""
    assert costs(tiny())["soft-targets"].cost.kept == 3 * 288 * 4 * 2 == 6912
    assert costs(tiny("soft_targets.dtype=float32"))["soft-targets"].cost.kept == 13824
    assert costs(tiny("soft_targets.views=1"))["soft-targets"].cost.kept == 2304


def test_networks_and_checkpoints_on_disk(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights take what the trained student's tensors take, a checkpoint what the run writes, but for its history."""
    sizes: list[int] = []
    save = Work.save_checkpoint

    def saved(work: Work, state: dict[str, object]) -> None:
        save(work, state)
        sizes.append((work.folder / "checkpoint").stat().st_size)

    planned = costs(tiny())["student"].cost
    train_teacher(tiny())
    monkeypatch.setattr(Work, "save_checkpoint", saved)
    student = distill(tiny())
    header = student.payload_bytes - planned.kept

    assert 0 < header < 2000
    assert planned.checkpoint == pytest.approx(max(sizes), rel=0.1)


def test_predictions_on_disk(plan: Callable[..., list[str]], tiny: Tiny) -> None:
    """Those of each network, but for the file's header; the table's column is both."""
    planned = costs(tiny())
    scores = run(tiny())
    files = {
        name: Path(scores[name]["predictions"]) / "predictions.safetensors" for name in ("teacher", "student")
    }
    headers = {name: file.stat().st_size - planned[name].cost.judged for name, file in files.items()}

    assert all(0 < size < 1000 for size in headers.values())
    assert planned["soft-targets"].cost.judged == 0
    student = planned["student"].cost
    line = plan("student.seed=1")[3].split()
    assert line[-2] == f"{(student.kept + student.judged) / MB:.2f}"


@pytest.mark.parametrize(
    ("device", "processes", "threads", "faster"),
    [("cuda", 4, None, 4), ("cpu", 2, None, 1), ("cpu", 2, 1, 2), ("cpu", 4, 1, 4), ("cpu", 16, 1, 8)],
)
def test_processes_share_the_time(
    device: str,
    processes: int,
    threads: int | None,
    faster: float,
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU each; or threads of 8 cores, of which a trial has those of one process, or all of them."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads or 8)
    settings = tiny().device.model_copy(update={"processes": processes, "threads": threads})

    assert speed_up(settings, torch.device(device)) == faster


def test_a_plan_of_several_processes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps stay as many, and each takes a part of the time."""
    monkeypatch.setattr("kdistill.stages.estimates.speed_up", lambda *device: 1e9)
    found = costs(tiny("device.processes=2"))

    assert [found[kind].cost.steps for kind in ("teacher", "soft-targets", "student")] == [27, 26, 27]
    assert all(0 < (e.cost.seconds or 0) < 1e-6 for e in found.values())


def test_seconds_are_steps_validations_and_checkpoints(tiny: Tiny) -> None:
    """At least the steps of all epochs; with none, as for published weights, no step is taken."""
    cost = costs(tiny())["teacher"].cost
    assert cost.seconds is not None
    assert cost.seconds >= 26 * cost.step_seconds > 0
    untrained = costs(tiny("teacher.epochs=0"))["teacher"].cost
    assert (untrained.steps, untrained.step_seconds, untrained.checkpoint) == (0, 0, 0)


def test_pace_takes_one_step_to_warm_up_and_two_to_measure() -> None:
    """Of endless steps three are taken."""
    taken = count()
    pace(taken, torch.device("cpu"))
    assert next(taken) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.4, "59.4 s"),
        (75, "1 min 15 s"),
        (3599.8, "1 h 0 min"),
        (4320, "1 h 12 min"),
        (100_000, "1 d 4 h"),
    ],
)
def test_durations_for_a_reader(seconds: float, text: str) -> None:
    """Two units, the larger first."""
    assert duration(seconds) == text


# --- what would make it fit ---


def test_no_advice_where_all_fits(plan: Callable[..., list[str]]) -> None:
    """The total is the last line."""
    assert plan()[-1].startswith("total: ")


def test_a_disk_that_is_too_small(tiny: Tiny) -> None:
    """Views are cut to what fits: two of 4,608 bytes in float32 beside the rest, not the three of 13,824."""
    found = estimates([tiny("soft_targets.dtype=float32")])
    needed = sum(e.cost.kept + e.cost.judged for e in found) + 2 * max(e.cost.checkpoint for e in found)

    assert list(advice(found, needed, None)) == []
    (line,) = advice(found, needed - 1, None)
    assert line.startswith("disk: ")
    assert f" MB are needed, 0.01 of them for soft targets, and {needed / MB:.2f} are free in " in line
    assert line.endswith(
        "runs. What helps: soft_targets.dtype=float16 (half of the soft targets) or soft_targets.views=2 (now 3)"
        " or soft_targets=live (stores none) or runs=DIR on another disk"
    )


def test_views_are_no_help_where_none_fits(
    plan: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a full disk: no soft targets, or another disk."""
    monkeypatch.setattr("kdistill.planning.free_bytes", lambda folder: 0)
    assert plan()[-1].endswith(
        f"and 0.00 are free in {tmp_path / 'runs'}. What helps: soft_targets=live (stores none) or"
        " runs=DIR on another disk"
    )


def test_a_memory_that_is_too_small(plan: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage that needs more is named, with the setting of its own that halves a step."""
    monkeypatch.setattr("kdistill.planning.memory_limit", lambda device: 2 * MB)
    lines = plan("student.batch_size=33")[-4:]

    assert [line.partition(" needs ")[0] for line in lines] == [
        "memory: teacher resnet8",
        "memory: soft-targets resnet8",
        "memory: student cnn",
        "memory: finetuned cnn",
    ]
    assert [line.rpartition(": ")[2] for line in lines] == [
        "teacher.optim.accumulate=2",
        "soft_targets.batch_size=16",
        "student.batch_size=16",
        "finetune.optim.accumulate=2",
    ]
    assert "MB, more than the 2 MB that there are. What helps: " in lines[0]


def test_a_step_that_does_not_fit_the_device(
    plan: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage is marked, the others are measured, and what helps is said."""

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("kdistill.trial.train_step", full)
    monkeypatch.setattr("kdistill.planning.memory_limit", lambda device: None)
    lines = plan()

    assert ["out of memory" in line for line in lines[1:5]] == [True, False, True, True]
    assert (
        lines[6] == "memory: teacher resnet8 needs more than there is. What helps: teacher.optim.accumulate=2"
    )


def _slower(found: list[Estimate], **seconds: float) -> list[Estimate]:
    """The estimates with other seconds for some kinds."""
    return [
        replace(e, cost=replace(e.cost, seconds=seconds.get(e.part.kind.replace("-", "_"), e.cost.seconds)))
        for e in found
    ]


def test_soft_targets_that_take_most_of_a_long_run(tiny: Tiny) -> None:
    """A quarter of the views; and samples for a trial of ten minutes: 288 of 2 hours, 24 of 10 minutes.

    Of 18 windows 12 views show 18 (1 - (17/18)^12) = 8.935, and 3 show 2.836: 6000 s become 1905 s.
    """
    found = estimates([tiny("soft_targets.views=12")])
    long = _slower(found, teacher=1200, soft_targets=6000, student=0, finetuned=0)

    assert list(advice(found, 10**12, 10**12)) == []
    assert list(advice(long, 10**12, 10**12)) == [
        "time: soft targets take 83% of it. What helps: soft_targets.views=3 (now 12), 31 min 45 s instead of"
        " 1 h 40 min"
    ]  # and no trial: 24 samples are no batch of 32
    longer = [replace(e, cost=replace(e.cost, batch_size=16)) for e in long]
    assert list(advice(longer, 10**12, 10**12))[1:] == [
        "a trial of about 10 min 0 s: dataset.train_samples=24 (now 288)"
    ]


def test_a_live_teacher_that_takes_most_of_a_long_run(tiny: Tiny) -> None:
    """Stored soft targets of fewer views are proposed, unless features need the live teacher."""
    for words, expected in (
        (
            ("soft_targets=live",),
            [
                "time: asking the live teacher takes 75% of it. What helps: soft_targets=stored"
                " soft_targets.views=1: it is asked once about each view, and not in every one of 3 epochs"
            ],
        ),
        (("loss=at",), []),
    ):
        found = _slower(estimates([tiny(*words)]), teacher=0, student=7200, finetuned=0)
        slow = [replace(e, cost=replace(e.cost, asking_seconds=200.0)) for e in found]
        assert list(advice(slow, 10**12, 10**12)) == expected


# --- the command ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("student.epoch=3",), "no setting 'student.epoch'"),
        (("student=cnnn",), "cnnn"),
        (("loss.T=1,2",), "loss.T=1,2 is a list: add -m to sweep over it"),
        (("dataset=image_folder", "dataset.root=nowhere"), "nowhere"),
        (("loss=kd", "feature=at", "soft_targets=stored"), "features (at) are not stored"),
    ],
)
def test_mistakes_are_told_as_by_run(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same text and exit code 2 as `kdistill run` with these words, and nothing on stdout."""
    monkeypatch.chdir(tmp_path)
    told = []
    for command in ("plan", "run"):
        assert main([command, *words]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        told.append(printed.err)

    assert told[0] == told[1]
    assert message in told[0]
    assert list(tmp_path.iterdir()) == []


def test_help_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    """`kdistill plan --help` says what is not counted; settings are completed as for run."""
    assert main(["plan", "--help"]) == 0
    assert "Not counted: evaluation" in capsys.readouterr().out
    assert "student=cnn" in completion.complete("kdistill plan student=c")
