"""Trackers: each has what the run's own files have, none can end a run, none is part of an artifact's key."""

import json
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kdistill import distill, load_config
from kdistill.artifacts import Artifact
from kdistill.cli import main
from kdistill.config.schema import Config
from kdistill.errors import ConfigError, Interrupted, StorageError
from kdistill.records import Result
from kdistill.stages import check_before, run_stage
from kdistill.stages.distill import distill as make_student
from kdistill.stages.job import Job
from kdistill.stages.tracking import tracked
from kdistill.trackers import TRACKERS, Kind, Run, Status
from tests.cases.stages import at_stage
from tests.cases.tracked import READERS
from tests.conftest import NO_WIDTH

for package in ("tensorboard", "mlflow", "wandb"):
    pytest.importorskip(package)

#: MLflow's own queries
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

Tiny = Callable[..., Config]
KINDS = list(READERS)
#: how each says ok, failed and interrupted
ENDED = {
    "tensorboard": ("ok", "failed", "interrupted"),
    "mlflow": ("FINISHED", "FAILED", "KILLED"),
    "wandb": ("0", "1", "130"),
}
#: a run on digits in seconds
DIGITS = (
    "dataset.train_samples=300",
    "teacher=mlp",
    "teacher.params.hidden=[32]",
    "teacher.epochs=2",
    "student=mlp",
    "student.params.hidden=[16]",
    "student.epochs=2",
    "finetune.epochs=1",
    "eval.cost=false",
    "device=cpu",
)


@pytest.fixture(autouse=True)
def _nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where this process connects to another machine."""
    connect = socket.socket.connect

    def checked(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)


@pytest.fixture(scope="session")
def mlflows_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty one, with the experiment: making its tables takes MLflow seconds."""
    runs = tmp_path_factory.mktemp("mlflow")
    TRACKERS["mlflow"].check(load_config("tracker=mlflow").tracker, runs)
    return runs / "mlflow.db"


@pytest.fixture(autouse=True)
def _with_a_database(mlflows_database: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflows_database, tmp_path / "runs" / "mlflow.db")


