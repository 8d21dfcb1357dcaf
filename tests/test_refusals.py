"""Methods that cannot work with the data, the teacher or the settings: refused in one line, before any training."""

import logging
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdistill.cli import main
from kdistill.data import Views, sample_order
from kdistill.stages.job import Job
from kdistill.training_data import TrainingData
from tests.conftest import TINY

#: the tiny pipeline's teacher is a ResNet of a width of its own
NO_WIDTH = "~teacher.params.width"
Refused = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator:
    """Run a command line with the tiny pipeline's settings, in an empty folder: exit code, stderr."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def run(line: str, tiny: tuple[str, ...] = TINY) -> tuple[int, str]:
        stage, *words = shlex.split(line)
        capsys.readouterr()
        code = main([stage, *tiny, *words])
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            handler.close()
        return code, capsys.readouterr().err

    yield run
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def refused(command: Callable[..., tuple[int, str]]) -> Refused:
    """The text that a command is refused with: exit code 2, and no folder made."""

    def refuse(line: str, tiny: tuple[str, ...] = TINY) -> str:
        code, err = command(line, tiny)
        assert code == 2, err
        assert "Traceback" not in err
        assert not Path("runs").exists()
        return err.removesuffix("\n")

    return refuse


def pairs(feature: str, student: str, teacher: str) -> str:
    return f"loss={feature} loss.features.{feature}.layers=[{{student:{student},teacher:{teacher}}}]"


# --- feature terms ---


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
    words: str, text: str, trained: bool, command: Callable, refused: Refused
) -> None:
    """Found with a teacher that is not trained yet, and with one that is: `run` loses no time on its training."""
    if trained:
        assert command("train-teacher teacher.epochs=0 runs=made")[0] == 0
        assert command(f"distill teacher.epochs=0 runs=made {words}") == (2, f"{text}\n")
        assert not Path("made", "artifacts", "student").exists()
    else:
        assert refused(f"run {words}") == text


# --- batches ---


@pytest.mark.parametrize("loss", ["dist", "mlkd", "sp", "pkt"])
def test_one_sample_has_none_to_be_compared_with(loss: str, refused: Refused) -> None:
    """Also where a batch is split into parts of one."""
    text = f"{loss} compares the samples of a batch: it needs at least 2 of them at once, got"
    assert refused(f"run loss={loss} student.batch_size=1") == f"{text} student.batch_size=1"
    assert (
        refused(f"run loss={loss} student.batch_size=4 student.optim.accumulate=4")
        == f"{text} student.batch_size=4 in 4 parts (optim.accumulate=4)"
    )


def test_two_samples_have_one_distance(refused: Refused) -> None:
    """RKD divides by the mean distance, so two samples always look alike; as a second term, too."""
    text = (
        "rkd compares the samples of a batch: it needs at least 3 of them at once, got student.batch_size=2"
    )
    assert refused("run loss=rkd student.batch_size=2") == text
    assert refused("run loss=kd feature=[at,rkd] student.batch_size=2") == text


@pytest.mark.parametrize("words", ["student.batch_size=1", "student.batch_size=8 student.optim.accumulate=8"])
def test_one_value_has_no_statistics(words: str, refused: Refused) -> None:
    """ReviewKD's batch norm sees one value per channel in its deepest level."""
    assert refused(f"run loss=review_kd {words}") == (
        "review_kd has a batch norm, which needs more than one value per channel: expected at least 2 samples where"
        " a map is 1 x 1, got 1; raise student.batch_size or lower student.optim.accumulate"
    )


def test_no_batch_is_left_with_one_sample(tiny: Callable) -> None:
    """33 samples in batches of 16: two batches in every epoch; the 33rd waits for another epoch."""
    split = Job.open(tiny("dataset.train_samples=33")).data.train
    data = TrainingData(split, Views(seed=0, crop=0, flip=False), order_seed=0)
    for epoch in range(3):
        seen = [batch.indices for batch in data.batches(epoch, 16)]
        assert [len(indices) for indices in seen] == [16, 16]
        assert {*range(33)} - {int(i) for part in seen for i in part} == {int(sample_order(33, 0, epoch)[32])}


# --- labels ---


@pytest.fixture
def unlabelled(command: Callable) -> None:
    """Three grey images in the folder `more`."""
    Path("more").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels).save(f"more/{number}.png")


