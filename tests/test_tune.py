"""`kdistill tune`: whole studies of tiny students, what they leave on disk, and what is told of them."""

import csv
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import optuna
import pytest

from kdistill import load_config, studies
from kdistill.artifacts import Artifact
from kdistill.cli import main
from kdistill.config import compose, folders
from kdistill.errors import ConfigError, RunError
from kdistill.records import Result
from kdistill.stages import check_before, run_stage, trials
from kdistill.stages.job import Job
from kdistill.stages.pipeline import make_teachers
from kdistill.stages.space import fixed_words
from kdistill.stages.team import LEADER
from kdistill.stages.tune import goal_of
from kdistill.stages.tuned import Goal
from tests.conftest import TINY

#: what a study says of itself that differs between two equal ones
CLOCK = ("seconds", "artifact")
SEARCH = ("search=kd", "search.student.optim.lr.high=0.2", "tune.trials=3", "tune.metric=nll")


@pytest.fixture(autouse=True)
def _configs() -> Iterator[None]:
    yield
    folders.use_folders()


def tune(runs: Path, *words: str) -> Result:
    words = (*TINY, f"runs={runs}", *words)
    return run_stage(compose.plan("tune", words).configs[0], words)


def content(runs: Path) -> dict[str, Any]:
    (path,) = runs.glob("studies/*/study.json")
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def made(runs: Path) -> dict[str, float]:
    """Every artifact, and when it was finished."""
    manifests = runs.glob("artifacts/*/*/manifest.json")
    return {str(m.parent.relative_to(runs)): m.stat().st_mtime for m in manifests}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the teacher and its soft targets."""
    runs = tmp_path_factory.mktemp("taught") / "runs"
    make_teachers(Job.open(load_config(*TINY, f"runs={runs}")))
    return runs


@pytest.fixture
def runs(taught: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return shutil.copytree(taught, tmp_path / "runs")


@pytest.fixture(scope="module")
def done(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished study of three trials, and what the stage handed back."""
    runs = shutil.copytree(taught, tmp_path_factory.mktemp("done") / "runs")
    return runs, tune(runs, *SEARCH)


def test_a_study_has_one_teacher_and_a_student_for_each_trial(done: tuple[Path, Result]) -> None:
    """Three trials: three students, fine-tuned, of one teacher and one set of soft targets."""
    runs, _ = done
    kinds = [name.split("/")[1] for name in made(runs)]

    assert {kind: kinds.count(kind) for kind in kinds} == {
        "teacher": 1,
        "soft-targets": 1,
        "student": 3,
        "finetuned": 3,
        "predictions": 3,  # of the teacher, and of the best student before and after fine-tuning
    }


def test_the_file_of_a_study(done: tuple[Path, Result]) -> None:
    """`study.json` has settings, score and artifact of each trial, the best one, and its scores on the test split."""
    runs, result = done
    study = content(runs)
    name = study["name"]
    assert re.fullmatch(r"synthetic-cnn-[0-9a-f]{12}", name)
    assert study["search"] == {
        "loss.T": "1 to 16, log",
        "loss.alpha": "0 to 0.9",
        "student.optim.lr": "0.01 to 0.2, log",
    }
    assert (study["metrics"], study["directions"], study["front"]) == (["nll"], ["minimize"], None)
    assert study["command"].startswith("kdistill tune dataset=synthetic ")
    assert study["dataset"] == "synthetic"
    for number, trial in enumerate(study["trials"]):
        finetuned = Artifact(Path(trial["artifact"]))
        assert (trial["number"], trial["state"], trial["epochs"]) == (number, "COMPLETE", 3)
        assert trial["values"] == [finetuned.manifest["validation"]["nll"]]
        assert set(trial["params"]) == set(study["search"])
        assert trial["words"] == [f"{key}={value}" for key, value in trial["params"].items()]
    best = min(study["trials"], key=lambda trial: trial["values"])
    assert study["trials"][study["best"]]["values"] == best["values"]
    assert study["final"]["artifact"] == study["trials"][study["best"]]["artifact"]
    assert Path(study["final"]["evaluation"]).is_file()
    assert result.objective == best["values"][0]
    assert result.row["test top1"] == round(study["final"]["scores"]["top1"], 5)
    with (runs / "studies" / name / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["nll"]) for row in rows] == [trial["values"][0] for trial in study["trials"]]
    assert float(rows[0]["loss.T"]) == study["trials"][0]["params"]["loss.T"]


