"""Chains of students: an assistant between teacher and student, generations, and peers that teach each other."""

import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from kdistill import cli, distill, load_network, run, train_teacher
from kdistill.artifacts import ArtifactStore
from kdistill.config.schema import Config, Stage
from kdistill.errors import ConfigError, MissingArtifact, ModelError
from kdistill.stages import check_before, run_stage
from kdistill.stages.job import Job
from tests.cases.stages import at_stage, made, rebuild
from tests.conftest import TINY

Tiny = Callable[..., Config]

ASSISTANT = ("assistant=resnet8", "assistant.params.width=6", "assistant.epochs=2")


def test_an_assistant_stands_between(tiny: Tiny) -> None:
    """The teacher teaches the assistant, that one alone the student; the table shows the step."""
    config = tiny(*ASSISTANT)
    scores = run(config)
    first, last = Job.open(config).chain
    assistant, student = first.require_student(), last.require_student()
    table = run_stage(at_stage(config, "eval")).tables[0]

    assert list(scores) == ["teacher", "step 1", "student", "fine-tuned"]
    assert [row[0] for row in table.rows] == [
        "teacher resnet8",
        "step 1: resnet8, distilled",
        "student cnn, distilled",
        "student cnn, fine-tuned",
    ]
    assert assistant.manifest["epochs"] == 2
    assert assistant.parents["teacher"]["kind"] == "teacher"
    assert student.parents["teacher"] == {
        "name": assistant.folder.name,
        "digest": assistant.digest,
        "kind": "student",
    }
    counts = [len(made(config, kind)) for kind in ("teacher", "soft-targets", "student", "finetuned")]
    assert counts == [1, 2, 2, 1]


def test_agreement_is_with_who_taught(tiny: Tiny) -> None:
    """The student's agreement is with the assistant, counted on the test split by hand."""
    config = tiny(*ASSISTANT)
    scores = run(config)
    chain = Job.open(config).chain
    test = chain[0].data.test
    (batch,) = test.batches(torch.arange(len(test)), len(test))
    with torch.no_grad():
        assistant, student = (
            load_network(job.require_student().folder)(batch.images).argmax(1) for job in chain
        )

    assert scores["student"]["agreement"] == pytest.approx((assistant == student).double().mean().item())


def test_a_step_is_the_student_it_would_be_alone(tiny: Tiny) -> None:
    """The assistant is the artifact of a plain run with the same student, and the other way round."""
    run(tiny(*ASSISTANT))
    alone = tiny("student=resnet8", "~student.params.channels", "student.params.width=6", "student.epochs=2")
    before = made(alone, "student")
    distill(alone)

    assert made(alone, "student") == before


def test_generations(tiny: Tiny) -> None:
    """Each generation has the next seed and the one before as teacher; one more trains one student more."""
    config = tiny("generations=3")
    scores = run(config)
    chain = Job.open(config).chain
    students = [job.require_student() for job in chain]
    three = made(config, "student")
    run(tiny("generations=4"))

    assert list(scores) == ["teacher", "step 1", "step 2", "student", "fine-tuned"]
    assert [job.config.student.seed for job in chain] == [0, 1, 2]
    assert students[0].folder == distill(tiny()).folder
    for before, after in pairwise(students):
        assert after.parents["teacher"]["digest"] == before.digest
    assert len(set(three)) == 3
    assert len(made(config, "student")) == 4
    assert set(three) < set(made(config, "student"))
    assert len(made(config, "teacher")) == 1
    assert len(made(config, "finetuned")) == 2  # of the last ones


def test_an_assistant_and_generations(tiny: Tiny) -> None:
    """Teacher, assistant, then the generations of the student."""
    config = tiny(*ASSISTANT, "generations=2")
    scores = run(config)

    assert list(scores) == ["teacher", "step 1", "step 2", "student", "fine-tuned"]
    assert [job.config.student.name for job in Job.open(config).chain] == ["resnet8", "cnn", "cnn"]
    parameters = [scores[name]["parameters"] for name in ("teacher", "step 1", "student")]
    assert parameters == sorted(parameters, reverse=True)


def test_a_chain_of_live_teachers_and_feature_terms(tiny: Tiny) -> None:
    """Every step may be asked live, and have its layers tapped."""
    scores = run(tiny(*ASSISTANT, "soft_targets=live", "feature=at", "generations=2"))

    assert list(scores) == ["teacher", "step 1", "step 2", "student", "fine-tuned"]
    assert made(tiny(), "soft-targets") == []


def test_an_ensemble_may_teach_the_first_step(tiny: Tiny) -> None:
    """Its members teach the assistant; the student's only teacher is the assistant."""
    members = "teacher.params.members={a: {name: cnn, seed: 1}, b: {name: cnn, seed: 2}}"
    config = tiny("teacher=ensemble", "~teacher.params.width", "~teacher.params.members", members, *ASSISTANT)
    scores = run(config)
    first, last = (job.require_student() for job in Job.open(config).chain)

    assert list(scores) == ["teacher a", "teacher b", "teacher", "step 1", "student", "fine-tuned"]
    assert first.parents.keys() == {"teacher a", "teacher b", "soft-targets a", "soft-targets b"}
    assert last.parents.keys() == {"teacher", "soft-targets"}


