"""What a student learns from besides the training images: unlabelled images, and mixed ones."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from kdistill import distill, finetune, load_config, load_network, make_soft_targets, run, train_teacher
from kdistill.config.schema import Config
from kdistill.data import Mixing
from kdistill.errors import ConfigError
from kdistill.identity import key_of
from kdistill.losses import Outputs, build_objective
from kdistill.stages import check_before
from kdistill.stages.job import Job
from kdistill.stages.signals import teacher_signal
from kdistill.training_data import TrainingData

Tiny = Callable[..., Config]

DIGITS = (
    "dataset=digits",
    "dataset.train_samples=120",
    "teacher=mlp",
    "teacher.params.hidden=[32]",
    "teacher.epochs=2",
    "teacher.batch_size=32",
    "student=mlp",
    "student.epochs=2",
    "student.batch_size=32",
    "student.optim=adamw",
    "finetune.epochs=1",
    "finetune.batch_size=32",
    "soft_targets.batch_size=32",
    "soft_targets.dtype=float32",
    "device=cpu",
)


def write_unlabelled(folder: Path, n: int = 40, seed: int = 0) -> Path:
    """Colour images of several sizes, in folders within folders."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        place = folder / ("more/deep" if i % 3 else ".")
        place.mkdir(parents=True, exist_ok=True)
        size = (10 + i % 5, 12, 3)
        Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(place / f"{i:03d}.png")
    return folder


@pytest.fixture
def joined(tmp_path: Path) -> Tiny:
    """Digits with a folder of 40 unlabelled images."""
    write_unlabelled(tmp_path / "unlabelled")
    return lambda *overrides: load_config(
        *DIGITS, f"runs={tmp_path / 'runs'}", f"dataset.unlabelled={tmp_path / 'unlabelled'}", *overrides
    )


# --- unlabelled images ---


def test_unlabelled_images_join_the_digits(joined: Tiny) -> None:
    """They are made grey and 8 x 8; soft targets cover the training images and then these."""
    config = joined()
    scores = run(config)
    job = Job.open(config)
    stored = np.load(make_soft_targets(config).folder / "logits.npy")
    split = job.transfer_set
    (batch,) = split.batches(torch.arange(120, 160), 40)
    seen = job.student_views(batch.images, batch.indices, 1)
    with torch.no_grad():
        expected = load_network(train_teacher(config).folder)(seen)

    assert list(scores) == ["teacher", "student", "fine-tuned"]
    assert len(split) == 160
    assert batch.images.shape == (40, 1, 8, 8)
    assert batch.labels.tolist() == [-1] * 40
    assert stored.shape == (2, 160, 10)
    np.testing.assert_allclose(stored[1, 120:], expected, rtol=1e-4, atol=1e-5)
    assert list(split.ids)[120:122] == ["unlabelled/000.png", "unlabelled/003.png"]


