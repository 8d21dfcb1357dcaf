"""Sweeps whose jobs run side by side: they share the store, report like others, and stop when they are asked to."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.config_store import ConfigStore

from kdistill import logs, workers
from kdistill.cli import main
from kdistill.config import folders
from kdistill.config.compose import plan
from kdistill.config.launchers import Launcher
from kdistill.errors import ConfigError
from kdistill.workers import WorkerTask
from tests.conftest import TINY

JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
COMMAND = [sys.executable, "-m", "kdistill"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra/launcher=joblib"], "hydra/launcher=joblib runs the jobs of a sweep: add -m"),
        (
            ["-m", "loss.T=1,2", "hydra/launcher=joblib", "force=true"],
            "force=true does not go with hydra/launcher=joblib: each of its processes would make anew what the jobs"
            " share. Remove that with `kdistill artifacts rm KEY`, and sweep without force",
        ),
        (
            ["-m", "loss.T=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"],
            "hydra.launcher.n_jobs=0: must be a number of jobs, or -1 for one on each core",
        ),
        (
            ["-m", "loss.T=1,2", "hydra/launcher=submitit_slurm", "hydra.launcher.setup=[id]"],
            "hydra.launcher.setup may not be set: its lines would be run as commands",
        ),
        (
            [
                "-m",
                "loss.T=1,2",
                "hydra/launcher=submitit_slurm",
                "+hydra.launcher.additional_parameters={a: 'x\nid'}",
            ],
            "hydra.launcher.additional_parameters: a line break in it would begin a command",
        ),
        (
            ["-m", "loss.T=1,2", "hydra/launcher=joblb"],
            "no option 'joblb' in group 'hydra/launcher'. Did you mean 'joblib'?\n"
            "choose from: basic, joblib, submitit_local, submitit_slurm",
        ),
    ],
)
def test_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", *words]) == 2
    assert capsys.readouterr().err == message + "\n"


@pytest.mark.parametrize(
    ("name", "extra"), [("joblib", "joblib"), ("submitit_local", "submitit"), ("submitit_slurm", "submitit")]
)
def test_a_missing_package_is_named(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{name}.yaml")
    with pytest.raises(ConfigError) as caught:
        plan("distill", [f"hydra/launcher={name}"])

    assert (
        str(caught.value)
        == f"hydra/launcher={name} needs the extra {extra!r}: pip install 'kdistill[{extra}]'"
    )


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        (
            Launcher("joblib", {"n_jobs": -1}),
            "hydra/launcher=joblib would run a job on the GPU for each core: say how many fit there, with"
            " hydra.launcher.n_jobs=N",
        ),
        (
            Launcher("submitit_local", {"gpus_per_node": None}),
            "hydra/launcher=submitit_local hides the GPU from its jobs: add hydra.launcher.gpus_per_node=1, or"
            " device=cpu",
        ),
    ],
)
def test_jobs_on_a_gpu_need_to_be_told_more(launcher: Launcher, message: str) -> None:
    Launcher("joblib", {"n_jobs": 2}).check_gpu()
    Launcher("submitit_slurm", {"gpus_per_node": 1}).check_gpu()
    with pytest.raises(ConfigError) as caught:
        launcher.check_gpu()

    assert str(caught.value) == message


# --- the task in a worker ---


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerTask]:
    """A task that some other process has sent to this one; what it changes here is put back."""
    before = {number: signal.getsignal(number) for number in workers.SIGNALS}
    monkeypatch.setattr(
        workers, "HydraConfig", SimpleNamespace(get=lambda: SimpleNamespace(job=SimpleNamespace(num=3)))
    )
    monkeypatch.setattr(workers, "_stopped", False)
    monkeypatch.setattr(logs, "prefix", "")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    yield WorkerTask([], [], process=-1)
    for number, handler in before.items():
        signal.signal(number, handler)
    folders.use_folders()


def test_a_stopped_worker_raises_nothing_and_starts_no_job(
    worker: WorkerTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two signals are one request; between jobs signals are not heard, since a worker that ends takes others along."""
    done = []

    def job(cfg: object) -> float:
        done.append(cfg)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.5

    monkeypatch.setattr(workers, "task", job)
    answers = [worker("first"), worker("second")]

    assert [math.isnan(answer) for answer in answers] == [True, True]
    assert done == ["first"]
    assert [signal.getsignal(number) for number in workers.SIGNALS] == [signal.SIG_IGN] * 2
    assert os.environ["TTY_COMPATIBLE"] == "0"
    assert logs.prefix == "job 3: "


