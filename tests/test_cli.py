"""The command as a user meets it: output, exit codes, files, sweeps. The stages are played by a stand-in."""

import csv
import errno
import json
import logging
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import kdistill
from kdistill import console
from kdistill.cli import main, parse
from kdistill.config import folders
from kdistill.config.schema import Config
from kdistill.errors import Diverged, Interrupted, MissingArtifact
from kdistill.records import Result, Table
from tests.conftest import Stages


def _raising(ex: BaseException) -> Callable[[Config], Result]:
    def answer(config: Config) -> Result:
        raise ex

    return answer


def _only(pattern: str) -> Path:
    (found,) = Path().glob(pattern)
    return found


# --- help, version, words ---


def test_help_tells_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """No argument, -h, --help and help: the same text, with every command, option and five examples."""
    texts = set()
    for argv in ([], ["-h"], ["--help"], ["help"]):
        assert main(argv) == 0
        texts.add(capsys.readouterr().out)
    (text,) = texts
    for word in (
        "train-teacher",
        "soft-targets",
        "finetune",
        "eval",
        "artifacts",
        "--multirun",
        "--config-dir",
    ):
        assert word in text
    assert text.count("\n  kdistill ") == 5
    assert max(len(line) for line in text.splitlines()) <= 110


@pytest.mark.parametrize("argv", [["distill", "--help"], ["help", "distill"], ["-h", "distill", "loss.T=4"]])
def test_help_of_a_stage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What the stage reads, does and writes, three examples, and the config groups with their options."""
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert text.startswith("kdistill distill: train the small network")
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["reads", "does", "writes"]
    assert text.count("\n  kdistill distill ") == 3
    assert "\n  schedule      constant, cosine, multistep\n" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Name and version, as a number."""
    assert main(["--version"]) == 0
    name, version = capsys.readouterr().out.split()
    assert name == "kdistill"
    assert version[0].isdigit()


def test_options_may_stand_anywhere() -> None:
    """Options before, between and after the overrides; --info takes what follows only if it is a topic."""
    line = "--config-dir=a distill student=mlp -m loss.T=1,2 -cd b -p student --info loss.alpha=0"
    words = parse(shlex.split(line))
    assert words.command == "distill"
    assert words.rest == ["student=mlp", "loss.T=1,2", "loss.alpha=0"]
    assert words.config_dirs == ["a", "b"]
    assert (words.flags["--package"], words.flags["--info"]) == ("student", "all")
    assert parse(["distill", "-i", "defaults"]).flags == {"--info": "defaults"}


# --- looking at configs ---