def test_the_table_of_a_study(done: tuple[Path, Result]) -> None:
    """The best trial comes first; then the scores of its student on the test split."""
    runs, result = done
    study = content(runs)
    trials, scores = result.tables[0], result.tables[1]

    assert trials.title == f"{study['name']}: 3 complete"
    assert trials.columns == ["trial", "validation NLL", *study["search"], "epochs", "seconds"]
    assert trials.rows[0][0] == study["best"]
    assert trials.note.startswith(
        "complete trials, best first\nimportance, as a share of the variance of nll: "
    )
    assert scores.title == "synthetic: 64 test images"
    assert f"next: kdistill distill --config-dir {runs}/studies/{study['name']} dataset=" in result.message
    assert result.message.endswith(" loss=best")


def test_a_finished_study_is_not_run_again(done: tuple[Path, Result]) -> None:
    """The same command: the same answer, and nothing is made. One more trial: one more student."""
    runs, result = done
    before, study = made(runs), content(runs)

    again = tune(runs, *SEARCH)
    assert made(runs) == before
    assert content(runs) == study
    assert again.message == result.message

    tune(runs, *SEARCH, "tune.trials=4")
    assert [trial["params"] for trial in content(runs)["trials"][:3]] == [
        t["params"] for t in study["trials"]
    ]
    assert len([name for name in made(runs).keys() - before.keys() if "student" in name]) == 1


def test_the_best_option_is_the_best_student(done: tuple[Path, Result]) -> None:
    """`--config-dir runs/studies/NAME loss=best` sets the learning rate, too: it names the artifact that is there."""
    runs, _ = done
    study = content(runs)
    folder = runs / "studies" / study["name"]

    config = load_config(*TINY, f"runs={runs}", "loss=best", config_dirs=[folder])

    params = study["trials"][study["best"]]["params"]
    assert config.student.optim.lr == params["student.optim.lr"]
    found = Job.open(config).find_finetuned()
    assert found is not None
    assert str(found.folder) == study["final"]["artifact"]
    assert f"# Trial {study['best']} of the study {study['name']}" in (folder / "loss/best.yaml").read_text()


def test_choices_of_groups_and_nested_settings_go_into_the_best_option(runs: Path) -> None:
    """Loss, student, optimizer and a network's parameter are searched; the option sets all of them."""
    varied = {"loss": "js", "student": "cnn", "student.optim": "adamw", "mixing": "mixup"}
    varied |= {"student.params.channels": "'[6]'", "student.batch_size": "64"}
    search = [f"+search.{key}={{type: choice, choices: [{value}]}}" for key, value in varied.items()]
    words = [word for word in TINY if word.partition("=")[0] not in varied]
    words += [f"runs={runs}", "soft_targets=live"]
    line = [*words, "search=none", *search, "tune.trials=1", "tune.final=false"]
    run_stage(compose.plan("tune", line).configs[0], line)
    study = content(runs)

    best = load_config(*words, "loss=best", config_dirs=[runs / "studies" / study["name"]])

    assert (best.loss.kind, best.student.name, best.student.optim.kind) == ("js", "cnn", "adamw")
    assert (best.mixing.kind, best.student.batch_size, best.student.params) == (
        "mixup",
        64,
        {"channels": [6]},
    )
    found = Job.open(best).find_finetuned()
    assert found is not None
    assert str(found.folder) == study["trials"][0]["artifact"]
    assert study["final"] is None