def test_in_its_own_process_the_task_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With n_jobs=1 nothing is sent anywhere."""
    monkeypatch.setattr(workers, "task", lambda cfg: 0.25)
    before = signal.getsignal(signal.SIGINT)

    assert WorkerTask()(None) == 0.25
    assert signal.getsignal(signal.SIGINT) is before


# --- real sweeps ---


def sweep(*words: str, runs: str = "runs") -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "run", "-m", *TINY, "device.threads=1", f"runs={runs}", *words]
    return subprocess.run(command, capture_output=True, text=True)


def table(runs: str) -> list[dict[str, str]]:
    """The rows of a sweep, without what depends on the time."""
    (file,) = Path(runs).glob("run/sweep_*/sweep.csv")
    with file.open() as lines:
        return [{key: row[key] for key in row if key != "seconds"} for row in csv.DictReader(lines)]


def names(runs: str) -> list[str]:
    return sorted(folder.name for folder in Path(runs).glob("artifacts/*/*-*") if folder.is_dir())


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [JOBLIB, ("hydra/launcher=submitit_local",)], ids=["joblib", "submitit"])
def test_parallel_jobs_share_the_store(
    launcher: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same artifacts and numbers as one after another. The teacher is trained once: before the jobs, or by one of
    them, while the others wait."""
    monkeypatch.chdir(tmp_path)
    parallel = sweep("loss=kd,ce", "student.seed=0,1", *launcher, runs="parallel")
    alone = sweep("loss=kd,ce", "student.seed=0,1", runs="alone")

    assert (parallel.returncode, alone.returncode) == (0, 0), parallel.stderr
    assert table("parallel") == table("alone")
    assert names("parallel") == names("alone")
    for kind in ("teacher", "soft-targets"):
        assert len(list(Path("parallel/artifacts", kind).glob("*/manifest.json"))) == 1
    jobs = [file.read_text() for file in Path("parallel").glob("run/sweep_*/*/kdistill.log")]
    before = [file.read_text() for file in Path("parallel").glob("run/sweep_*/kdistill.log")]
    assert sorted("teacher epoch 1/3" in text for text in jobs) == [False] * 3 + [launcher != JOBLIB]
    assert ["teacher epoch 1/3" in text for text in before] == [True] * (launcher == JOBLIB)
    assert "mean +- standard deviation over student.seed" in parallel.stdout


@pytest.mark.slow
def test_own_files_and_failures_in_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--config-dir` and `--trust` hold in the workers; a failed job is told, the others go on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "loss").mkdir(parents=True)
    (tmp_path / "mine" / "loss" / "soft.yaml").write_text("defaults: [kd]\nT: 9\n")
    (tmp_path / "own.py").write_text(
        "import kdistill\n\n@kdistill.register_loss('own')\ndef own(student_logits, teacher_logits):\n"
        "    return ((student_logits - teacher_logits) ** 2).mean()\n"
    )
    words = ["--config-dir", "mine", "--trust", "own.py", "loss=own,soft", "student.optim.lr=0.1,1e30"]
    done = sweep(*words, *JOBLIB)

    assert done.returncode == 1
    assert [row["status"].partition(":")[0] for row in table("runs")] == ["ok", "failed", "ok", "failed"]
    assert "2 of 4 jobs failed; logs: runs/run/sweep_" in done.stderr
    assert "\njob 0: dataset=" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_worker_that_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Killed, as where memory is short: the table shows how far it came, one message, exit code 1."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import os, signal\nfrom multiprocessing import parent_process\nimport kdistill\n\n"
        "@kdistill.register_loss('own')\ndef own(student_logits):\n"
        "    if parent_process() is not None:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return student_logits.mean()\n"
    )
    done = sweep("--trust", "own.py", "loss=own", "student.seed=0,1", *JOBLIB)

    assert done.returncode == 1
    assert {row["status"] for row in table("runs")} <= {"cut off", "not run"}
    assert "hydra/launcher=joblib ended early: " in done.stderr
    assert done.stderr.endswith("Give the same command again: what is done is not made again\n")
    assert "Traceback" not in done.stderr


def stopped(*words: str, when: Callable[[], bool], stop: Callable[[subprocess.Popen[str]], None]) -> int:
    """Stop a sweep of three jobs, two at a time, as soon as `when`; its exit code, and what it said in the file err."""
    with Path("out").open("w") as out, Path("err").open("w") as err:
        command = [*COMMAND, "run", "-m", *TINY, "device.threads=1", "student.seed=0,1,2", *words, *JOBLIB]
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while not when():
            assert process.poll() is None, Path("err").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        stop(process)
        return process.wait(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _students_learn() -> bool:
    return sum("student epoch 2/" in f.read_text() for f in Path().glob("runs/run/*/*/kdistill.log")) == 2


def _the_teacher_learns() -> bool:
    return any("teacher epoch 2/" in f.read_text() for f in Path().glob("runs/run/*/kdistill.log"))


def _to_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop", [_to_all, lambda process: process.terminate()], ids=["Ctrl-C", "SIGTERM to the first process"]
)
def test_stopped_jobs_save_their_state(
    stop: Callable[[subprocess.Popen[str]], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both jobs at work are interrupted, with their state on disk; the third does not start; exit code 130."""
    monkeypatch.chdir(tmp_path)
    code = stopped("student.epochs=100000", "soft_targets.views=1", when=_students_learn, stop=stop)

    said = Path("err").read_text()
    assert code == 130
    assert [row["status"].partition(":")[0] for row in table("runs")] == [
        "interrupted",
        "interrupted",
        "not run",
    ]
    assert said.endswith("interrupted. Give the same command again: it goes on where it stopped\n")
    assert "Traceback" not in said
    assert len(list(Path().glob("runs/artifacts/student/*.partial/checkpoint"))) == 2


@pytest.mark.slow
def test_a_stop_before_the_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The teacher that they share is saved, no job starts, exit code 130."""
    monkeypatch.chdir(tmp_path)
    code = stopped("teacher.epochs=100000", when=_the_teacher_learns, stop=_to_all)
    said = Path("err").read_text()

    assert code == 130
    assert [row["status"] for row in table("runs")] == ["not run"] * 3
    assert said.endswith("give the same command again to go on\n")
    assert "Traceback" not in said
    assert len(list(Path().glob("runs/artifacts/teacher/*.partial/checkpoint"))) == 1