class Notes:
    """A tracker that remembers what it was told, and can be made to fail."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.epochs: list[tuple[str, int]] = []
        self.ended: list[tuple[Status, Result | None]] = []
        self.failure: Exception | None = None

    def start(self, settings: object, run: Run) -> "Notes":
        self.run = run
        return self

    def log(self, what: str, row: Mapping[str, Any]) -> None:
        self.epochs.append((what, row["epoch"]))
        if self.failure:
            raise self.failure

    def finish(self, status: Status, result: Result | None) -> None:
        self.ended.append((status, result))
        if self.failure:
            raise self.failure


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    """Takes the place of TensorBoard."""
    told = Notes()
    monkeypatch.setitem(TRACKERS, "tensorboard", Kind(lambda settings, runs: None, told.start))
    return told


def lines(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def folder_of(config: Config) -> Path:
    folder = Path(config.runs) / config.stage / "now"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# --- what they have ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_tracked_as_its_own_files_have_it(kind: str, tmp_path: Path) -> None:
    """Every row of each `metrics.jsonl` under its epoch; settings, command, scores and artifacts."""
    words = (*DIGITS, f"tracker={kind}")
    config = load_config(*words, f"runs={tmp_path / 'runs'}")
    result = run_stage(config, words, folder_of(config))
    seen = READERS[kind](tmp_path / "runs", "run/now")

    expected: dict[str, list[tuple[int, float]]] = {}
    for what, name in (("teacher", "teacher"), ("student", "student"), ("fine-tuning", "fine-tuned")):
        for row in lines(result.artifacts[name]):
            for metric, value in row.items() - {("epoch", row["epoch"])}:
                expected.setdefault(f"{what}/{metric}", []).append((row["epoch"], pytest.approx(value)))
    assert seen.curves == expected
    assert len(seen.curves["student/validation_top1"]) == 2
    assert float(seen.settings["loss.T"]) == 4
    assert seen.settings["student.name"] == "mlp"
    assert json.loads(seen.settings["student.params.hidden"]) == [16]
    assert not any(name.startswith("tracker") for name in seen.settings)
    assert seen.results["result/student_top1"] == pytest.approx(result.row["student top1"])
    assert seen.results["result/parameters"] == result.row["parameters"]
    assert seen.texts["command"].split()[:2] == ["kdistill", "run"]
    assert seen.texts["artifact/student"] == result.artifacts["student"]
    assert seen.status == ENDED[kind][0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_how_a_run_ended_is_told(kind: str, status: Status, tiny: Tiny) -> None:
    """Without a result."""
    config = tiny(f"tracker={kind}")
    run = Run("run/now", folder_of(config), Path(config.runs), {"loss.T": 4.0}, "kdistill run")
    tracker = TRACKERS[kind].start(config.tracker, run)
    tracker.log("student", {"epoch": 1, "loss": 0.5})
    tracker.finish(status, None)
    seen = READERS[kind](Path(config.runs), "run/now")

    assert seen.curves["student/loss"] == [(1, 0.5)]
    assert seen.status == dict(zip(("failed", "interrupted"), ENDED[kind][1:], strict=True))[status]


def test_a_run_that_is_gone_on_with_has_its_first_epochs_too(tiny: Tiny, notes: Notes) -> None:
    """They are told again from the saved state, before the first new one."""
    config = at_stage(tiny("tracker=tensorboard", "loss=ce"), "distill")

    def stop(what: str, row: dict[str, Any]) -> None:
        raise LookupError(what)

    with pytest.raises(LookupError, match="student"):
        make_student(Job.open(config, watch=stop))
    run_stage(config, folder=folder_of(config))

    assert notes.epochs == [("student", 1), ("student", 2), ("student", 3)]


def test_each_network_of_a_run_has_its_own_name(tiny: Tiny, notes: Notes) -> None:
    """The members of an ensemble, the steps of a chain; what was there before is not trained and not told."""
    members = "teacher.params.members={a: {name: cnn, seed: 1}, b: {name: cnn, seed: 2}}"
    ensemble = ("teacher=ensemble", NO_WIDTH, "~teacher.params.members", members, "teacher.epochs=1")
    config = tiny(*ensemble, "generations=2", "student.epochs=1", "tracker=tensorboard")
    run_stage(config, folder=folder_of(config))
    names = [what for what, _ in notes.epochs]

    assert names == ["teacher a", "teacher b", "step 1", "student", "fine-tuning"]
    notes.epochs.clear()
    run_stage(config, folder=folder_of(config))
    assert notes.epochs == []
    assert [status for status, _ in notes.ended] == ["ok", "ok"]


def test_each_job_of_a_sweep_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hydras_logging: Callable[[], None]
) -> None:
    """In its own folder, where `tensorboard --logdir runs` finds it; of the teacher that they share the first tells."""
    monkeypatch.chdir(tmp_path)
    words = [*DIGITS, "finetune=none", "student.seed=0,1", "tracker=tensorboard"]
    assert main(["run", "-m", *words]) == 0
    runs = sorted(Path("runs/run").glob("sweep_*/[01]"))
    seen = [READERS["tensorboard"](Path(), str(run)) for run in runs]

    assert len(list(Path("runs").rglob("events.out.tfevents.*"))) == len(runs) == 2
    assert ["teacher/loss" in one.curves for one in seen] == [True, False]
    for seed, (run, one) in enumerate(zip(runs, seen, strict=True)):
        result = json.loads((run / "result.json").read_text())
        assert one.settings["student.seed"] == seed
        assert one.results["result/student_top1"] == pytest.approx(result["row"]["student top1"])


def test_a_folder_of_ones_own_has_one_for_each_run(tiny: Tiny, tmp_path: Path) -> None:
    """`tracker.folder`: the runs keep their names below it."""
    config = at_stage(tiny("tracker=tensorboard", f"tracker.folder={tmp_path / 'events'}"), "train-teacher")
    run_stage(config, folder=folder_of(config))

    assert len(READERS["tensorboard"](tmp_path / "events", "train-teacher/now").curves["teacher/loss"]) == 3


def test_nothing_is_left_in_the_current_folder(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that trackers write lies in the runs folder."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for kind in KINDS:
        config = at_stage(tiny(f"tracker={kind}", "loss=ce", "student.epochs=1"), "distill")
        run_stage(config, folder=folder_of(config))

    assert list(empty.iterdir()) == []


# --- what may go wrong ---


def test_a_tracker_that_fails_ends_no_run(tiny: Tiny, notes: Notes, caplog: pytest.LogCaptureFixture) -> None:
    """One warning; nothing is told after it but the end. The artifact is made."""
    notes.failure = OSError(28, "No space left on device")
    config = at_stage(tiny("tracker=tensorboard", "loss=ce"), "distill")
    result = run_stage(config, folder=folder_of(config))

    assert notes.epochs == [("student", 1)]
    assert notes.ended == [("ok", result)]
    assert not Artifact(Path(result.artifacts["student"])).is_damaged
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "tracker=tensorboard fails and is told no more of this run, which goes on:"
        " [Errno 28] No space left on device"
    ]


@pytest.mark.parametrize(
    ("ex", "status"),
    [
        (ConfigError("no"), "failed"),
        (ValueError("no"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (Interrupted("stopped"), "interrupted"),
    ],
)
def test_a_run_that_raises_is_closed(tiny: Tiny, notes: Notes, ex: BaseException, status: str) -> None:
    """The error is the user's to see."""
    config = tiny("tracker=tensorboard")

    def work(watch: object) -> Result:
        raise ex

    with pytest.raises(type(ex)):
        tracked(work, config, "kdistill run", folder_of(config))
    assert notes.ended == [(status, None)]