def test_cfg_shows_the_job(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """--cfg prints YAML and runs nothing; --package a part of it, --resolve what ${...} stands for."""
    assert main(["distill", "loss.T=2", "--cfg", "job", "-p", "loss"]) == 0
    assert (
        capsys.readouterr().out
        == "# @package loss\nfeatures: {}\nkind: kd\nalpha: 0.1\nbeta: null\nT: 2\nstandardise: false\n"
    )
    assert main(["distill", "--cfg", "all", "-p", "hydra.run.dir", "--resolve", "runs=x"]) == 0
    assert capsys.readouterr().out.startswith("x/distill/")
    assert main(["distill", "--cfg", "all"]) == 0
    assert "\nhydra:\n" in "\n" + capsys.readouterr().out
    assert stages.asked == []
    assert list(Path().iterdir()) == []


def test_info_shows_the_search_path(
    stages: Stages, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A folder of the user stands before the shipped one."""
    (tmp_path / "mine").mkdir()
    assert main(["distill", "--info", "searchpath", "--config-dir", "mine"]) == 0
    text = capsys.readouterr().out
    assert 0 < text.index(str(tmp_path / "mine")) < text.index(str(folders.shipped_dir()))


# --- a single run ---


def test_a_run(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """The stage gets the typed config and the user's words; results go to stdout, log lines to stderr."""
    assert (
        main(["distill", "student=mlp", "student.optim=adamw", "student.params.hidden=[8]", "loss.T=2"]) == 0
    )
    (config,) = stages.asked
    assert (config.stage, config.student.name, config.loss.T) == ("distill", "mlp", 2)
    assert stages.words == ["student=mlp", "student.optim=adamw", "student.params.hidden=[8]", "loss.T=2"]
    assert stages.checked == [[config]]
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "Student",
        "model" + " " * 85 + "  top-1",
        "mlp" + " " * 87 + "  91.23",
        "x" * 90 + "  1",
        "on test",
        "next: kdistill eval",
    ]
    assert printed.err == "epoch 1/1\n"


def test_a_run_leaves_its_folder(stages: Stages) -> None:
    """runs/STAGE/TIME holds Hydra's copy of the config, the log with times, and result.json."""
    assert main(["distill", "loss.T=2"]) == 0
    folder = _only("runs/distill/*")
    assert (folder / ".hydra" / "config.yaml").is_file()
    assert (folder / "kdistill.log").read_text().endswith("INFO kdistill: epoch 1/1\n")
    result = json.loads((folder / "result.json").read_text())
    settings = result.pop("settings")
    assert {key: settings[key] for key in ("stage", "student", "student.optim", "loss.T")} == {
        "stage": "distill", "student": "cnn", "student.optim": "sgd", "loss.T": 2,
    }  # fmt: skip
    assert result == {
        "status": "ok",
        "job": None,
        "overrides": ["loss.T=2"],
        "objective": 0.5,
        "row": {"top1": 0.123456, "T": 2.0},
        "artifacts": {"student": "a/b"},
    }


def test_a_missing_artifact(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake that the user can mend: only its message, exit code 2."""
    stages.answer = _raising(MissingArtifact("the teacher is not trained yet: kdistill train-teacher"))
    assert main(["distill"]) == 2
    assert capsys.readouterr().err == "epoch 1/1\nthe teacher is not trained yet: kdistill train-teacher\n"
    result = json.loads(_only("runs/distill/*/result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("failed", 2)
    assert result["error"] == "the teacher is not trained yet: kdistill train-teacher"


def test_a_failed_run(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure in the run: its message and where the log is, exit code 1; the traceback is in the log."""
    stages.answer = _raising(Diverged("the loss is nan in epoch 3"))
    assert main(["distill"]) == 1
    log = _only("runs/distill/*/kdistill.log")
    assert capsys.readouterr().err == f"epoch 1/1\nthe loss is nan in epoch 3\nlog: {log.resolve()}\n"
    assert "Traceback" in log.read_text()


def test_an_unexpected_error(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """A bug: its type and text, the log, and how to see the traceback; exit code 1."""
    stages.answer = _raising(TypeError("no such thing"))
    assert main(["distill"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "TypeError: no such thing"
    assert lines[2].startswith("log: ")
    assert lines[3:] == ["KDISTILL_DEBUG=1 shows the traceback"]


def test_a_long_unexpected_error_is_cut(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a text of many lines the first is shown; the log has them all."""
    stages.answer = _raising(RuntimeError("Error(s) in loading\n  size mismatch\n  and more"))
    assert main(["distill"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "RuntimeError: Error(s) in loading"
    assert lines[2].startswith("log: ")
    assert "  and more" in _only("runs/distill/*/kdistill.log").read_text()


def test_a_job_that_leaves_python_has_no_outcome(stages: Stages) -> None:
    """`sys.exit` in a run writes nothing: not the outcome of the job before it either."""
    assert main(["distill", "runs=first"]) == 0
    stages.answer = _raising(SystemExit(3))
    with pytest.raises(SystemExit):
        main(["distill", "runs=second"])
    assert _only("first/distill/*/result.json").is_file()
    assert list(Path().glob("second/distill/*/result.json")) == []


@pytest.mark.parametrize("variable", ["KDISTILL_DEBUG", "HYDRA_FULL_ERROR"])
def test_tracebacks_on_demand(
    variable: str, stages: Stages, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both variables show tracebacks, of a mistake in the config and of a failure in a run."""
    monkeypatch.setenv(variable, "1")
    stages.answer = _raising(TypeError("no such thing"))
    assert main(["distill"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["distill", "loss.T=-1"]) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("\nloss.T=-1: must be greater than 0\n")


@pytest.mark.parametrize(
    "ex", [KeyboardInterrupt(), Interrupted("stopped in epoch 3: the same command goes on")]
)
def test_ctrl_c(ex: BaseException, stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 130, and how to go on."""
    stages.answer = _raising(ex)
    assert main(["distill"]) == 130
    expected = str(ex) or "interrupted. Give the same command again: it goes on where it stopped"
    assert capsys.readouterr().err == f"epoch 1/1\n{expected}\n"
    assert json.loads(_only("runs/distill/*/result.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    "ex",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["from the system", "wrapped by a library"],
)
def test_a_full_disk(ex: Exception, stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """Says that nothing is lost and what to do; exit code 2."""
    stages.answer = _raising(ex)
    assert main(["distill"]) == 2
    text = capsys.readouterr().err
    assert "the disk is full: cannot write to runs. What was finished is kept" in text
    assert "runs=DIR" in text


def test_a_full_disk_cannot_hide_the_reason(
    stages: Stages, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when result.json cannot be written, the user reads why the run failed."""

    def full(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stages.answer = _raising(Diverged("the loss is nan"))
    monkeypatch.setattr(Path, "write_text", full)
    assert main(["distill"]) == 1
    assert "\nthe loss is nan\n" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """Found before Hydra starts: the folder is named, and what to set; nothing runs."""
    Path("file").touch()
    assert main(["distill", "runs=file"]) == 2
    assert (
        capsys.readouterr().err
        == "cannot write to file: not a directory. Choose another folder with runs=DIR\n"
    )
    assert stages.asked == []


def test_user_folders_are_told(stages: Stages, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A run with own configs says where they came from."""
    (tmp_path / "mine" / "loss").mkdir(parents=True)
    (tmp_path / "mine" / "loss" / "soft.yaml").write_text("defaults: [kd]\nT: 9\n")
    assert main(["distill", "loss=soft", "--config-dir", "mine"]) == 0
    assert stages.asked[0].loss.T == 9
    assert capsys.readouterr().err.splitlines()[0] == f"configs also from {tmp_path / 'mine'}"


# --- sweeps ---


def test_a_sweep_ends_with_a_table(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """One row per job: number, swept settings, what the stage reports, status; the same as CSV in full."""
    assert main(["distill", "-m", "loss.T=1,2", "student.optim=adamw,sgd", "student=mlp"]) == 0
    assert [(c.loss.T, c.student.optim.kind) for c in stages.asked] == [
        (1, "adamw"), (1, "sgd"), (2, "adamw"), (2, "sgd"),
    ]  # fmt: skip
    assert len(stages.checked[0]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["job", "loss.T", "student.optim", "top1", "T", "status"],
        ["0", "1", "adamw", "0.1235", "1.0", "ok"],
        ["1", "1", "sgd", "0.1235", "1.0", "ok"],
    ]
    path = _only("runs/distill/sweep_*/sweep.csv")
    assert lines[5:] == [f"as CSV: {path}"]
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert rows[3] == {
        "job": "3", "loss.T": "2", "student.optim": "sgd", "top1": "0.123456", "T": "2.0", "status": "ok",
    }  # fmt: skip


def test_results_know_all_settings_of_a_job(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """Options and values, whether they were on the line or defaults."""
    assert main(["distill", "-m", "loss.T=1,2", "student.optim=adamw"]) == 0
    capsys.readouterr()
    words = [
        "student.optim=adamw",
        "student=cnn",
        "loss.T=2",
        "columns=stage,loss,loss.T,student.optim.lr,T,status",
    ]
    assert main(["results", *words, "format=json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "stage": "distill", "loss": "kd", "loss.T": 2, "student.optim.lr": 0.001, "T": 2.0, "status": "ok",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("failure", "code"),
    [(Diverged("the loss is nan"), 1), (MissingArtifact("no teacher"), 2), (TypeError("no such thing"), 1)],
)
def test_a_failed_job_does_not_stop_a_sweep(
    failure: Exception, code: int, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others run; the table shows the error; exit code 1, or 2 if every failure is the user's to mend."""
    stages.answer = lambda config: stages.result(config) if config.loss.T != 2 else _raising(failure)(config)
    assert main(["distill", "-m", "loss.T=1,2,3"]) == code
    printed = capsys.readouterr()
    rows = [line.split(None, 2) for line in printed.out.splitlines()[1:4]]
    assert [row[2].split()[-1] for row in (rows[0], rows[2])] == ["ok", "ok"]
    assert (
        f"failed: {type(failure).__name__ + ': ' if code == 1 and 'thing' in str(failure) else ''}{failure}"
        in (printed.out.splitlines()[2])
    )
    assert "1 of 3 jobs failed; logs: runs/distill/sweep_" in printed.err
    assert "Traceback" not in printed.err
    assert f"error: {failure}" in printed.err or f"error: TypeError: {failure}" in printed.err


def test_ctrl_c_stops_a_sweep(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """The remaining jobs do not run; the table shows how far it came; exit code 130."""
    stages.answer = lambda config: (
        stages.result(config) if config.loss.T != 2 else _raising(KeyboardInterrupt())(config)
    )
    assert main(["distill", "-m", "loss.T=1,2,3"]) == 130
    printed = capsys.readouterr()
    assert [line.split()[-1] for line in printed.out.splitlines()[1:3]] == ["ok", "interrupted"]
    assert printed.out.splitlines()[3].endswith("not run")
    assert printed.err.endswith("interrupted. Give the same command again: it goes on where it stopped\n")
    assert len(stages.asked) == 2


def test_a_refused_sweep_starts_nothing(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    """What `check_before` refuses is refused before a folder is made."""

    def refuse(configs: list[Config], overrides: object) -> None:
        raise MissingArtifact("no teacher")

    stages.check_before = refuse  # type: ignore[method-assign]
    assert main(["distill", "-m", "loss.T=1,2"]) == 2
    assert capsys.readouterr().err == "no teacher\n"
    assert list(Path().iterdir()) == []


# --- the console ---


def test_log_lines_on_a_terminal_and_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours from INFO on, other libraries from WARNING on; a traceback for the file is not shown."""
    from kdistill.logs import ConsoleHandler

    handler = ConsoleHandler()
    for name, level, extra in (
        ("kdistill", logging.INFO, {}),
        ("kdistill", logging.ERROR, {}),
        ("kdistill", logging.ERROR, {"file_only": True}),
        ("other", logging.INFO, {}),
        ("other", logging.WARNING, {}),
    ):
        record = logging.makeLogRecord(
            {"name": name, "levelno": level, "levelname": logging.getLevelName(level)}
        )
        record.__dict__.update(msg=f"{name} [x] {'long ' * 30}".strip(), **extra)
        handler.handle(record)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" [x]")[0] for line in lines] == ["kdistill", "error: kdistill", "warning: other"]


def test_tables_on_a_terminal_are_richs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal the table is drawn by rich; one that is too wide is plain, with nothing cut off."""
    monkeypatch.setattr(console, "out", Console(force_terminal=True, width=40))
    console.show_table(Table("Title", ["a", "b"], [[1, 2]]))
    assert "─" in capsys.readouterr().out
    console.show_table(Table("", ["a", "b"], [["x" * 50, 2]]))
    assert capsys.readouterr().out == f"a{' ' * 51}b\n{'x' * 50}  2\n"


# --- list ---


def test_list_overview(capsys: pytest.CaptureFixture[str]) -> None:
    """One paragraph per kind."""
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if line[:1].isalpha()] == [
        "teachers", "students", "models", "datasets", "losses", "features", "mixing", "searches", "trackers",
        "experiments", "kdistill", "kdistill",
    ]  # fmt: skip


def test_list_of_a_kind_shows_the_first_comment(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Option and what its YAML says about itself; own options too, `# @package` lines apart."""
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "soft.yaml").write_text("# @package loss\n# Softer than kd\ndefaults: [kd]\n")
    assert main(["list", "losses", "--config-dir", str(tmp_path)]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["soft"].strip() == "Softer than kd"
    assert lines["kd"].strip().startswith("Hinton's distillation")
    folders.use_folders()


def test_every_shipped_option_has_a_line() -> None:
    """`kdistill list` and the help rely on the first comment of each YAML file."""
    from kdistill.listing import first_comment

    files = [file for options in folders.groups().values() for file in options.values()]
    assert len(files) > 50
    assert [file for file in files if not first_comment(file)] == []


def test_artifacts_are_housekeepings(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kdistill artifacts ...` and `kdistill list artifacts` hand their words on, and its exit code back."""
    asked = []
    fake = types.ModuleType("kdistill.housekeeping")
    fake.main = lambda argv: asked.append(argv) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kdistill.housekeeping", fake)
    monkeypatch.setattr(kdistill, "housekeeping", fake, raising=False)
    assert main(["artifacts", "rm", "abc", "--yes"]) == 7
    assert main(["list", "artifacts", "runs=x"]) == 7
    assert asked == [["rm", "abc", "--yes"], ["list", "runs=x"]]


@pytest.mark.parametrize(
    "argv", [["artifacts", "-h"], ["help", "artifacts"], ["--help", "artifacts"], ["-h", "artifacts", "rm"]]
)
def test_help_of_artifacts(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever the word for help stands: what can be done with artifacts."""
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("kdistill artifacts [list]")


def test_artifacts_take_none_of_the_stages_options(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option before the word is refused as one behind it; no stage runs."""
    for argv in (["-m", "artifacts"], ["artifacts", "--multirun"]):
        assert main(argv) == 2
        assert capsys.readouterr().err.startswith("unknown option '--multirun'.")
    assert stages.asked == []