def test_assistant_null_is_none(tiny: Tiny) -> None:
    """assistant=null takes out one that was chosen before; alone it changes nothing."""
    assert tiny("assistant=null") == tiny()
    assert len(tiny("assistant=resnet8").steps) == 2
    assert tiny("assistant=resnet8", "assistant=null") == tiny()


#: quicker still
BRIEF = ("dataset.samples=80", "teacher.epochs=1", "student.epochs=1", "student.optim.warmup_epochs=0")


@pytest.mark.parametrize(
    ("stage", "words", "name"),
    [
        ("distill", ("generations=2",), "cnn"),
        ("eval", ("assistant=resnet8",), "resnet8"),
        ("finetune", ("assistant=resnet8",), "resnet8"),
        ("soft-targets", ("generations=2",), "cnn"),
    ],
)
def test_a_missing_step_names_the_command_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: Stage, words: tuple[str, ...], name: str
) -> None:
    """One stage alone cannot make the steps before it: `kdistill run` does, as typed from the message."""
    tiny_words = [*TINY, *BRIEF, f"runs={tmp_path / 'runs'}", *words]
    assert cli.main(["train-teacher", *tiny_words]) == 0
    capsys.readouterr()
    assert cli.main([stage, *tiny_words]) == 2
    message, command = capsys.readouterr().err.strip().splitlines()
    assert message == (
        f"{name}, which is to teach, is not distilled yet. Make it, and all that comes after, with:"
    )
    assert cli.main(shlex.split(command)[1:]) == 0
    assert cli.main([stage, *tiny_words]) == 0


def test_the_chain_s_teacher_is_missing(tiny: Tiny) -> None:
    """run trains the teacher itself; check_before builds every step's network before that."""
    config = at_stage(tiny(*ASSISTANT, "generations=2"), "run")
    check_before([config])
    assert made(config, "teacher") == []
    wrong = tiny("assistant=torchvision", "assistant.name=torchvision/resnet81")
    with pytest.raises(ModelError, match="resnet81"):
        check_before([at_stage(wrong, "run")])


def test_a_sweep_over_seeds_of_a_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each seed has steps of its own; the teacher and the assistant's teacher's answers are shared."""
    runs = tmp_path / "runs"
    words = [*TINY, *BRIEF, f"runs={runs}", *ASSISTANT, "finetune=none", "-m", "student.seed=0,1"]
    assert cli.main(["run", *words]) == 0
    out = capsys.readouterr().out
    store = ArtifactStore(runs / "artifacts")
    kinds = [artifact.kind for artifact in store.all()]

    assert "mean +- standard deviation over student.seed" in out
    assert (kinds.count("teacher"), kinds.count("student"), kinds.count("soft-targets")) == (1, 4, 3)


def test_fine_tuning_is_of_the_last(tiny: Tiny) -> None:
    """finetune starts from the last generation and nothing else."""
    config = tiny("generations=2")
    run(config)
    finetuned = Job.open(config).find_finetuned()
    assert finetuned is not None
    assert finetuned.parents["student"]["name"] == Job.open(config).require_student().folder.name


def test_a_rebuilt_step_makes_what_follows_stale(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """Students after a step that was made anew are trained again, those before are not."""
    config = tiny("generations=3")
    run(config)
    before = [job.require_student().digest for job in Job.open(config).chain]
    rebuild(Job.open(config).chain[1].require_student().folder)
    with pytest.raises(MissingArtifact, match="the student cnn is not distilled yet"):
        run_stage(at_stage(config, "eval"))
    run(config)
    after = [job.require_student().digest for job in Job.open(config).chain]

    assert "is stale: it was made from another build of teacher" in caplog.text
    assert after[0] == before[0]
    assert after[2] != before[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("assistant=resnet8", "assistant.epoch=2"), "^assistant: no setting 'epoch'. Did you mean 'epochs'"),
        (
            ("assistant=resnet8", "assistant.params.widht=2"),
            "^assistant: resnet8 has no parameter 'widht'. Did you mean 'width'",
        ),
        (
            ("assistant=random_forest",),
            "^assistant.name=sklearn/RandomForestClassifier: only a network can be trained as assistant",
        ),
        (("generations=0",), "^generations=0: must be greater than or equal to 1"),
    ],
)
def test_mistakes_in_a_chain(tiny: Tiny, words: tuple[str, ...], message: str) -> None:
    """One line each, before any work."""
    with pytest.raises(ConfigError, match=message):
        tiny(*words)


def test_mutual_learning(tiny: Tiny) -> None:
    """loss=dml in `run`: two students side by side, no teacher's answers; the peer is kept beside the student."""
    config = tiny("loss=dml")
    scores = run(config)
    student = distill(config)
    rows = [row[0] for row in run_stage(at_stage(config, "eval")).tables[0].rows]

    assert list(scores) == ["teacher", "student", "fine-tuned"]
    assert rows[1] == "student cnn, mutual learning"
    assert student.parents == {}
    assert (student.folder / "peer.safetensors").is_file()
    assert made(config, "soft-targets") == []


def test_mutual_learning_needs_no_teacher(tiny: Tiny) -> None:
    """distill alone trains without one; with one there, the key is the same."""
    folder = distill(tiny("loss=dml")).folder
    assert made(tiny(), "teacher") == []
    train_teacher(tiny())
    assert distill(tiny("loss=dml", "teacher.params.width=4")).folder == folder