def test_the_hard_term_ignores_them(joined: Tiny) -> None:
    """CE is the mean over the labelled samples of a batch; the soft term is the mean over all. By hand."""
    config = joined("loss.T=3")
    train_teacher(config)
    distill(config)
    job = Job.open(config)
    signal = teacher_signal(job, job.student_parents())
    assert signal is not None
    (batch,) = job.transfer_set.batches(torch.tensor([0, 130, 1, 155]), 4)
    teacher = signal(batch, 0, 3.0)
    student = torch.randn(4, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = build_objective(config.loss, 0.0, job.task)(Outputs(student, {}), batch, teacher)
    log_q = F.log_softmax(student / 3, 1)
    p = (teacher.logits.double() / 3).softmax(1)

    hard = -(student.log_softmax(1)[[0, 2], batch.labels[[0, 2]]]).mean()
    soft = 9 * (p * (p.log() - log_q)).sum(1).mean()
    assert batch.labels[[1, 3]].tolist() == [-1, -1]
    assert terms["hard"].item() == pytest.approx(hard.item(), rel=1e-6)
    assert terms["soft"].item() == pytest.approx(soft.item(), rel=1e-5)


def test_only_what_learns_from_the_teacher_depends_on_them(joined: Tiny, tmp_path: Path) -> None:
    """Teacher and labels' key stay; soft targets, student and what starts from it change with the content."""

    def keys(*overrides: str) -> list[str]:
        identity = Job.open(joined(*overrides)).identity
        return [key_of(getattr(identity, k)) for k in ("teacher", "soft_targets", "student", "finetuned")]

    without, with_them = keys("dataset.unlabelled=null"), keys()
    write_unlabelled(tmp_path / "elsewhere")
    same = keys(f"dataset.unlabelled={tmp_path / 'elsewhere'}")
    write_unlabelled(tmp_path / "other", seed=1)
    other = keys(f"dataset.unlabelled={tmp_path / 'other'}")

    assert without[0] == with_them[0] == other[0]
    assert all(a != b for a, b in zip(without[1:], with_them[1:], strict=True))
    assert same == with_them
    assert all(a != b for a, b in zip(with_them[1:], other[1:], strict=True))


def test_teacher_and_fine_tuning_do_not_see_them(joined: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """They train on the 120 labelled images; the student on 160."""
    seen: dict[str, int] = {}
    from kdistill.stages import training

    fit = training.fit

    def counting(network, data, *args, title, **kwargs):
        seen[title] = len(data.split)
        return fit(network, data, *args, title=title, **kwargs)

    monkeypatch.setattr("kdistill.stages.training.fit", counting)
    run(joined())

    assert seen == {"teacher": 120, "student": 160, "fine-tuning": 120}


def test_live_teachers_and_features_see_them_too(joined: Tiny) -> None:
    """Stored and live are the same student; a feature term takes unlabelled images as well."""
    train_teacher(joined())
    a, b = (load_network(distill(c).folder).state_dict() for c in (joined(), joined("soft_targets=live")))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert distill(joined("feature=rkd")).manifest["epochs"] == 2


def test_multi_label_and_unlabelled(tmp_path: Path) -> None:
    """Labels of unlabelled images are nan there; training stays finite."""
    write_unlabelled(tmp_path / "unlabelled")
    config = load_config(
        "dataset=synthetic_multilabel", "dataset.samples=100", "dataset.test_samples=40",
        f"dataset.unlabelled={tmp_path / 'unlabelled'}", f"runs={tmp_path / 'runs'}",
        *[word for word in DIGITS if not word.startswith("dataset")],
    )  # fmt: skip
    scores = run(config)

    assert len(Job.open(config).transfer_set) == 90 + 40
    assert np.isfinite(scores["student"]["nll"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("loss=dkd",),
            "^loss=dkd needs the label of every image, and dataset.unlabelled brings images without",
        ),
        (
            ("loss=ce",),
            "^loss=ce learns from labels alone and has no use for dataset.unlabelled: take it out",
        ),
        (
            ("mixing=mixup",),
            "^mixing=mixup mixes labels, and unlabelled images have none: use one of the two",
        ),
    ],
)
def test_what_cannot_use_them(joined: Tiny, words: tuple[str, ...], message: str) -> None:
    """Losses that need every label, and mixing: refused before any training."""
    with pytest.raises(ConfigError, match=message):
        check_before([joined(*words)])


# --- mixing ---


def mixed_batch(job: Job, kind: str):
    """The first batch of the student's training, as its loop makes it, and how it was mixed."""
    settings = job.config.mixing
    mixing = Mixing(settings.kind, settings.concentration, job.config.soft_targets.seed)
    data = TrainingData(
        split=job.transfer_set, views=job.student_views, order_seed=job.config.student.seed,
        distinct_views=job.identity.views, mixing=mixing, classes=len(job.data.classes),
    )  # fmt: skip
    return next(data.batches(0, 16)), mixing


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_live_teacher_is_asked_about_the_mixed_images(tiny: Tiny, kind: str) -> None:
    """Its logits are those of the pixels that the student sees."""
    config = tiny(f"mixing={kind}")
    train_teacher(config)
    distill(config)
    job = Job.open(config)
    batch, mixing = mixed_batch(job, kind)
    signal = teacher_signal(job, job.student_parents())
    assert signal is not None
    (plain,) = job.transfer_set.batches(batch.indices, 16)
    seen = job.student_views(plain.images, plain.indices, 0)
    by_hand = mixing.mix(seen, plain.labels, 0, 0, 4)
    with torch.no_grad():
        expected = load_network(train_teacher(config).folder)(by_hand.images)

    assert job.student_parents().keys() == {"teacher"}  # auto: live
    assert torch.equal(batch.images, by_hand.images)
    torch.testing.assert_close(signal(batch, 0, 4.0).logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        batch.labels,
        by_hand.lam * F.one_hot(plain.labels, 4)
        + (1 - by_hand.lam) * F.one_hot(plain.labels[by_hand.partner], 4),
    )


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_stored_targets_are_mixed_as_an_approximation(
    tiny: Tiny, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """softmax(z / T) is the mixture of the two stored answers' probabilities at T; a warning says so."""
    T = 4.0
    config = tiny(f"mixing={kind}", "soft_targets=stored", "soft_targets.dtype=float32")
    train_teacher(config)
    distill(config)
    job = Job.open(config)
    batch, _ = mixed_batch(job, kind)
    assert batch.mixed_with is not None
    signal = teacher_signal(job, job.student_parents())
    assert signal is not None
    stored = torch.from_numpy(np.load(make_soft_targets(config).folder / "logits.npy")).double()
    p, q = (
        (stored[0, rows] / T).exp() / (stored[0, rows] / T).exp().sum(1, keepdim=True)
        for rows in (batch.indices, batch.mixed_with)
    )
    found = (signal(batch, 0, T).logits.double() / T).softmax(1)

    torch.testing.assert_close(found, batch.share * p + (1 - batch.share) * q, rtol=1e-5, atol=1e-6)
    assert f"mixing={kind} with stored soft targets is an approximation" in caplog.text


def test_no_warning_where_the_teacher_is_asked(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """auto means live with mixing; the students differ from those of stored answers."""
    caplog.set_level(logging.WARNING)
    train_teacher(tiny())
    live = distill(tiny("mixing=mixup"))
    assert "approximation" not in caplog.text
    stored = distill(tiny("mixing=mixup", "soft_targets=stored"))
    assert live.digest != stored.digest


def test_an_ensemble_and_mixing(tiny: Tiny) -> None:
    """Members are asked about the mixed images, or their stored answers are mixed: both train."""
    words = (
        "teacher=ensemble", "~teacher.params.width", "~teacher.params.members",
        "teacher.params.members={a: {name: cnn, seed: 1}, b: {name: cnn, seed: 2}}", "mixing=cutmix",
    )  # fmt: skip
    scores = run(tiny(*words))
    stored = run(tiny(*words, "soft_targets=stored"))

    assert scores.keys() == stored.keys()
    assert scores["student"]["nll"] != stored["student"]["nll"]


def test_mixing_is_the_student_s_alone(tiny: Tiny) -> None:
    """Neither the teacher nor fine-tuning is trained on mixed images: their keys and labels stay."""
    a, b = (Job.open(tiny(*words)).identity for words in ((), ("mixing=mixup", "soft_targets=stored")))

    assert key_of(a.teacher) == key_of(b.teacher)
    assert key_of(a.soft_targets) == key_of(b.soft_targets)
    assert key_of(a.student) != key_of(b.student)
    run(tiny("mixing=mixup"))
    assert finetune(tiny("mixing=mixup")).manifest["epochs"] == 1
