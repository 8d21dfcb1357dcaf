"""What reports tell: verdicts and tables of runs, sweeps, comparisons and studies, by hand and from real runs."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdistill.errors import ConfigError, DataError, KdistillError, MissingArtifact
from kdistill.reporting.comparisons import comparison_findings, verdict
from kdistill.reporting.findings import Metric
from kdistill.reporting.folders import kind_of, newest
from kdistill.reporting.runs import read_job, run_findings
from kdistill.reporting.studies import study_findings
from kdistill.reporting.sweeps import sweep_findings, swept_keys
from kdistill.tasks import task_of
from tests.reports import make_comparison, make_run, make_study

TOP1 = Metric("top1", "top-1", "%")


def test_metrics_are_written_with_their_unit() -> None:
    """A share in percent, a difference of shares in points; other scores as they are."""
    top1, r2 = Metric.of(task_of("classification"), "top1"), Metric.of(task_of("regression"), "r2")

    assert (top1.label, top1.text(0.9359), top1.difference(-0.012)) == ("top-1 %", "93.59 %", "-1.20")
    assert (r2.label, r2.text(0.41804), r2.difference(0.01)) == ("R2", "0.4180", "+0.0100")
    assert Metric.of(task_of("regression"), "parameters").text(12_345) == "12,345"


# --- runs ---


def test_a_run_says_what_the_student_keeps(tmp_path: Path) -> None:
    """The share of the teacher's score, and of its size; the facts are those of the evaluation."""
    folder = make_run(tmp_path / "runs")
    file = next((tmp_path / "runs").glob("artifacts/student/*.evaluation.json"))
    models = json.loads(file.read_text())["models"]
    own, theirs = models["student"]["top1"], models["teacher"]["top1"]
    found = run_findings(folder)

    share = (
        f"keeps {100 * own / theirs:.1f} % of the teacher's top-1 ({100 * own:.2f} of {100 * theirs:.2f} %)"
    )
    assert found.verdict == [f"The student {share}, with 1/40 of its parameters."]
    assert ("parameters", "1,000") in found.facts
    assert [row[0] for row in found.tables[0].rows] == ["teacher cnn", "student cnn"]
    assert found.repeat.commands == ["kdistill run"]
    assert found.notes == []


def test_a_regression_is_told_without_percent(tmp_path: Path) -> None:
    """R2 is no share of anything."""
    found = run_findings(make_run(tmp_path / "runs", "regression", ["height"]))

    assert found.verdict[0].startswith("The student reaches R2 ")
    assert "%" not in found.verdict[0]


def test_a_run_that_was_not_judged_shows_validation(tmp_path: Path) -> None:
    """`kdistill distill`: the manifests' scores, with a note."""
    folder = make_run(tmp_path / "runs")
    next((tmp_path / "runs").glob("artifacts/student/*.evaluation.json")).unlink()
    result = json.loads((folder / "result.json").read_text())
    result["artifacts"] = {"student": result["artifacts"]["student"]}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / ".hydra" / "overrides.yaml").write_text("- stage=distill\n")
    found = run_findings(folder)

    kept = "keeps 88.9 % of the teacher's top-1 (80.00 of 90.00 %) on the validation split"
    assert found.verdict == [f"The student {kept}, with 1/40 of its parameters."]
    assert found.notes == ["Not judged on the test split yet: scores are of the validation split."]


# --- sweeps ---


def test_swept_keys_are_those_that_differ() -> None:
    """A setting of all jobs alike was not swept; one that a job lacks was."""
    assert swept_keys([["a=1", "b=2"], ["a=1", "b=3"]]) == ["b"]
    assert swept_keys([["loss=kd", "x=1"], ["loss=ce"]]) == ["loss", "x"]
    assert swept_keys([["a=1"]]) == []


def test_a_sweep_is_chosen_by_validation(digits_sweep: Path) -> None:
    """Four jobs are two groups of two seeds; the best has the highest mean of the jobs' objectives."""
    found = sweep_findings(digits_sweep)
    results = [json.loads((digits_sweep / str(n) / "result.json").read_text()) for n in range(4)]
    means = {T: sum(r["objective"] for r in results if f"loss.T={T}" in r["overrides"]) / 2 for T in (2, 4)}
    best = max(means, key=lambda T: means[T])

    assert [group.label for group in found.groups] == ["T=2", "T=4"]
    assert [len(group.models) for group in found.groups] == [2, 2]
    assert found.verdict[0].startswith(f"Of 2 settings, T={best} is best on validation: ")
    assert "mean of 2 seeds; the teacher reaches" in found.verdict[0]
    assert found.title == "Sweep of loss.T, student.seed"
    settings, (every,) = found.tables[0], found.folded
    assert settings.title == (
        "Settings, the best on validation first, mean ± standard deviation over student.seed"
    )
    assert str(settings.rows[0][0]) == str(best)
    assert every.columns[:4] == ["job", "loss.T", "student.seed", "validation top-1 %"]
    assert [row[-1] for row in every.rows] == ["ok"] * 4
    assert found.repeat.commands[0].startswith("kdistill run -m teacher=mlp")
    assert "loss.T=2,4" in found.repeat.commands[0]
    assert found.student is not None
    assert [len(course) for course in found.student.courses] == [2, 1]


