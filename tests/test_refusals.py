"""Methods that cannot work with the data or the settings: refused in one line, before any training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdistill.data import Views, sample_order
from kdistill.stages.job import Job
from kdistill.training_data import TrainingData
from tests.conftest import TINY, Command, Refused

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
def unlabelled(kdistill: Command) -> None:
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