def test_of_several_ranks_one_is_tracked(
    tiny: Tiny, notes: Notes, as_rank: Callable[[int, int], None]
) -> None:
    """The others do the work alone."""
    config, result = tiny("tracker=tensorboard"), Result(None, {})
    as_rank(1, 2)
    assert tracked(lambda watch: result, config, "kdistill run", folder_of(config)) is result
    assert notes.run is None
    as_rank(0, 2)
    assert tracked(lambda watch: result, config, "kdistill run", folder_of(config)) is result
    assert notes.run is not None
    assert notes.run.name == "run/now"


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("mlflow", "sqlalchemy"), ("wandb", "wandb")],
)
def test_a_missing_extra_is_named_before_any_work(
    kind: str, missing: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that installs it."""
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError) as raised:
        check_before([tiny(f"tracker={kind}")])
    assert str(raised.value) == f"tracker={kind} needs {missing}: pip install 'kdistill[{kind}]'"


def test_a_server_that_is_not_there_is_named_before_any_work(tiny: Tiny) -> None:
    """Nothing listens on the port that was just given back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError) as raised:
        check_before([tiny("tracker=mlflow", f"tracker.uri=http://127.0.0.1:{port}")])
    assert str(raised.value) == (
        f"tracker.uri=http://127.0.0.1:{port}: MLflow cannot use it: Connection refused. Start the server there, or"
        " leave tracker.uri out to keep runs in the runs folder"
    )


def test_a_tracker_that_cannot_start_is_named_before_any_work(tiny: Tiny) -> None:
    """A database that is none, or of another version of MLflow."""
    config = tiny("tracker=mlflow")
    (Path(config.runs) / "mlflow.db").write_text("no database")
    with pytest.raises(
        ConfigError, match=r"^tracker=mlflow cannot start: .*\. tracker=none goes without$"
    ) as raised:
        check_before([config])
    assert "file is not a database" in str(raised.value)


def test_online_needs_an_account(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked for a key in the middle of a command."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError) as raised:
        check_before([tiny("tracker=wandb", "tracker.mode=online")])
    assert str(raised.value) == (
        "tracker.mode=online needs an account: give `wandb login` its key. tracker.mode=offline needs none, and"
        " `wandb sync` uploads its files later"
    )


def test_a_folder_that_cannot_be_written_is_named(tiny: Tiny, tmp_path: Path) -> None:
    """Before the work, with the setting that chose it."""
    (tmp_path / "file").write_text("")
    config = tiny("tracker=tensorboard", f"tracker.folder={tmp_path / 'file'}")
    with pytest.raises(
        StorageError, match=r"not a directory\. Choose another folder with tracker\.folder=DIR$"
    ):
        run_stage(config, folder=folder_of(config))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["tracker=tensorbord"],
            "no option 'tensorbord' in group 'tracker'. Did you mean 'tensorboard'?\n"
            "choose from: mlflow, none, tensorboard, wandb",
        ),
        (
            ["tracker=mlflow", "tracker.uri=mlruns"],
            "tracker.uri=mlruns: must be a tracking server or database, such as http://localhost:5000; null:"
            " mlflow.db in the runs folder",
        ),
        (
            ["tracker=wandb", "tracker.mode=onlin"],
            "tracker.mode=onlin: must be offline or online. Did you mean 'online' or 'offline'?",
        ),
        (["tracker.folder=x"], "no setting 'tracker.folder'"),
    ],
)
def test_wrong_settings_are_explained(words: list[str], message: str) -> None:
    """As those of other groups."""
    with pytest.raises(ConfigError) as raised:
        load_config(*words)
    assert str(raised.value).startswith(message)


def test_from_python_nothing_is_tracked_and_that_is_said(tiny: Tiny) -> None:
    """The functions of the package have no run's folder."""
    for attempt in (distill, run_stage):
        with pytest.raises(ConfigError) as raised:
            attempt(tiny("tracker=wandb"))
        assert str(raised.value) == (
            "tracker=wandb: only runs of the command `kdistill` are tracked; from Python use tracker=none"
        )
