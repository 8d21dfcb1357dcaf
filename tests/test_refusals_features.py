"""Features that cannot be compared, and layers that do not fit: refused in one line, before any training."""

from pathlib import Path

import pytest

from tests.conftest import NO_WIDTH, Command, Refused


def pairs(feature: str, student: str, teacher: str) -> str:
    return f"loss={feature} loss.features.{feature}.layers=[{{student:{student},teacher:{teacher}}}]"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "loss=kd feature=at soft_targets=stored",
            "features (at) are not stored: they need the live teacher. Use soft_targets=auto or live",
        ),
        (
            f"feature=[at,sp] {NO_WIDTH} teacher.name=sklearn/RandomForestClassifier",
            "features (at, sp) need one network as teacher; sklearn/RandomForestClassifier has none to look into",
        ),
        (
            f"feature=at {NO_WIDTH} teacher.name=file teacher.weights=outputs.csv",
            "features (at) need one network as teacher; file has none to look into",
        ),
        (
            f"feature=at {NO_WIDTH} teacher.name=ensemble"
            " 'teacher.params={members:{a:{name:resnet8},b:{name:mlp}}}'",
            "features (at) need one network as teacher; ensemble has none to look into",
        ),
        (
            "feature=at device.compile=true",
            "features (at) need device.compile=false: a compiled network hides its layers",
        ),
        (
            "loss=simkd feature=at",
            "simkd replaces the student's head and goes with no other feature term (got at)",
        ),
        (
            "loss=kd feature=[simkd,at]",
            "simkd replaces the student's head and goes with no other feature term (got at)",
        ),
        (
            "loss=ce feature=at",
            "loss: ce is a control without a teacher and takes no feature term (got at); use loss=features",
        ),
        (
            "loss=features",
            "loss: features has no feature term: choose some, for example feature=at or feature=[at,sp]",
        ),
        (
            "loss=dml feature=at",
            "loss=dml has no teacher whose features could be imitated; take out feature=...",
        ),
        (
            "loss=simkd loss.features.simkd.factor=100",
            "simkd: factor=100 is more than the 32 channels of the teacher's map",
        ),
        (
            "generations=2 loss=simkd loss.features.simkd.factor=100",
            "simkd: factor=100 is more than the 32 channels of the teacher's map",
        ),
        ("feature=[at,at]", "feature=[at,at]: each option can be chosen once"),
        (
            "loss.features.at.weight=10",
            "no setting 'loss.features.at.weight': at is not chosen. Add feature=at",
        ),
        (
            "feature=[at,atx]",
            "no option 'atx' in group 'feature'. Did you mean 'at'?\nchoose from: at, crd, hint, ",
        ),
    ],
)
def test_features_that_cannot_be_compared(words: str, text: str, refused: Refused) -> None:
    """Features need one live network as teacher, and a loss that has a teacher."""
    Path("outputs.csv").write_text("id,a\n0,1\n")
    said = refused(f"run {words}")
    assert said == text or (text.endswith(", ") and said.startswith(text))


ZERO = (
    "loss.features.{0} does not reach the student: its gradient is zero on a first batch (layers {1})."
    " Choose other layers: `kdistill list layers` shows them"
)


ONE_PIXEL = (
    "at compares the pixels of a map with each other, but these layers have one pixel: choose layers with larger"
    " maps, or a method on vectors (rkd, pkt, crd)"
)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            pairs("hint", "stage.0", "stages.1"),
            "student has no layer 'stage.0'. Did you mean 'stages.0' or 'stages.0.2'?"
            " `kdistill list layers` shows them",
        ),
        (
            pairs("hint", "stages.0", "stage.1"),
            "teacher has no layer 'stage.1'. Did you mean 'stages.1' or 'stages.1.0'?"
            " `kdistill list layers` shows them",
        ),
        (
            pairs("hint", "stages.0", "haed@in"),
            "teacher has no layer 'haed@in'. Did you mean 'head'? `kdistill list layers` shows them",
        ),
        (pairs("at", "head", "stages.1"), ONE_PIXEL),
        (pairs("at", "stages.0", "head@in"), ONE_PIXEL),
        (
            "loss=crd loss.features.crd.layers="
            "[{student:head,teacher:head},{student:head@in,teacher:head@in}]",
            "crd compares one pair of layers, got 2: choose one in layers",
        ),
        # what goes into the first layer are the images: with an adapter, and without any trained part
        (pairs("hint", "stages.0@in", "stages.1"), ZERO.format("hint", "stages.0@in - stages.1")),
        (pairs("at", "stages.0@in", "stages.1"), ZERO.format("at", "stages.0@in - stages.1")),
        (
            "loss=at loss.features.at.layers=[{student:head}]",
            "loss.features.at.layers.0.teacher is missing; set loss.features.at.layers.0.teacher=VALUE",
        ),
    ],
)
@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_layers_that_do_not_fit(
    words: str, text: str, trained: bool, kdistill: Command, refused: Refused
) -> None:
    """Found with a teacher that is not trained yet, and with one that is: `run` loses no time on its training."""
    if trained:
        assert kdistill("train-teacher teacher.epochs=0 runs=made").code == 0
        said = kdistill(f"distill teacher.epochs=0 runs=made {words}")
        assert (said.code, said.err) == (2, f"{text}\n")
        assert not Path("made", "artifacts", "student").exists()
    else:
        assert refused(f"run {words}") == text


def test_a_feature_of_weight_zero_is_no_feature(kdistill: Command) -> None:
    """A sweep may begin at 0: such a term needs no layers, adapters or teacher."""
    words = "run loss=hint loss.features.hint.weight=0 student.epochs=1 teacher.epochs=1"
    assert kdistill(words).code == 0
    (student,) = Path("runs/artifacts/student").glob("cnn-*")
    assert '"hard"' in (student / "metrics.jsonl").read_text()
    assert "hint" not in (student / "metrics.jsonl").read_text()
    assert not (student / "adapters.safetensors").exists()