@pytest.mark.parametrize("loss", ["dkd", "nkd", "ofa"])
def test_the_target_class_must_be_known(loss: str, unlabelled: None, refused: Refused) -> None:
    """Losses that weigh the target class need one label for every image."""
    assert refused(f"run loss={loss} dataset.unlabelled=more") == (
        f"loss={loss} needs the label of every image, and dataset.unlabelled brings images without;"
        " use loss=kd, or take dataset.unlabelled out"
    )
    for mixing in ("mixup", "cutmix"):
        assert refused(f"run loss={loss} mixing={mixing}") == (
            f"loss={loss} needs one label for each image, and mixing={mixing} gives two;"
            " use loss=kd or mixing=none"
        )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "loss=ce dataset.unlabelled=more",
            "loss=ce learns from labels alone and has no use for dataset.unlabelled: take it out",
        ),
        (
            "loss=label_smoothing dataset.unlabelled=more",
            "loss=label_smoothing learns from labels alone and has no use for dataset.unlabelled: take it out",
        ),
        (
            "dataset.unlabelled=more mixing=mixup",
            "mixing=mixup mixes labels, and unlabelled images have none: use one of the two",
        ),
        (
            "loss=kd feature=crd mixing=cutmix",
            "crd remembers each image by itself, which mixing blurs; use mixing=none",
        ),
    ],
)
def test_images_without_a_label_of_their_own(
    words: str, text: str, unlabelled: None, refused: Refused
) -> None:
    """What has no use for them, or cannot work with them, says so."""
    assert refused(f"run {words}") == text


NUMBERS = (
    *(word for word in TINY if not word.startswith("dataset")),
    *("dataset=diabetes", "teacher=mlp", "student=mlp", "teacher.params.hidden=[8]"),
)
NUMBERS = tuple(word for word in NUMBERS if "width" not in word and "channels" not in word)


@pytest.mark.parametrize("loss", ["dkd", "hard_label", "dist", "dml", "teacher_free", "label_smoothing"])
def test_classes_that_exclude_each_other(loss: str, refused: Refused) -> None:
    """Losses on a softmax over classes know neither several labels per image nor numbers."""
    text = (
        "loss={} is for classification, but {} is for {}; choose from: ce, kd, a loss on features, or one of"
        " your own"
    )
    assert refused(f"run dataset.max_labels=2 loss={loss}") == text.format(loss, "synthetic", "multilabel")
    assert refused(f"run loss={loss}", NUMBERS) == text.format(loss, "diabetes", "regression")


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_rows_of_numbers_are_no_images(role: str, refused: Refused) -> None:
    """A network of convolutions has nothing to look for in them."""
    hidden = {"teacher": "~teacher.params.hidden", "student": ""}[role]
    assert refused(f"run {role}=resnet8 {hidden}", NUMBERS) == (
        f"{role}=resnet8 looks for patterns in images, and this data set has rows of numbers: use {role}=mlp, as"
        " experiment=diabetes does"
    )


@pytest.mark.parametrize("role", ["teacher", "student", "finetune"])
def test_numbers_are_not_smoothed(role: str, refused: Refused) -> None:
    """label_smoothing of any stage is refused for regression."""
    assert refused(f"run {role}.label_smoothing=0.1", NUMBERS) == (
        f"{role}.label_smoothing=0.1: there is nothing to smooth in regression"
    )


