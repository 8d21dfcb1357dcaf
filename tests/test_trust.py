"""Promises that a review found broken once: two different results never share a key, and units and classes are kept."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdistill import distill, load_config, make_soft_targets, run, train_teacher
from kdistill.config.schema import Config
from kdistill.data import Batch
from kdistill.errors import ConfigError
from kdistill.identity import key_of
from kdistill.stages.checks import check_method
from kdistill.stages.job import Job
from kdistill.stored import AllLogits, Reader
from kdistill.teachers import MIXTURES, StoredTeacher
from tests.conftest import TINY

Tiny = Callable[..., Config]


def student_key(config: Config) -> str:
    return key_of(Job.open(config).identity.student)


def soft_key(config: Config) -> str:
    return key_of(Job.open(config).identity.soft_targets)


def brought(runs: Path, kind: str, path: Path | str, *overrides: str) -> Config:
    """The tiny pipeline with a teacher that is brought along, which takes no width."""
    plain = [word for word in TINY if not word.startswith("teacher.params")]
    return load_config(
        *plain, f"runs={runs / 'runs'}", f"teacher={kind}", f"teacher.weights={path}", *overrides
    )


def test_clean_and_augmented_teachers_differ_also_with_one_view(tiny: Tiny) -> None:
    """One view of augmented images is not one view of clean ones: other soft targets, other students."""
    for mode in ("stored", "live"):
        one = (f"soft_targets={mode}", "soft_targets.views=1")
        augmented, clean = tiny(*one), tiny(*one, "teacher.input.augment=false")

        assert student_key(augmented) != student_key(clean)
    assert soft_key(tiny("soft_targets.views=1")) != soft_key(
        tiny("soft_targets.views=1", "teacher.input.augment=false")
    )


def test_a_chain_that_begins_with_a_file_asks_its_later_teachers_about_every_view(tmp_path: Path) -> None:
    """Only the file has one view; the student that teaches the next one is asked about all."""
    np.save(tmp_path / "outputs.npy", np.random.default_rng(0).normal(size=(320, 4)))
    job = Job.open(brought(tmp_path, "file", tmp_path / "outputs.npy", "generations=2"))

    assert job.chain[0].identity.teacher_views == 1
    assert job.identity.teacher_views == 3


def test_the_order_of_feature_terms_changes_nothing(tiny: Tiny) -> None:
    """The same terms in another order: the same key and the same student."""
    one, other = tiny("loss=kd", "feature=[hint,vid]"), tiny("loss=kd", "feature=[vid,hint]")
    train_teacher(one)
    first = distill(one)

    assert student_key(one) == student_key(other)
    again = distill(
        tiny("loss=kd", "feature=[vid,hint]", "force=true").model_copy(update={"stage": "distill"})
    )
    assert again.digest == first.digest


def test_a_term_of_weight_zero_is_no_term(tiny: Tiny) -> None:
    """It leaves key and way of teaching as they are."""
    without, idle = tiny(), tiny("feature=at", "loss.features.at.weight=0")

    assert Job.open(idle).identity.stored
    assert student_key(idle) == student_key(without)


def test_a_folder_teacher_is_known_by_its_normalisation_too(tiny: Tiny, tmp_path: Path) -> None:
    """Equal weights under another mean and std are another teacher."""
    base = ("teacher.epochs=0", "teacher.keep=last")
    folders = [
        train_teacher(tiny(*base, *more)).folder for more in ((), ("teacher.mean=[0.1]", "teacher.std=[0.9]"))
    ]
    keys = {student_key(brought(tmp_path, "folder", folder)) for folder in folders}

    assert len(keys) == 2


def test_simkd_needs_the_student_s_own_classes(tiny: Tiny, tmp_path: Path) -> None:
    """Taking over a head in another order of classes would name every class wrongly: refused."""
    folder = train_teacher(tiny()).folder
    moved = "teacher.class_map={0:'1',1:'2',2:'3',3:'0'}"
    config = brought(tmp_path, "folder", folder, moved, "loss=simkd")

    with pytest.raises(
        ConfigError, match="simkd takes over the teacher's head: its classes must be the student's"
    ):
        check_method(Job.open(config))


DIABETES = ("dataset=diabetes", "teacher=mlp", "student=mlp", "teacher.optim=adamw", "student.optim=adamw")


def test_a_regression_teacher_of_other_units_is_brought_to_this_data_s(tmp_path: Path) -> None:
    """Trained on another part of the data, whose mean and spread differ, its values are rescaled."""
    common = (
        *DIABETES,
        "teacher.epochs=30",
        "teacher.batch_size=32",
        "student.epochs=2",
        "student.batch_size=32",
    )
    common += ("finetune=none", "device=cpu", f"runs={tmp_path}")
    theirs = load_config(*common, "dataset.train_samples=150")
    folder = train_teacher(theirs).folder
    ours = load_config(
        *[w for w in common if not w.startswith("teacher")], "teacher=folder", f"teacher.weights={folder}"
    )
    there, here = Job.open(theirs).data, Job.open(ours).data
    assert there.target_mean != here.target_mean

    scores = run(theirs)["teacher"], run(ours)["teacher"]

    assert scores[0]["rmse"] == pytest.approx(scores[1]["rmse"], rel=1e-4)


def test_a_teacher_of_another_task_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """Softmax logits are not taken for sigmoid ones."""
    folder = train_teacher(tiny()).folder
    config = brought(tmp_path, "folder", folder, "dataset.max_labels=2")

    with pytest.raises(ConfigError, match="was trained for classification, but synthetic is for multilabel"):
        check_method(Job.open(config))


def test_mixtures_by_hand(tmp_path: Path) -> None:
    """Shares 0.7 and 0.3: of values the mean, of sigmoids at T the mean probability, of softmaxes likewise."""
    values = np.array([[[2.0, 0.0], [-1.5, 1.0]]], dtype=np.float32)
    np.save(tmp_path / "logits.npy", values)
    batch = Batch(
        torch.zeros(1, 1, 1, 1), torch.zeros(1), torch.tensor([0]), mixed_with=torch.tensor([1]), share=0.7
    )

    stored = Reader(tmp_path / "logits.npy", AllLogits(values.shape, "float32"), torch.device("cpu"))

    def mixed(task: str, T: float = 2.0) -> torch.Tensor:
        return StoredTeacher(stored, MIXTURES[task])(batch, 0, T).logits[0]

    a, b = torch.tensor(values[0])
    assert mixed("regression").tolist() == pytest.approx([0.7 * 2 - 0.3 * 1.5, 0.3])
    torch.testing.assert_close(
        (mixed("multilabel") / 2).sigmoid(), 0.7 * (a / 2).sigmoid() + 0.3 * (b / 2).sigmoid()
    )
    torch.testing.assert_close(
        (mixed("classification") / 2).softmax(0), 0.7 * (a / 2).softmax(0) + 0.3 * (b / 2).softmax(0)
    )


def test_ensembles_through_the_python_api(tmp_path: Path) -> None:
    """train_teacher and make_soft_targets make every member's artifact."""
    members = "teacher.params.members={a:{name:resnet8,params:{width:4}},b:{name:mlp}}"
    quick = ("teacher.epochs=1", "teacher.batch_size=32")
    plain = [word for word in TINY if not word.startswith("teacher")]
    config = load_config(
        *plain, f"runs={tmp_path}", "teacher=ensemble", "~teacher.params.members", members, *quick
    )
    train_teacher(config)
    make_soft_targets(config)
    job = Job.open(config)

    assert all(member.find_teacher() is not None for member in job.teachers.values())
    assert len(list((Path(config.runs) / "artifacts" / "soft-targets").glob("*-*"))) == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("loss=dml", "student.weights=FILE"), "loss=dml needs two students that start differently"),
        (("loss=dist", "feature=rkd", "student.batch_size=2"), "rkd compares the samples of a batch"),
    ],
)
def test_more_refusals(tiny: Tiny, tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    """Peers that start equal teach nothing; the method that needs the most samples decides."""
    file = train_teacher(tiny()).folder / "model.safetensors"
    config = tiny(*(word.replace("FILE", str(file)) for word in words))

    with pytest.raises(ConfigError, match=text):
        check_method(Job.open(config))


@pytest.mark.parametrize("loss", ["ce", "label_smoothing", "teacher_free"])
def test_controls_take_no_feature_terms(tiny: Tiny, loss: str) -> None:
    """A control that learnt from a teacher would be none."""
    with pytest.raises(ConfigError, match=f"{loss} is a control without a teacher and takes no feature term"):
        tiny(f"loss={loss}", "feature=at")
