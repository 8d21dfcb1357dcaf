"""`kdistill results`: runs read back from disk, filtered, sorted, grouped, written in every format."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdistill import completion, jobfolder
from kdistill.cli import main
from kdistill.formats import FORMATS
from kdistill.records import Spread, Table

SETTINGS = {"stage": "run", "student": "cnn", "student.seed": 0, "loss": "kd", "loss.T": 4, "loss.beta": None}


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def job(name: str, settings: dict[str, Any] | None = None, at: int = 0, **result: Any) -> Path:
    """A job's folder; `result` replaces what `result.json` would say."""
    folder = Path("runs") / name
    (folder / ".hydra").mkdir(parents=True)
    content = {
        "status": "ok",
        "overrides": [f"{key}={value}" for key, value in (settings or {}).items()],
        "row": {"student top1": 0.9, "seconds": 2.0, "artifact": "cnn-1"},
        "artifacts": {"student": name},
        "settings": SETTINGS | (settings or {}),
    }
    jobfolder.write_result(folder, content | result)
    os.utime(folder / ".hydra", (at, at))
    return folder


def begun(name: str, *words: str) -> Path:
    """A job's folder without a result: as Hydra makes it."""
    folder = Path("runs") / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    (folder / ".hydra" / "config.yaml").write_text("loss: {T: 4.0, features: {}}\nstudent: {seed: 7}\n")
    (folder / ".hydra" / "hydra.yaml").write_text(
        "hydra: {runtime: {choices: {student: mlp, optim@student.optim: sgd, hydra/launcher: basic}}}\n"
    )
    return folder


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """The table's cells, as CSV has them."""
    assert main(["results", *words, "format=csv"]) == 0
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))


def test_all_runs_the_newest_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs and the jobs of sweeps, with their words and numbers; texts of a row are no numbers; the store is no run."""
    job("run/old", {"loss.T": 2}, at=1)
    job("run/sweep_new/0", {"loss": "ce"}, at=3)
    job("distill/middle", at=2, row={"validation top1": 0.5})
    job("artifacts/student/x", at=4)
    rows = shown(capsys)

    assert rows[0] == ["run", "overrides", "student.top1", "seconds", "validation.top1", "status"]
    assert [row[0] for row in rows[1:]] == ["run/sweep_new/0", "distill/middle", "run/old"]
    assert rows[3] == ["run/old", "loss.T=2", "0.9", "2.0", "", "ok"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["loss.T=4.0"], ["a", "c"]),
        (["loss.T=4"], ["a", "c"]),
        (["loss.T=1,2"], ["b"]),
        (["loss=ce"], ["c"]),
        (["loss.beta=null"], ["a", "b", "c"]),
        (["student.top1=0.9", "stage=run"], ["a", "b", "c"]),
        (["loss=kd", "loss.T=4"], ["a"]),
        (["student.params.channels=[8,16]"], ["b"]),
        (["status=ok,failed", "student.params.pool=true"], ["a"]),
    ],
)
def test_filters_mean_settings(
    words: list[str], found: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A default counts as well as a word; 4 and 4.0 are one, 1 and true are not; a list is any of its values."""
    job("run/a", {"student.params.pool": True})
    job("run/b", {"loss.T": 2, "student.params.channels": [8, 16], "student.params.pool": 1})
    job("run/c", {"loss": "ce"})
    rows = shown(capsys, *words, "columns=run", "sort=run")

    assert [row[0].removeprefix("run/") for row in rows[1:]] == found