# --- weights and ramps ---


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("loss.alpha=0 loss.beta=0", "loss: alpha and beta are both 0: there is nothing to learn from"),
        (
            "loss=dkd loss.alpha=0 loss.beta=0",
            "loss: alpha and beta are both 0: there is nothing to learn from",
        ),
        (
            "loss.alpha=0 loss.beta={start:0,end:0,until:1}",
            "loss: alpha and beta are both 0: there is nothing to learn from",
        ),
        (
            "loss.alpha=0 loss.beta=0 feature=at loss.features.at.weight=0",
            "loss: alpha and beta are both 0: there is nothing to learn from",
        ),
        (
            "loss=at loss.alpha=0 loss.features.at.weight=0",
            "loss: alpha and the weights of all features are 0: there is nothing to learn from",
        ),
        (
            "loss=dist loss.inter_weight=0 loss.intra_weight=0",
            "loss: inter_weight and intra_weight are all 0: nothing of the method is left",
        ),
        (
            "loss=dkd loss.tckd_weight=0 loss.nckd_weight=0",
            "loss: tckd_weight and nckd_weight are all 0: nothing of the method is left",
        ),
        (
            "loss=mlkd loss.instance_weight=0 loss.batch_weight=0 loss.class_weight=0",
            "loss: instance_weight, batch_weight and class_weight are all 0: nothing of the method is left",
        ),
        (
            "loss=rkd loss.features.rkd.distance_weight=0 loss.features.rkd.angle_weight=0",
            "loss.features.rkd: distance_weight and angle_weight are all 0: nothing of the method is left",
        ),
        ("loss.alpha=-1", "loss.alpha=-1: must be greater than or equal to 0"),
        ("loss.beta=-0.1", "loss.beta=-0.1: must be greater than or equal to 0"),
        ("loss=features feature=at loss.alpha=-1", "loss.alpha=-1: must be greater than or equal to 0"),
        (
            "loss=at loss.features.at.weight=-1",
            "loss.features.at.weight=-1: must be greater than or equal to 0",
        ),
        (
            "loss=rkd loss.features.rkd.angle_weight=-1",
            "loss.features.rkd.angle_weight=-1: must be greater than or equal to 0",
        ),
        ("loss.T=0", "loss.T=0: must be greater than 0"),
        ("loss=dist loss.T=0", "loss.T=0: must be greater than 0"),
        ("loss=mlkd loss.temperatures=[2,0]", "loss.temperatures.1=0: must be greater than 0"),
        ("loss.alpha=high", "loss.alpha=high: must be a number"),
        ("loss.alpha=[0,1]", "loss.alpha=[0,1]: must be a number"),
        ("loss.alpha={start:0,end:1,until:0}", "loss.alpha.until=0: must be greater than 0"),
        ("loss.alpha={start:0,end:1,until:2}", "loss.alpha.until=2: must be less than or equal to 1"),
        (
            "loss.alpha={start:0,end:1}",
            "loss.alpha.until is missing: share of the training after which it stays at `end`;"
            " set loss.alpha.until=VALUE",
        ),
        (
            "loss.alpha={start:0,end:1,until:1,untill:1}",
            "no setting 'loss.alpha.untill'. Did you mean 'loss.alpha.until'?\n"
            "settings of loss.alpha: start, end, until",
        ),
        ("loss.alpha={start:-1,end:1,until:1}", "loss.alpha.start=-1: must be greater than or equal to 0"),
        ("loss.T={start:0,end:4,until:1}", "loss.T.start=0: must be greater than 0"),
        ("loss.T={start:4,end:0,until:1}", "loss.T.end=0: must be greater than 0"),
        (
            "loss=at loss.features.at.weight={start:1,end:-1,until:1}",
            "loss.features.at.weight.end=-1: must be greater than or equal to 0",
        ),
        (
            "loss.alpha={start:0.5,end:1.5,until:1}",
            "loss: beta=null means 1 - alpha, so alpha must be at most 1 (got 1.5); set loss.beta",
        ),
    ],
)
def test_weights_that_mean_nothing(words: str, text: str, refused: Refused) -> None:
    """Weights are numbers of at least 0, or ramps between two of them, and not all of them 0."""
    assert refused(f"run {words}") == text


def test_a_feature_of_weight_zero_is_no_feature(command: Callable) -> None:
    """A sweep may begin at 0: such a term needs no layers, adapters or teacher."""
    words = "run loss=hint loss.features.hint.weight=0 student.epochs=1 teacher.epochs=1"
    assert command(words)[0] == 0
    (student,) = Path("runs/artifacts/student").glob("cnn-*")
    assert '"hard"' in (student / "metrics.jsonl").read_text()
    assert "hint" not in (student / "metrics.jsonl").read_text()
    assert not (student / "adapters.safetensors").exists()