class EveryOther(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number % 2 == 1 and trial.last_step == 2


def test_what_is_ended_early_leaves_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four trials end after two of three epochs: two students, no half ones, and the file says so."""
    monkeypatch.setattr(studies, "_pruner", lambda kind, epochs: EveryOther())

    result = tune(runs, *SEARCH, "tune.trials=4", "tune.final=false")

    trials = content(runs)["trials"]
    assert [(trial["state"], trial["epochs"]) for trial in trials] == [("COMPLETE", 3), ("PRUNED", 2)] * 2
    assert trials[1]["values"] is not None
    assert trials[1]["artifact"] is None
    assert sorted(path.suffix for path in (runs / "artifacts/student").iterdir()) == ["", ""]
    assert result.tables[0].title.endswith(": 2 complete, 2 ended early")


def test_students_that_are_there_are_judged_epoch_by_epoch(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who trained a student changes nothing of a study: it is ended early after the same epoch, and stays there."""
    tune(runs, *SEARCH, "tune.trials=4", "tune.final=false", "tune.pruner=none", "tune.name=all")
    students = {name: time for name, time in made(runs).items() if "/student/" in name}
    monkeypatch.setattr(studies, "_pruner", lambda kind, epochs: EveryOther())

    tune(runs, *SEARCH, "tune.trials=4", "tune.final=false", "tune.name=pruned")

    found = json.loads((runs / "studies/pruned/study.json").read_text())["trials"]
    assert [(trial["state"], trial["epochs"]) for trial in found] == [("COMPLETE", 3), ("PRUNED", 2)] * 2
    assert len(students) == 4
    assert students.items() <= made(runs).items()


def test_a_trial_that_fails_is_not_the_end(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A learning rate of 1e20 diverges: the reason is kept, and the study has as many finished trials as it should."""
    search = "+search.student.optim.lr={type: choice, choices: [0.05, 0.06, 0.07, 1e20]}"

    tune(
        runs,
        "search=none",
        search,
        "tune.trials=4",
        "tune.sampler=random",
        "tune.seed=3",
        "tune.final=false",
    )

    trials = content(runs)["trials"]
    failed = [trial for trial in trials if trial["state"] == "FAIL"]
    assert len(trials) - len(failed) == 4
    assert failed
    assert all(trial["params"] == {"student.optim.lr": 1e20} for trial in failed)
    assert failed[0]["reason"].startswith("the loss is not finite at epoch 1")
    assert f"trial {failed[0]['number']} failed: the loss is not finite" in caplog.text


def test_trials_that_fail_one_after_another_are_the_end(runs: Path) -> None:
    """Five in a row: the study stops with the last reason; each has another number, so the next start tries others."""
    with pytest.raises(
        RunError, match=r"^5 trials failed one after another, the last one because: the loss is not"
    ):
        tune(runs, "search=none", "+search.student.optim.lr={type: float, low: 1e19, high: 1e20}")

    assert [trial["state"] for trial in content(runs)["trials"]] == ["FAIL"] * 5


def test_accuracy_against_size(runs: Path) -> None:
    """Two networks: sizes are exact, and the front has those that no other one is better than in both."""
    own = [word for word in TINY if not word.startswith(("student=", "student.params"))]
    words = (
        *own,
        f"runs={runs}",
        "search=none",
        "+search.student={type: choice, choices: [mlp, cnn, resnet8]}",
    )
    words += ("tune.trials=5", "tune.sampler=random", "tune.against=parameters", "finetune=none")
    config = compose.plan("tune", words).configs[0]

    result = run_stage(config, words)

    study = content(runs)
    assert study["metrics"] == ["top1", "parameters"]
    assert study["directions"] == ["maximize", "minimize"]
    for trial in study["trials"]:
        assert trial["values"][1] == Artifact(Path(trial["artifact"])).manifest["parameters"]
        beaten = [
            other
            for other in study["trials"]
            if other["values"] != trial["values"]
            and other["values"][0] >= trial["values"][0]
            and other["values"][1] <= trial["values"][1]
        ]
        assert (trial["number"] in study["front"]) == (not beaten)
    assert result.tables[0].columns[:3] == ["trial", "validation top-1 %", "parameters"]
    assert "those that no other one is better than in both" in result.tables[0].note


def test_latency_is_measured_on_what_was_trained(runs: Path) -> None:
    """Seconds for one image, as `kdistill eval` measures them."""
    tune(runs, *SEARCH, "tune.trials=1", "tune.against=latency", "eval.runs=3", "tune.final=false")

    (trial,) = content(runs)["trials"]
    assert 0 < trial["values"][1] < 1


def test_another_config_is_another_study(runs: Path) -> None:
    """Without a name, changed settings begin a study of their own; with one, they are refused, and named."""
    tune(runs, *SEARCH, "tune.trials=1", "tune.final=false", "tune.name=mine")
    folder = runs / "studies" / "mine"

    with pytest.raises(ConfigError) as caught:
        tune(runs, *SEARCH, "tune.name=mine", "student.epochs=2", "search.loss.T.high=8")

    assert str(caught.value) == (
        "the study mine was begun with student.epochs=3, now 2; search.loss.T.high=16.0, now 8.0. Give this one another"
        f" name, tune.name=NAME, or remove {folder}"
    )
    tune(runs, *SEARCH, "tune.trials=1", "tune.final=false", "student.epochs=2")
    assert len(list(folder.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "metric", "direction"),
    [
        ((), "top1", "maximize"),
        (("tune.metric=nll",), "nll", "minimize"),
        (("dataset=synthetic_multilabel",), "map", "maximize"),
        (("dataset=synthetic_multilabel", "tune.metric=f1"), "f1", "maximize"),
        (("experiment=diabetes",), "r2", "maximize"),
        (("experiment=diabetes", "tune.metric=rmse"), "rmse", "minimize"),
    ],
)
def test_what_a_task_can_be_tuned_for(words: tuple[str, ...], metric: str, direction: str) -> None:
    """The task's own score by default, larger is better; errors are better where they are smaller."""
    goal = goal_of(Job.open(load_config(*words)))

    assert (goal.metrics, goal.directions) == ([metric], [direction])


@pytest.mark.parametrize(("direction", "best"), [("maximize", 1), ("minimize", 2)])
def test_equal_scores_are_ordered_by_likelihood(
    direction: Literal["maximize", "minimize"], best: int
) -> None:
    """As in training: of two that are equal, the one that gives the labels the larger likelihood."""
    scores = [(0.9, 0.3), (0.9, 0.2), (0.8, 0.4), (0.8, 0.5)]
    trials = [{"number": n, "values": [value], "nll": nll} for n, (value, nll) in enumerate(scores)]

    assert min(trials, key=Goal("top1", direction, None).rank)["number"] == best


@pytest.mark.parametrize("search", ["kd", "losses", "students"])
def test_shipped_searches_pass_what_is_checked_before(search: str, tmp_path: Path) -> None:
    """Every end and every choice is a config that `kdistill run` would take, on one teacher."""
    words = (f"runs={tmp_path}", f"search={search}")
    config = compose.plan("tune", words).configs[0]

    check_before([config], [words])

    assert not list(tmp_path.iterdir())


def test_words_about_the_search_are_not_the_trials() -> None:
    """What a trial, and the suggested command, are given of the user's words."""
    words = [
        "student=mlp",
        "tune.trials=3",
        "search=none",
        "+search.loss.T={type: int}",
        "~search.loss",
        "loss.beta=1",
    ]

    assert fixed_words(words) == ["student=mlp", "loss.beta=1"]


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained."""
    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(ConfigError, match=r"^kdistill tune needs optuna: pip install 'kdistill\[tune\]'$"):
        tune(tmp_path, *SEARCH)

    assert not tmp_path.exists() or not list(tmp_path.iterdir())


# --- as a command ---


def test_the_command_and_what_it_suggests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command: tables and paths on stdout, result.json in its folder; the suggested one trains nothing."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        assert main(["tune", *TINY, *SEARCH, "tune.trials=2"]) == 0
        printed = capsys.readouterr()
        students = made(Path("runs"))
        suggested = shlex.split(re.findall(r"^next: kdistill (.*)", printed.out, re.MULTILINE)[0])
        assert main(suggested) == 0
    finally:
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            handler.close()
        root.handlers[:] = before
        root.setLevel(level)

    assert made(Path("runs")) == students
    assert "trial 0: loss.T=" in printed.err
    (told,) = (json.loads(path.read_text()) for path in Path("runs/tune").glob("*/result.json"))
    assert told["status"] == "ok"
    assert told["artifacts"] == {"student": content(Path("runs"))["final"]["artifact"]}


def start(runs: Path, *words: str) -> subprocess.Popen[str]:
    line = (
        *TINY,
        *SEARCH,
        "dataset.samples=2000",
        "student.epochs=4",
        "tune.trials=8",
        f"runs={runs}",
        *words,
    )
    command = [sys.executable, "-m", "kdistill", "tune", *line]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return err


def kill_at(process: subprocess.Popen[str], pattern: str) -> None:
    assert process.stderr is not None
    assert any(re.search(pattern, line) for line in process.stderr), pattern
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_three_times(tmp_path: Path) -> None:
    """SIGKILL at the start of a trial, after one, and within a student's training: the same trials as without a kill.

    No student that was finished is trained again.
    """
    finish(start(tmp_path / "straight"))
    killed = tmp_path / "killed"
    finished: dict[str, float] = {}
    for moment in ("trial 1: loss", "trial 3: validation", "student epoch 2/4"):
        kill_at(start(killed), moment)
        assert finished.items() <= made(killed).items()
        finished = made(killed)
    finish(start(killed))

    assert finished.items() <= made(killed).items()
    straight, after = content(tmp_path / "straight")["trials"], content(killed)["trials"]
    for trial in (*straight, *after):
        for key in CLOCK:
            del trial[key]
    assert after == straight
    assert not list(killed.glob("artifacts/*/*.partial"))


@pytest.mark.slow
def test_two_workers_share_a_study(tmp_path: Path) -> None:
    """`tune.workers=2`: exactly the trials that were asked for, each by one of the two, on one teacher."""
    count = 30  # the first has done some before the second is there
    err = finish(start(tmp_path, "tune.workers=2", f"tune.trials={count}"))

    trials = content(tmp_path)["trials"]
    by_worker = {int(number) for number in re.findall(r"worker 1: trial (\d+): loss", err)}
    alone = {int(number) for number in re.findall(r"^trial (\d+): loss", err, re.MULTILINE)}
    assert len(trials) == count
    assert by_worker
    assert alone
    assert by_worker | alone == set(range(count))
    assert not by_worker & alone
    assert len(list(tmp_path.glob("artifacts/teacher/*/manifest.json"))) == 1


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_and_made_up_for(tmp_path: Path) -> None:
    """The other one takes its trial up: all trials are there at the end."""
    process = start(tmp_path, "tune.workers=2", "student.epochs=8")
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if re.search(r"^worker 1: trial \d+: loss", line):
            break
    (helper,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text().rpartition(")")[2].split()[1] == str(process.pid)
    )
    os.kill(helper, signal.SIGKILL)
    _, err = process.communicate(timeout=300)

    assert process.returncode == 0, err
    assert "warning: worker 1 has ended with exit code -9: the others go on" in err
    assert [trial["state"] for trial in content(tmp_path)["trials"]].count("RUNNING") == 0
    assert len([t for t in content(tmp_path)["trials"] if t["state"] in ("COMPLETE", "PRUNED")]) == 8


@pytest.mark.slow
def test_ctrl_c_saves_the_trial(tmp_path: Path) -> None:
    """Exit code 130 and what to do; the next start goes on within the trial."""
    process = start(tmp_path, "student.epochs=200", "tune.trials=1")
    assert process.stderr is not None
    assert any("student epoch 2/200" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "give the same command again to go on" in err

    again = start(tmp_path, "student.epochs=200", "tune.trials=1")
    assert again.stderr is not None
    assert any("student: going on at epoch" in line for line in again.stderr)
    again.kill()
    again.communicate()


def test_a_worker_whose_leader_is_gone_begins_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed command leaves no processes that go on for hours; and a worker reports nothing."""
    monkeypatch.setenv(LEADER, str(os.getppid() + 1))

    result = tune(runs, *SEARCH)

    assert (result.message, result.tables) == ("", [])
    assert not list(runs.glob("artifacts/student"))


def test_the_time_is_over(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three trials within the minutes: the study ends with what there is, and goes on when asked again."""
    times = iter([0.0, 1.0, 59.0, 61.0])
    clock = SimpleNamespace(monotonic=lambda: next(times), perf_counter=time.perf_counter)
    with monkeypatch.context() as patched:
        patched.setattr(trials, "time", clock)
        result = tune(runs, *SEARCH, "tune.minutes=1", "tune.final=false")
    assert len(content(runs)["trials"]) == 2
    assert result.objective is not None

    tune(runs, *SEARCH, "tune.minutes=1", "tune.final=false")

    assert len(content(runs)["trials"]) == 3