def test_a_sweep_goes_on_without_what_is_gone(digits_sweep: Path, tmp_path: Path) -> None:
    """A job whose student was removed is named; with none left, there is nothing to show."""
    place = tmp_path / "copy"
    shutil.copytree(digits_sweep.parent.parent, place / "runs")
    sweep = place / "runs" / "run" / digits_sweep.name
    gone = [
        json.loads((sweep / str(n) / "result.json").read_text())["artifacts"]["fine-tuned"] for n in range(4)
    ]
    shutil.rmtree(place / gone[0])
    found = sweep_findings(sweep)

    assert found.facts[0] == ("jobs", "3 of 4")
    assert [row[-1] for row in found.folded[0].rows] == ["ok: what it made is gone", "ok", "ok", "ok"]
    (note,) = found.notes
    said = f"{place / gone[0]}, which the run {sweep / '0'} made, is gone. Make it again with: kdistill run "
    assert note.startswith(said)
    (sweep / "1" / "result.json").write_text('{"status": ')
    damaged = sweep_findings(sweep)
    assert damaged.facts[0] == ("jobs", "2 of 4")
    assert damaged.folded[0].rows[1][-1] == "damaged: result.json is not JSON"
    for folder in gone[1:]:
        shutil.rmtree(place / folder)
    with pytest.raises(MissingArtifact, match="no job of this sweep can be shown"):
        sweep_findings(sweep)


def test_a_sweep_in_progress_shows_what_is_finished(digits_sweep: Path, tmp_path: Path) -> None:
    """Without its table the sweep is not over."""
    shutil.copytree(digits_sweep.parent.parent, tmp_path / "runs")
    sweep = tmp_path / "runs" / "run" / digits_sweep.name
    (sweep / "sweep.csv").unlink()
    shutil.rmtree(sweep / "3")
    found = sweep_findings(sweep)

    assert found.facts[0] == ("jobs", "3 of 3")
    assert found.notes == ["The sweep is at work, or was cut off: what was finished is shown."]


# --- comparisons and studies ---


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (("BEATS", 0.012, 0.008, 0.016), "kd BEATS the control by 1.20 points [0.80, 1.60]"),
        (("WORSE", -0.02, -0.031, -0.009), "kd is WORSE than the control by 2.00 points [0.90, 3.10]"),
        (("NO DIFFERENCE", 0.001, -0.002, 0.004), "kd shows NO DIFFERENCE: 0.10 points [-0.20, 0.40]"),
    ],
)
def test_the_verdict_on_a_variant(values: tuple[str, float, float, float], text: str) -> None:
    """What is shown, by how much, and between what bounds."""
    about = dict(zip(("verdict", "difference", "low", "high"), values, strict=True))

    assert verdict("kd", about, TOP1) == text


def test_a_score_that_is_better_when_lower() -> None:
    """A variant that beats the control has less of it: the size of the difference is told."""
    about = {"verdict": "BEATS", "difference": -0.02, "low": -0.03, "high": -0.01}

    told = verdict("kd", about, Metric("nll", "NLL", ""))
    assert told == "kd BEATS the control by 0.0200 NLL [0.0100, 0.0300]"


def test_a_comparison_is_told(tmp_path: Path) -> None:
    """A verdict for each variant; the control is the first group, and what classes are won against."""
    found = comparison_findings(make_comparison(tmp_path / "runs"))

    assert len(found.verdict) == 3
    assert [group.label for group in found.groups] == ["labels only", "kd", "at", "sp"]
    assert found.rivals is found.groups[0]
    assert found.favourites is found.groups[1]
    assert ("seeds", "2") in found.facts
    assert found.tables[0].rows[0][:4] == ["kd", 2, "81.70 ± 1.00", "+1.20 [+0.80, +1.60]"]
    assert found.tables[0].rows[0][4:] == ["BEATS", "40 %", "1,000", "1.0", ""]
    assert found.notes == []


def test_a_comparison_goes_on_without_predictions(tmp_path: Path) -> None:
    """What is gone is counted; the verdicts are in the file."""
    folder = make_comparison(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "artifacts" / "predictions")
    found = comparison_findings(folder)

    gone = "The predictions of 9 of 9 models are gone: what is made from them is left out."
    assert found.notes == [gone]
    assert found.student is not None
    assert found.student.answers is None