def test_groups_have_mean_and_sample_deviation(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 0.9 and 0.94 are 0.92 +- 0.0283. What is repeated counts once, what failed is told; stages are apart."""
    for seed, top1 in ((0, 0.90), (1, 0.94)):
        job(f"run/kd{seed}", {"student.seed": seed}, at=9 - seed, row={"student top1": top1})
    job("run/again", at=1, row={"student top1": 0.90}, artifacts={"student": "run/kd0"})
    job("run/ce", {"loss": "ce"}, row={"student top1": 0.5})
    job("run/bad", {"loss": "ce", "student.seed": 1}, status="failed", error="no", row={}, artifacts={})
    job("distill/kd", row={"validation top1": 0.7}, settings=SETTINGS | {"stage": "distill"})
    assert main(["results", "group=loss", "sort=-stage,loss"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]

    assert lines[0] == ["mean +- standard deviation over student.seed"]
    assert [[cell.strip() for cell in line if cell.strip()] for line in lines[1:]] == [
        ["stage", "loss", "n", "student.top1", "validation.top1", "status"],
        ["run", "ce", "1", "0.5", "1 ok, 1 failed"],
        ["run", "kd", "2", "0.9200 +- 0.0283", "ok"],
        ["distill", "kd", "1", "0.7", "ok"],
    ]


def test_equal_numbers_are_one_group(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether they were written 4 or 4.0; and then they do not differ in the title either."""
    job("run/a", {"loss.T": 4})
    job("run/b", {"loss.T": 4.0})
    assert main(["results", "group=loss.T", "columns=loss.T,n"]) == 0
    assert capsys.readouterr().out.split() == ["loss.T", "n", "4.0", "2"]

    assert main(["results", "group=loss", "columns=loss,n"]) == 0
    assert capsys.readouterr().out.split() == ["loss", "n", "kd", "2"]


def test_the_title_names_what_else_differs(capsys: pytest.CaptureFixture[str]) -> None:
    """Not only seeds: the spread would be taken for theirs. Settings below a group that differs go without saying."""
    job("run/a", {"student.seed": 1, "loss": "kd", "loss.T": 1})
    job("run/b", {"student.seed": 2, "loss": "dkd", "loss.T": 2})
    assert main(["results", "group=student"]) == 0

    assert capsys.readouterr().out.splitlines()[0] == "mean +- standard deviation over loss, student.seed"


def test_what_has_not_ended_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """At work while its lock is held, cut off after that; their settings are read from Hydra's files."""
    begun("run/now", "stage=run", "optim@student.optim=sgd", "loss.T=4", "hydra/launcher=basic")
    begun("run/killed", "stage=run")
    job("run/failed", status="failed", error="the loss is nan", row={}, artifacts={})
    with jobfolder.at_work(Path("runs/run/now")):
        rows = shown(capsys, "sort=run")
        assert shown(capsys, "student=mlp", "loss.T=4", "student.seed=7", "columns=status", "sort=status")[
            1:
        ] == [
            ["cut off"],
            ["running"],
        ]

    assert rows == [
        ["run", "overrides", "status", "error"],
        ["run/failed", "", "failed", "the loss is nan"],
        ["run/killed", "", "cut off", ""],
        ["run/now", "student.optim=sgd loss.T=4", "running", ""],
    ]
    assert shown(capsys, "status=cut off", "columns=run", "sort=run")[1:] == [["run/killed"], ["run/now"]]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"status": "o', "it is not JSON"),
        ("[]", "it is no job's result"),
        ('{"status": "ok", "overrides": [], "row": 3}', "its 'row' is 3"),
    ],
)
def test_a_damaged_result_is_shown(content: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    job("run/fine")
    file = job("run/bad") / "result.json"
    file.write_text(content)
    assert main(["results", "columns=run,status", "sort=run"]) == 0
    printed = capsys.readouterr()

    assert printed.out.split() == ["run", "status", "run/bad", "damaged", "run/fine", "ok"]
    assert printed.err == (
        f"runs/run/bad/result.json: {problem}. Remove the folder, or give its command again\n"
    )


def test_order_and_number_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Downwards with -, rows without a value last; ties by the second column."""
    job("run/a", row={"student top1": 0.7, "nll": 2})
    job("run/b", row={"student top1": 0.9, "nll": 1})
    job("run/c", row={"student top1": 0.7, "nll": 1})
    job("run/d", row={})
    order = "sort=-student top1,nll"

    assert [row[0] for row in shown(capsys, "columns=run", order)[1:]] == ["run/b", "run/c", "run/a", "run/d"]
    assert [row[0] for row in shown(capsys, "columns=run", order, "top=2")[1:]] == ["run/b", "run/c"]


# --- comparisons and studies ---

COMPARISON = {
    "dataset": "digits",
    "metric": "top1",
    "seeds": [0, 1],
    "control": {
        "title": "ce", "words": ["loss=ce"], "scores": [0.8, 0.9], "seconds": 3.0, "parameters": 9,
        "artifacts": ["A", "B"],
    },
    "variants": {
        "warm": {
            "title": "kd", "words": ["loss=kd", "loss.T=8"], "scores": [0.9, 0.9], "seconds": 4.0, "parameters": 9,
            "artifacts": ["C", "D"],
        }
    },
}  # fmt: skip
TRIAL = {"params": {"loss.T": 3.5}, "words": ["loss=kd", "loss.T=3.5"], "seconds": 2.0, "epochs": 4}
STUDY = {
    "name": "temperatures",
    "dataset": "digits",
    "metrics": ["top1"],
    "trials": [
        TRIAL | {"number": 0, "state": "COMPLETE", "values": [0.91], "artifact": "E"},
        TRIAL | {"number": 1, "state": "PRUNED", "values": None, "artifact": None},
    ],
    "final": {"words": ["loss.T=3.5"], "scores": {"top1": 0.95}, "artifact": "F"},
}


def test_comparisons_and_studies_are_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each variant with each seed, each trial and the last training, with the settings that their words name."""
    for place, content in (("compare/today/comparison.json", COMPARISON), ("studies/s/study.json", STUDY)):
        (runs / place).parent.mkdir(parents=True)
        (runs / place).write_text(json.dumps(content))
    rows = shown(capsys, "stage=compare", "group=variant,loss", "columns=variant,loss,n,top1,parameters")
    trials = shown(capsys, "stage=tune", "columns=run,loss.T,top1,test.top1,status", "sort=run")

    assert rows[0] == ["variant", "loss", "n", "top1", "top1.std", "parameters", "parameters.std"]
    assert rows[1][:3] == ["control", "ce", "2"]
    assert float(rows[1][3]) == pytest.approx(0.85)
    assert rows[2] == ["warm", "kd", "2", "0.9", "0.0", "9.0", "0.0"]
    assert trials[1:] == [
        ["studies/s/0", "3.5", "0.91", "", "ok"],
        ["studies/s/1", "3.5", "", "", "pruned"],
        ["studies/s/final", "3.5", "", "0.95", "ok"],
    ]


def test_a_damaged_comparison_is_shown(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "compare" / "today").mkdir(parents=True)
    file = runs / "compare" / "today" / "comparison.json"
    file.write_text('{"dataset": "digits"}')
    assert main(["results", "columns=run,stage,status"]) == 0
    printed = capsys.readouterr()

    assert printed.out.splitlines()[1].split() == ["compare/today", "compare", "damaged"]
    assert printed.err == (
        "runs/compare/today/comparison.json: there is no 'control'. Remove the folder, or give its command again\n"
    )


# --- mistakes ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["loss.t=4"],
            "no run has a column 'loss.t'. Did you mean 'loss.T'?\n"
            "columns: run, stage, overrides, started, status, error, student.top1, seconds; and every setting, as in"
            " `kdistill run --cfg job`",
        ),
        (
            ["sort=-studnt.top1"],
            "no run has a column 'studnt.top1'. Did you mean 'student.top1' or 'student'?",
        ),
        (["sotr=loss"], "no run has a column 'sotr'. Did you mean 'sort'?"),
        (
            ["group=loss", "columns=seeds"],
            "no column 'seeds' in this table of groups. Did you mean 'seconds'?",
        ),
        (["loss=dkd"], "no run has loss=dkd; loss is kd, ce"),
        (["loss=ce", "loss.T=9"], "no run has loss.T=9; loss.T is 4"),
        (["format=cvs"], "format=cvs: must be one of table, csv, markdown, latex, json. Did you mean 'csv'?"),
        (["out=table.doc"], "out=table.doc: its name should end in .txt, .csv, .md, .tex, .json; or say"),
        (["out=there/table.csv"], "out=there/table.csv: there is no folder there"),
        (["top=0"], "top=0: must be a whole number from 1, as in top=10"),
        (["top=all"], "top=all: must be a whole number from 1, as in top=10"),
        (["student"], "cannot read 'student': results takes key=value, for example student=mlp top=10"),
        (["loss=[kd"], "cannot read 'loss=[kd': a list is written loss=[1,2]"),
        (
            ["runs=run"],
            "there is no folder run. Did you mean 'runs'? `kdistill run` makes one, runs=DIR names another",
        ),
        (["runs=empty"], "no runs in empty: `kdistill run` makes one, runs=DIR names another folder"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One message each, exit code 2, and no table."""
    Path("empty").mkdir()
    job("run/a", at=1)
    job("run/b", {"loss": "ce"})

    assert main(["results", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)


# --- formats ---

TABLE = Table(
    "over seeds",
    ["a_b", "n", "top1"],
    [["x|y & 50 %", 2, Spread(0.92, 0.0283)], [None, 1, Spread(0.5, None)], [True, "", float("nan")]],
)


def test_markdown() -> None:
    assert FORMATS["markdown"](TABLE).splitlines() == [
        "over seeds",
        "",
        "| a_b | n | top1 |",
        "| --- | --: | --: |",
        r"| x\|y & 50 % | 2 | 0.9200 +- 0.0283 |",
        "| null | 1 | 0.5 |",
        "| true |  | nan |",
    ]


def test_latex() -> None:
    """A tabular without packages; what LaTeX would read as its own is escaped."""
    assert FORMATS["latex"](TABLE).splitlines() == [
        "% over seeds",
        r"\begin{tabular}{lrr}",
        r"a\_b & n & top1 \\",
        r"\hline",
        r"x|y \& 50 \% & 2 & 0.9200 $\pm$ 0.0283 \\",
        r"null & 1 & 0.5 \\",
        r"true &  & nan \\",
        r"\end{tabular}",
    ]
    assert "a\\textbackslash{}b\\textasciicircum{}\\{" in FORMATS["latex"](Table("", ["x"], [["a\\b^{"]]))


def test_csv_and_json_have_all_digits() -> None:
    """Mean and deviation apart; JSON has no nan; empty cells are left out of it."""
    assert FORMATS["csv"](TABLE).splitlines() == [
        "a_b,n,top1,top1.std",
        "x|y & 50 %,2,0.92,0.0283",
        "null,1,0.5,",
        "true,,nan,",
    ]
    assert json.loads(FORMATS["json"](TABLE)) == [
        {"a_b": "x|y & 50 %", "n": 2, "top1": {"mean": 0.92, "std": 0.0283}},
        {"a_b": None, "n": 1, "top1": {"mean": 0.5, "std": None}},
        {"a_b": True, "top1": None},
    ]


def test_a_file_is_written_in_the_format_of_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    job("run/a")
    assert main(["results", "columns=loss", "out=t.md"]) == 0
    assert capsys.readouterr().out == "written: t.md\n"
    assert Path("t.md").read_text() == "| loss |\n| --- |\n| kd |\n"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.9, 0.94], "0.9200 +- 0.0283"),
        ([20.0, 22.0], "21.0 +- 1.4"),
        ([3, 3], "3"),
        ([11_000_000, 11_000_000], "11000000"),
        ([0.123456789], "0.123457"),
        (["x", None, True], "None"),
    ],
)
def test_a_mean_is_written_with_its_spread(values: list[object], text: str) -> None:
    assert str(Spread.of(values)) == text


def test_help_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    """The options of the command, and settings as for run."""
    assert main(["results", "--help"]) == 0
    assert "format: table, csv, markdown, latex, json" in capsys.readouterr().out
    assert completion.complete("kdistill results gr") == ["group="]
    assert completion.complete("kdistill results student=c") == ["student=cnn"]


def test_torch_is_not_imported() -> None:
    job("run/a")
    code = "import sys; from kdistill.cli import main; main(['results', 'loss=kd']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "False"
