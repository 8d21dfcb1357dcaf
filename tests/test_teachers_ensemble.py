"""Ensembles: several teachers at once, each with its own settings and its own view of the images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdistill import cli, distill, evaluate, load_network, run, train_teacher
from kdistill.artifacts import ArtifactStore
from kdistill.config.schema import Config
from kdistill.errors import ConfigError, MissingArtifact
from kdistill.stages import check_before, run_stage
from kdistill.stages.job import Job
from kdistill.stages.signals import teacher_signal
from tests.cases.stages import at_stage, folders_of, made, rebuild, train_all
from tests.cases.teachers import first_batch, weights_of

Tiny = Callable[..., Config]

#: an ensemble of two: a ResNet-8 of width 8 like the tiny pipeline's teacher, of another seed, and a CNN
TWO = (
    "teacher=ensemble",
    "~teacher.params.members",
    "teacher.params.members={one: {name: resnet8, params: {width: 8}, seed: 1}, two: {name: cnn}}",
)


def two(tiny: Tiny, *overrides: str) -> Config:
    """The tiny pipeline with the ensemble: its teacher's own `params.width` gives way."""
    return tiny(*TWO, "~teacher.params.width", *overrides)


def test_an_ensemble_s_members_are_teachers_like_others(tiny: Tiny) -> None:
    """Each member is trained once; one that equals a plain teacher is that artifact; nothing else is made."""
    plain = train_teacher(tiny("teacher.seed=1"))
    train_all(two(tiny))
    after = made(two(tiny), "teacher")
    train_all(two(tiny))

    assert len(after) == 2
    assert plain.folder.name in after
    assert made(two(tiny), "teacher") == after


def test_soft_targets_are_stored_by_member(tiny: Tiny) -> None:
    """Another ensemble, and a student of one member alone, read those that are there."""
    train_all(two(tiny))
    student = distill(two(tiny))
    stored = made(two(tiny), "soft-targets")
    distill(two(tiny, "teacher.params.average=logits"))
    distill(two(tiny, "~teacher.params.members.two"))
    distill(tiny("teacher.seed=1"))

    assert len(stored) == 2
    assert made(two(tiny), "soft-targets") == stored
    assert len(made(two(tiny), "student")) == 4
    assert student.parents.keys() == {"teacher one", "teacher two", "soft-targets one", "soft-targets two"}
    assert {pin["kind"] for pin in student.parents.values()} == {"teacher", "soft-targets"}