def test_a_study_is_told(tmp_path: Path) -> None:
    """The best trial by its file, the final model by its evaluation."""
    found = study_findings(make_study(tmp_path / "runs"))

    best = "Of 3 finished trials, number 1 is best on validation: 90.00 % top-1 with loss.T=8, student.optim=adamw."
    assert found.verdict == [best, "On the test split, its final model reaches 87.50 %."]
    assert found.facts[0] == ("trials finished", "3 of 4")
    assert [row[0] for row in found.tables[0].rows] == [1, 2, 0]
    assert found.student is not None


def test_a_study_of_two_scores_is_told(tmp_path: Path) -> None:
    """There is no best one, but a front."""
    found = study_findings(make_study(tmp_path / "runs", front=True))

    assert found.verdict == [
        "2 of 3 finished trials are best in their way: no other one is better in both top-1 and parameters."
    ]


# --- folders ---


def test_the_newest_is_what_was_finished_last(tmp_path: Path) -> None:
    """By the time of the result; what failed, or has nothing to show, does not count."""
    runs = tmp_path / "runs"
    first, second = make_run(runs), make_run(runs, name="2026-01-02")
    _touch(first / "result.json", 10)
    _touch(second / "result.json", 20)
    assert newest(runs) == second
    _rewrite(second / "result.json", status="failed")
    assert newest(runs) == first


def _touch(file: Path, seconds: int) -> None:
    os.utime(file, (seconds, seconds))


def _rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _refused(kind: type[KdistillError], folder: Path) -> str:
    with pytest.raises(kind) as caught:
        kind_of(folder)
    return str(caught.value)


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    """Each is told apart, in a line."""
    run = make_run(tmp_path / "runs")
    empty = tmp_path / "empty"
    empty.mkdir()
    expected = "Expected the folder of a run, as runs/run/DATE"
    artifact = next((tmp_path / "runs" / "artifacts" / "student").glob("*/"))

    near = run.with_name("2026-01-02")
    assert _refused(ConfigError, near) == f"{near}: there is no such folder. Did you mean '{run}'?"
    assert _refused(ConfigError, empty) == f"{empty}: this folder is empty. {expected}"
    assert _refused(ConfigError, artifact) == f"{artifact}: this is an artifact, and no run. {expected}"
    all_runs = tmp_path / "runs"
    takes = f"this folder holds all runs; `kdistill report runs={all_runs}` takes the last of them"
    assert _refused(ConfigError, all_runs) == f"{all_runs}: {takes}. {expected}"
    (run / "result.json").unlink()
    assert _refused(MissingArtifact, run) == (
        f"{run} is not finished: there is no result in it. Wait for the run if it is at work; one that was cut off goes"
        " on when its command is given again"
    )
    (empty / "notes.txt").write_text("")
    no_folder = "this is no folder of a run, a sweep, a comparison or a study"
    assert _refused(ConfigError, empty) == f"{empty}: {no_folder}. {expected}"
    with pytest.raises(MissingArtifact, match=r"there is nothing finished in .*empty to report"):
        newest(empty)


def test_runs_that_cannot_be_told(tmp_path: Path) -> None:
    """One that failed, one of a stage without scores, and one whose student is gone."""
    folder = make_run(tmp_path / "runs")
    overrides = folder / ".hydra" / "overrides.yaml"
    _rewrite(folder / "result.json", status="failed", error="the loss is not finite")
    with pytest.raises(ConfigError) as caught:
        read_job(folder)
    assert str(caught.value) == f"{folder}: the run failed: the loss is not finite"
    _rewrite(folder / "result.json", status="ok")
    overrides.write_text("- stage=export\n")
    with pytest.raises(ConfigError, match="a run of `kdistill export`, of which there is nothing to show"):
        read_job(folder)
    overrides.write_text("- stage=run\n")
    student = next((tmp_path / "runs" / "artifacts" / "student").glob("*/"))
    shutil.rmtree(student)
    with pytest.raises(MissingArtifact) as gone:
        read_job(folder)
    assert str(gone.value) == (
        f"{student}, which the run {folder} made, is gone. Make it again with:\n  kdistill run"
    )


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """What was cut off, and what lacks something."""
    folder = make_comparison(tmp_path / "runs")
    file = folder / "comparison.json"
    content = json.loads(file.read_text())
    del content["control"]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        comparison_findings(folder)
    assert (
        str(caught.value)
        == f"{file} cannot be read: it has no 'control'. Give the command that made it again"
    )
    file.write_text('{"dataset": ')
    with pytest.raises(DataError) as damaged:
        comparison_findings(folder)
    assert str(damaged.value) == f"{file} is damaged: it is not JSON. Give the command that made it again"