# --- teachers that are brought along, or are not a network ---


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "teacher.name=folder",
            "teacher: folder needs a folder with a trained network: set teacher.weights=PATH",
        ),
        ("teacher.name=file", "teacher: file needs a file of its outputs: set teacher.weights=PATH"),
        (
            "teacher.name=file teacher.weights=outputs.csv soft_targets=live",
            "soft_targets=live needs a teacher that can be asked; teacher=file has only its outputs",
        ),
        (
            "teacher.name=ensemble",
            "teacher: ensemble needs params.members: name of each member -> its settings, where they are not the"
            " teacher's",
        ),
        (
            "teacher.name=ensemble 'teacher.params={members:{a:{name:resnet8,params:{widht:4}}}}'",
            "teacher.params.members.a: resnet8 has no parameter 'widht'. Did you mean 'width'? It has: width",
        ),
        (
            "teacher.name=ensemble 'teacher.params={members:{a:{name:mlp,epochs:-1}}}'",
            "teacher.params.members.a.epochs=-1: must be greater than or equal to 0",
        ),
        (
            "teacher.name=ensemble 'teacher.params={members:{a:{name:mlp}},weights:{b:1}}'",
            "teacher: params: weights name b, but the members are a",
        ),
        (
            "teacher.name=ensemble 'teacher.params={members:{a:{name:mlp}},averge:logits}'",
            "teacher: ensemble has no parameter 'averge'. Did you mean 'average'? It has: members, average, weights",
        ),
        (
            "teacher.name=sklearn/RandomForestClasifier",
            "scikit-learn has no classifier 'RandomForestClasifier'. Did you mean 'RandomForestClassifier'",
        ),
        (
            "teacher.name=sklearn/RandomForestClassifier 'teacher.params={n_estimator:3}'",
            "RandomForestClassifier has no parameter 'n_estimator'. Did you mean 'n_estimators'? It has: bootstrap",
        ),
    ],
)
def test_teachers_that_are_not_there(words: str, text: str, refused: Refused) -> None:
    """A folder or file must be named, members and estimators must exist with these parameters."""
    Path("outputs.csv").write_text("id,0,1,2,3\n0,1,2,3,4\n")
    assert refused(f"run {NO_WIDTH} {words}").startswith(text)


@pytest.mark.parametrize("name", ["file", "folder", "sklearn/SVC"])
def test_only_networks_are_trained_as_students(name: str, refused: Refused) -> None:
    """Other sources can only teach."""
    plain = tuple(word for word in TINY if "student.params" not in word)
    text = "{0}.name={1}: only a network can be trained as {0}"
    assert refused(f"run student.name={name}", plain) == text.format("student", name)
    assert refused(f"run assistant.name={name}", plain) == text.format("assistant", name)


def test_a_class_map_that_fits_nothing(command: Callable, refused: Refused) -> None:
    """Also of a teacher that is not trained yet: its classes will be the data's."""
    assert refused("run teacher.class_map={cat:dog}") == (
        "teacher.class_map: the teacher has no class 'cat'. It has '0', '1', '2', '3';"
        " teacher.class_map='{tabby: cat}' says which teacher class is which student class"
    )


@pytest.fixture
def small_teacher(command: Callable) -> str:
    """The folder of a teacher that knows two of the tiny data set's four classes."""
    assert command("train-teacher teacher.epochs=0 dataset.classes=2 runs=small")[0] == 0
    (folder,) = Path("small/artifacts/teacher").glob("resnet8-*")
    return str(folder)


@pytest.mark.parametrize(
    "loss", ["dkd", pytest.param("nkd", marks=pytest.mark.slow), pytest.param("ofa", marks=pytest.mark.slow)]
)
def test_a_teacher_that_lacks_classes(
    loss: str, small_teacher: str, command: Callable, refused: Refused
) -> None:
    """It cannot say how sure it is of a target that it does not know; KD works with what it knows."""
    teacher = (
        f"{NO_WIDTH} teacher.name=folder teacher.weights={small_teacher} student.epochs=1 finetune.epochs=0"
    )
    assert refused(f"run {teacher} loss={loss}").splitlines()[-1] == (
        f"loss={loss} needs a teacher that knows the class of every image, and this one knows 2 of 4; use loss=kd"
    )
    assert command(f"run {teacher} loss=kd")[0] == 0


def test_a_class_map_belongs_to_the_first_teacher(small_teacher: str, command: Callable) -> None:
    """The next generation's teacher is a student, with the data's own classes."""
    teacher = f"{NO_WIDTH} teacher.name=folder teacher.weights={small_teacher}"
    words = "teacher.class_map={0:3,1:2} generations=2 student.epochs=1 finetune.epochs=0"
    code, err = command(f"run {teacher} {words}")
    assert code == 0, err
    assert len(list(Path("runs/artifacts/student").glob("cnn-*/"))) == 2