@pytest.mark.parametrize(
    ("settings", "weights", "of"),
    [
        ((), (0.5, 0.5), "probabilities"),
        (("teacher.params.average=logits",), (0.5, 0.5), "logits"),
        (("teacher.params.weights={one: 3, two: 1}",), (0.75, 0.25), "probabilities"),
        (
            ("teacher.params.weights={two: 1, one: 3}", "teacher.params.average=logits"),
            (0.75, 0.25),
            "logits",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["stored", "live"])
def test_what_the_student_is_told_by_hand(
    tiny: Tiny, settings: tuple[str, ...], weights: tuple[float, float], of: str, mode: str
) -> None:
    """softmax(z / T) is the weighted mean of the members' probabilities at T, or z that of their logits."""
    T = 3.0
    config = two(tiny, *settings, f"soft_targets={mode}", "soft_targets.dtype=float32")
    train_all(config)
    distill(config)
    job = Job.open(config)
    signal = teacher_signal(job, job.student_parents())
    assert signal is not None
    raw = first_batch(job)
    view = 1
    images = job.student_views(raw.images, raw.indices, view)
    told = signal(type(raw)(images, raw.labels, raw.indices), view, T).logits
    with torch.no_grad():
        one, two_ = (
            load_network(job.teachers[name].require_teacher().folder)(images).double()
            for name in ("one", "two")
        )

    if of == "logits":
        torch.testing.assert_close(told.double(), weights[0] * one + weights[1] * two_, rtol=1e-4, atol=1e-4)
    else:
        expected = weights[0] * (one / T).exp() / (one / T).exp().sum(1, keepdim=True)
        expected += weights[1] * (two_ / T).exp() / (two_ / T).exp().sum(1, keepdim=True)
        found = (told.double() / T).softmax(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_ensemble_stored_in_float32_equals_live(tiny: Tiny) -> None:
    """The student has the same weights, bit for bit, whichever way its members' answers come."""
    config = two(tiny, "soft_targets.dtype=float32", "student.batch_size=20")
    train_all(config)
    live = two(tiny, "soft_targets.dtype=float32", "student.batch_size=20", "soft_targets=live")
    a, b = weights_of(config), weights_of(live)

    assert distill(config).folder != distill(live).folder
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_members_see_images_in_their_own_way(tiny: Tiny) -> None:
    """Other sizes, grey and normalisation for each; the student's view stays its own."""
    colour = tiny(
        "teacher=ensemble",
        "~teacher.params.width",
        "~teacher.params.members",
        "dataset.channels=3",
        "teacher.params.members={small: {name: cnn, input: {size: 6, grey: true}},"
        " plain: {name: cnn},"
        " own: {name: cnn, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}",
    )
    scores = run(colour)
    folders = {name: job.require_teacher().folder for name, job in Job.open(colour).teachers.items()}
    about = {name: json.loads((folder / "model.json").read_text()) for name, folder in folders.items()}

    assert list(scores) == [
        "teacher own",
        "teacher plain",
        "teacher small",
        "teacher",
        "student",
        "fine-tuned",
    ]
    assert (about["small"]["channels"], about["small"]["image_size"]) == (1, [6, 6])
    assert (about["own"]["channels"], about["own"]["image_size"]) == (3, [8, 8])
    assert about["own"]["mean"] == [0.5, 0.5, 0.5]
    assert about["plain"]["mean"] != [0.5, 0.5, 0.5]
    assert sorted(len(np.load(f / "logits.npy")) for f in folders_of(colour, "soft-targets")) == [3, 3, 3]


def test_the_table_shows_each_member_and_the_ensemble(tiny: Tiny) -> None:
    """Members' scores are those they have alone; the ensemble's parameters and time are their sums."""
    config = two(tiny)
    scores = run(config)
    alone = tiny("teacher.seed=1")
    distill(alone)
    single = evaluate(alone)["teacher"]
    table = run_stage(at_stage(config, "eval")).tables[0]

    assert list(scores) == ["teacher one", "teacher two", "teacher", "student", "fine-tuned"]
    compared = ("agreement", "kl")  # with the ensemble
    assert {k: v for k, v in scores["teacher one"].items() if k not in compared} == {
        k: v for k, v in single.items() if k not in compared
    }
    for what in ("parameters", "bytes"):
        assert scores["teacher"][what] == scores["teacher one"][what] + scores["teacher two"][what]
    assert 0 <= scores["student"]["agreement"] <= 1
    assert [row[0] for row in table.rows] == [
        "teacher one",
        "teacher two",
        "teacher ensemble",
        "student cnn, distilled",
        "student cnn, fine-tuned",
    ]


def test_a_missing_member_names_the_command(tiny: Tiny) -> None:
    """distill stops before any work, names the member's network, and the command trains what is missing."""
    config = at_stage(two(tiny), "distill")
    train_teacher(tiny("teacher.seed=1"))  # member one
    words = ["teacher=ensemble", "student.epochs=3", "loss.T=2"]
    expected = "the teacher cnn is not trained yet. Make it with:\n  kdistill train-teacher teacher=ensemble"

    for attempt in (lambda: check_before([config], [words]), lambda: run_stage(config, words)):
        with pytest.raises(MissingArtifact) as caught:
            attempt()
        assert str(caught.value) == expected
    assert made(config, "soft-targets") == []


def test_a_rebuilt_member_makes_the_student_stale(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """The member's soft targets and the student are named and made anew; the other member's stay."""
    config = two(tiny)
    run(config)
    before = distill(config).manifest["parents"]
    rebuild(Job.open(config).teachers["two"].require_teacher().folder)
    after = distill(config).manifest["parents"]

    assert "is stale: it was made from another build of teacher two" in caplog.text
    assert {role for role in before if before[role] != after[role]} == {"teacher two", "soft-targets two"}


def test_artifacts_know_an_ensemble_s_student(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """list shows it, rm of a member takes soft targets and students along, gc finds it stale."""
    config = two(tiny)
    run(config)
    runs, jobs = f"runs={config.runs}", Job.open(config).teachers
    folder = jobs["two"].require_teacher().folder

    assert cli.main(["artifacts", runs]) == 0
    assert "stale" not in capsys.readouterr().out
    rebuild(folder)
    assert cli.main(["artifacts", runs]) == 0
    # the member's soft targets, the student, the fine-tuned student; what these, the member and the ensemble predict
    assert capsys.readouterr().out.count("stale") == 7

    assert cli.main(["artifacts", "rm", folder.name.rpartition("-")[2], "--yes", runs]) == 0
    assert "removed 8 folders" in capsys.readouterr().out
    store = ArtifactStore(Path(config.runs) / "artifacts")
    assert [a.kind for a in store.all()] == ["teacher", "soft-targets", "predictions"]


def test_an_ensemble_may_hold_other_kinds(small: Tiny) -> None:
    """A forest and a network: the student learns from both; a folder among them is not trained again."""
    pytest.importorskip("skops")
    forest = "{name: sklearn/RandomForestClassifier, params: {n_estimators: 5}}"
    members = "teacher.params.members={forest: " + forest + ", net: {name: cnn, epochs: 2}}"
    config = small("teacher=ensemble", "~teacher.params.members", members, "student.epochs=1")
    scores = run(config)
    net = Job.open(config).teachers["net"].require_teacher().folder
    folder = f"teacher.params.members={{forest: {forest}, net: {{name: folder, weights: {net}}}}}"
    again = small("teacher=ensemble", "~teacher.params.members", folder, "student.epochs=1")
    train_all(again)

    assert list(scores) == ["teacher forest", "teacher net", "teacher", "student"]
    assert run(again)["teacher"]["top1"] == scores["teacher"]["top1"]
    assert len(made(again, "teacher")) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "teacher.params.members={x: {seed: 3}}",
            r"teacher.params.members.x.name=null: name a network or another teacher, for example"
            r" \{x: \{name: resnet20, seed: 1\}\}",
        ),
        ("teacher.params.members={x: {name: ensemble}}", "an ensemble has no ensembles as members"),
        ("teacher.params.members={x: {name: resnet21}}", "teacher.params.members.x: no model 'resnet21'"),
        (
            "teacher.params.members={x: {name: cnn, epoch: 3}}",
            "teacher.params.members.x: no setting 'epoch'. Did you mean 'epochs'",
        ),
        (
            "teacher.params.members={x: {name: cnn, optim: {lr: -1}}}",
            "teacher.params.members.x.optim.lr=-1: must be greater than 0",
        ),
        ("teacher.params.weights={one: 1}", r"weights name one, but the members are one, two$"),
        ("teacher.params.weights={one: 1, two: 0}", "teacher.params.weights.two=0: must be greater than 0"),
        ("teacher.params.average=odds", "teacher.params.average=odds: must be 'probabilities' or 'logits'"),
        ("teacher.weights=x.pt", r"ensemble takes no weights \(got weights=x.pt\)"),
    ],
)
def test_mistakes_in_an_ensemble(tiny: Tiny, override: str, message: str) -> None:
    """A member without a network, unknown settings, weights that do not fit: one line, before any work."""
    with pytest.raises(ConfigError, match=message) as caught:
        two(tiny, override)
    assert "\n" not in str(caught.value)
