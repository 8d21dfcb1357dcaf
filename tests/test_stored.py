"""Stored soft targets on disk: all logits, or the top k and one number for the rest."""

import errno
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdistill import distill, load_config, make_soft_targets, train_teacher
from kdistill.config.schema import Config, Stage
from kdistill.errors import ConfigError, RunError, StorageError
from kdistill.stages import check_before, run_stage
from kdistill.stages.job import Job
from kdistill.stages.signals import teacher_signal
from kdistill.stored import Layout, Reader, TopLogits, Writer, layout_of
from tests.cases.stages import at_stage
from tests.conftest import TINY

Tiny = Callable[..., Config]
CPU = torch.device("cpu")


def layout(*shape: int, dtype: str = "float32", top_k: int | None = None) -> Layout:
    return layout_of({"shape": shape, "dtype": dtype, "top_k": top_k})


def through_disk(folder: Path, logits: Tensor, **how) -> Tensor:
    """What is read of logits `[N, K]` that were written."""
    stored = layout(1, *logits.shape, **how)
    Writer.create(folder / stored.file, stored).write(0, torch.arange(len(logits)), logits)
    return Reader(folder / stored.file, stored, CPU).logits(0, torch.arange(len(logits)))


def some(n: int, classes: int) -> Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(0))


# --- the format ---


def test_all_logits_are_a_plain_array(tmp_path: Path) -> None:
    """The file is, byte for byte, what numpy saves."""
    logits = some(5, 7).numpy().astype(np.float16)
    np.save(tmp_path / "expected.npy", logits[None])
    through_disk(tmp_path, torch.from_numpy(logits).float(), dtype="float16")

    assert (tmp_path / "logits.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_the_top_k_by_hand(tmp_path: Path) -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.06, 0.04, the two largest kept: the three others share 0.3 evenly."""
    logits = torch.tensor([[0.2, 0.4, 0.06, 0.3, 0.04]]).log() + 50
    read = through_disk(tmp_path, logits, top_k=2)
    (row,) = np.load(tmp_path / "top_k.npy")[0]

    assert row["classes"].tolist() == [1, 3]
    assert row["tail"].tolist() == pytest.approx([math.log(0.3 / 0.4)], abs=1e-5)
    assert read.softmax(1).tolist() == [pytest.approx([0.1, 0.4, 0.1, 0.3, 0.1], rel=1e-5)]
    assert read[0, [1, 3]].tolist() == logits[0, [1, 3]].tolist()  # not only their differences


@pytest.mark.parametrize(
    ("classes", "number", "size"),
    [
        (256, "uint8", 3 * (1 + 2) + 2),
        (257, "uint16", 3 * (2 + 2) + 2),
        (2**16, "uint16", 14),
        (2**16 + 1, "int32", 20),
    ],
)
def test_class_numbers_take_as_few_bytes_as_they_need(
    tmp_path: Path, classes: int, number: str, size: int
) -> None:
    """Bytes of a sample for k=3 in float16, and the last class comes back."""
    logits = torch.zeros(2, classes)
    logits[:, -1], logits[:, 0], logits[:, 1] = 30.0, 20.0, 10.0
    stored = layout(1, 2, classes, dtype="float16", top_k=3)

    assert stored.row["classes"].base == np.dtype(number)
    assert (stored.row.itemsize, stored.bytes) == (size, 2 * size)
    read = through_disk(tmp_path, logits, dtype="float16", top_k=3)
    assert read.topk(3).indices.tolist() == [[classes - 1, 0, 1]] * 2
    assert read.topk(3).values.tolist() == [[30, 20, 10]] * 2


@pytest.mark.parametrize("level", [0, 300, -300])
def test_float16_holds_the_tail_at_any_level(tmp_path: Path, level: float) -> None:
    """Exact at T=1 for the top k, up to the rounding of float16, which logits around 300 feel most."""
    logits = some(64, 1000) + level
    read = through_disk(tmp_path, logits, dtype="float16", top_k=10)
    top = logits.topk(10).indices
    kept, true = (z.softmax(1).gather(1, top) for z in (read, logits))

    assert read.softmax(1).sum(1).allclose(torch.ones(64))
    torch.testing.assert_close(kept, true, rtol=2**-10 * max(20, abs(level)), atol=0)


def test_at_another_temperature_the_error_shrinks_with_k(tmp_path: Path) -> None:
    """Total variation of the softmax at T=4: smaller with every k, and 0 where one class is left to share."""
    logits = some(50, 20)

    def error(k: int, T: float) -> float:
        read = through_disk(tmp_path, logits, top_k=k)
        return float(((read / T).softmax(1) - (logits / T).softmax(1)).abs().sum(1).mean() / 2)

    errors = [error(k, 4.0) for k in (1, 2, 5, 10, 15, 18)]
    assert errors == sorted(errors, reverse=True)
    assert 0.02 < errors[2] < 0.2
    assert error(19, 4.0) < 1e-6
    assert error(5, 1.0) < errors[2]


def test_the_top_k_stay_on_top(tmp_path: Path) -> None:
    """The mean of the others is below each of the k: a hard label from stored targets is the teacher's."""
    logits = some(100, 50)
    read = through_disk(tmp_path, logits, top_k=3)

    assert torch.equal(read.topk(3).indices, logits.topk(3).indices)


@pytest.mark.parametrize("in_memory", [2**30, 0])
@pytest.mark.parametrize("top_k", [None, 2])
def test_two_writers_fill_one_view(tmp_path: Path, in_memory: int, top_k: int | None) -> None:
    """Rows in any order by several writers; one view that serves for all; the same held and mapped."""
    stored, logits = layout(1, 8, 5, top_k=top_k), some(8, 5)
    Writer.create(tmp_path / "file", stored)
    writers = [Writer(tmp_path / "file", stored) for _ in range(2)]
    order = torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
    for writer, part in zip(writers, order.split(4), strict=True):
        writer.write(0, part, logits[part])
        writer.flush()
    reader = Reader(tmp_path / "file", stored, CPU, in_memory)
    read = reader.logits(0, torch.arange(8))

    torch.testing.assert_close(read.log_softmax(1).amax(1), logits.log_softmax(1).amax(1))
    assert torch.equal(reader.logits(3, order), read[order])


@pytest.mark.parametrize(("top_k", "dtype"), [(None, "float16"), (1, "float32")])
def test_views_are_told_apart_however_they_are_held(tmp_path: Path, top_k: int | None, dtype: str) -> None:
    """Mapped, held as a file of which a view would take more room, or held and unpacked view by view: the same bits."""
    stored, views = layout(2, 8, 6, dtype=dtype, top_k=top_k), some(16, 6).view(2, 8, 6)
    writer = Writer.create(tmp_path / "file", stored)
    for view, logits in enumerate(views):
        writer.write(view, torch.arange(8), logits)
    room = stored.bytes  # less than a view in float32: 4 x 8 x 6 bytes
    asked = [(0, [3, 1]), (1, [1, 2, 2]), (0, [7]), (2, [4, 0])]

    assert room < 4 * 8 * 6 or top_k is None
    readers = [Reader(tmp_path / "file", stored, CPU, held) for held in (0, room, 2**30)]
    read = [[reader.logits(view, torch.tensor(rows)) for view, rows in asked] for reader in readers]
    for mapped, *others in zip(*read, strict=True):
        assert all(torch.equal(mapped, other) for other in others)


@pytest.mark.parametrize("top_k", [None, 2])
def test_what_is_no_number_is_not_stored(top_k: int | None) -> None:
    """Not finite, in itself or in float16; a class that is -infinity may not vanish in the tail."""
    stored = layout(1, 1, 4, dtype="float16", top_k=top_k)

    with pytest.raises(
        RunError, match=r"^the teacher gives logits that are not finite; train it again or with"
    ):
        stored.pack(torch.tensor([[3.0, 2.0, 1.0, -math.inf]]))
    with pytest.raises(
        RunError,
        match=r"^the teacher's logits reach 7e\+04, too large for float16; set soft_targets.dtype=float32$",
    ):
        stored.pack(torch.tensor([[7e4, 2.0, 1.0, 0.0]]))


# --- the stages ---


def signal_of(config: Config) -> Tensor:
    """What a student is told of the first twelve samples at T=1."""
    job = Job.open(config)
    (batch,) = job.transfer_set.batches(torch.arange(12), 12)
    signal = teacher_signal(job, job.student_parents())
    assert signal is not None
    return signal(batch, 0, 1.0).logits


def test_top_k_from_the_teacher_to_the_student(tiny: Tiny) -> None:
    """Its manifest and table say what is stored; the student's T=1 probabilities are the teacher's."""
    words = ("soft_targets.dtype=float32", "student.epochs=1")
    top = tiny(*words, "soft_targets.top_k=2")
    train_teacher(top)
    artifact = make_soft_targets(top)
    for config in (tiny(*words), top):
        distill(config)
    full, read = signal_of(tiny(*words)).softmax(1), signal_of(top).softmax(1)
    result = run_stage(at_stage(top, "soft-targets"))
    shown = dict(zip(result.tables[0].columns, result.tables[0].rows[0], strict=True))

    assert {name: artifact.manifest[name] for name in ("shape", "dtype", "top_k")} == {
        "shape": [1, 288, 4], "dtype": "float32", "top_k": 2,
    }  # fmt: skip
    assert (shown["dtype"], shown["top k"]) == ("float32", 2)
    assert [path.name for path in artifact.folder.glob("*.npy")] == ["top_k.npy"]
    torch.testing.assert_close(read.topk(2).values, full.topk(2).values)
    assert torch.equal(read.topk(2).indices, full.topk(2).indices)


def test_members_of_an_ensemble_are_stored_by_their_top_k(tiny: Tiny) -> None:
    """Three of four classes lose nothing: the students are told the same; mixed images' answers are read as well."""
    members = "teacher.params.members={a: {name: mlp, epochs: 1}, b: {name: cnn, epochs: 1}}"
    words = ("teacher=ensemble", "~teacher.params.members", "~teacher.params.width", members)
    words = (*words, "student.epochs=1", "soft_targets.dtype=float32")
    full, config = tiny(*words), tiny(*words, "soft_targets.top_k=3")
    run_stage(at_stage(config, "train-teacher"))
    for each in (full, config):
        distill(each)

    torch.testing.assert_close(signal_of(config), signal_of(full))
    mixed = tiny(*words, "soft_targets=stored", "soft_targets.top_k=3", "mixing=mixup")
    assert distill(mixed).manifest["epochs"] == 1


def test_a_file_of_outputs_is_stored_by_its_top_k(tiny: Tiny, tmp_path: Path) -> None:
    """teacher=file: the same probabilities for the largest of its rows."""
    logits = some(320, 4)
    np.save(tmp_path / "outputs.npy", logits.numpy())
    words = [f"teacher.weights={tmp_path / 'outputs.npy'}", "soft_targets.top_k=2"]
    config = tiny("~teacher.params.width", "teacher.name=file", *words, "soft_targets.dtype=float32")
    distill(config)
    ids = [int(name) for name in Job.open(config).transfer_set.ids[:12]]

    torch.testing.assert_close(
        signal_of(config).softmax(1).topk(2).values, logits[ids].softmax(1).topk(2).values
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "soft_targets.top_k=4",
            "soft_targets.top_k=4 must be smaller than the teacher's number of classes, 4; soft_targets.top_k=null"
            " stores all of them",
        ),
        ("soft_targets.top_k=0", "soft_targets.top_k=0: must be greater than or equal to 1"),
        (
            "soft_targets.top_k=2 dataset=synthetic_multilabel",
            "soft_targets.top_k=2 is for classification, but synthetic is for multilabel; take it out",
        ),
        (
            "soft_targets.top_k=2 dataset=diabetes teacher=mlp ~teacher.params.width student=mlp"
            " ~student.params.channels",
            "soft_targets.top_k=2 is for classification, but diabetes is for regression; take it out",
        ),
    ],
)
@pytest.mark.parametrize("stage", ["run", "soft-targets"])
def test_top_k_that_cannot_be(words: str, text: str, stage: Stage, tmp_path: Path) -> None:
    """Refused before the teacher is trained, by the run and by the stage."""
    other = "dataset=" in words
    common = [w for w in TINY if not (other and w.startswith("dataset"))]
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}$"):
        check_before([at_stage(load_config(*common, f"runs={tmp_path}", *words.split()), stage)])
    assert list(tmp_path.rglob("model.safetensors")) == []


def test_top_k_that_nothing_is_stored_of(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """With the live teacher it has no effect, and that is said; the student is the same."""
    config = tiny("soft_targets=live", "soft_targets.top_k=2")
    check_before([config])

    assert "soft_targets.top_k=2 has no effect: the teacher runs in every step" in caplog.text
    assert Job.open(config).identity.student == Job.open(tiny("soft_targets=live")).identity.student


# --- the disk ---


@pytest.mark.parametrize(
    ("words", "needed", "advice"),
    [
        (
            "dataset.classes=20 soft_targets.dtype=float32 soft_targets.views=9",
            "0.21 MB (views x samples x outputs: 9 x 288 x 20)",
            "make them smaller with soft_targets.dtype=float16 or soft_targets.top_k=10 or soft_targets.views=4, free",
        ),
        ("soft_targets.views=1", "0.00 MB (views x samples x outputs: 1 x 288 x 4)", "free"),
    ],
)
def test_a_disk_that_cannot_hold_them(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, words: str, needed: str, advice: str
) -> None:
    """Refused before the teacher is trained, and again before it runs, with what helps."""
    monkeypatch.setattr("kdistill.stages.soft_targets.free_bytes", lambda folder: 1000)
    config = tiny(*words.split())
    text = (
        f"the soft targets need {needed}, but 0.00 MB are free in {Path(config.runs) / 'artifacts'}: {advice} some"
        " space (`kdistill artifacts gc`) or choose another folder with runs=DIR"
    )
    with pytest.raises(StorageError) as early:
        check_before([config])
    assert not (Path(config.runs) / "artifacts" / "teacher").exists()
    train_teacher(config)
    monkeypatch.setattr(
        "kdistill.teachers.LiveTeacher.outputs",
        lambda self, images: pytest.fail("the teacher ran") if len(images) > 1 else _zeros(config),
    )
    with pytest.raises(StorageError) as late:
        make_soft_targets(config)
    assert str(early.value) == str(late.value) == text


def _zeros(config: Config):
    from kdistill.losses.outputs import Outputs

    return Outputs(torch.zeros(1, config.dataset.classes))


def test_what_is_there_or_begun_needs_no_space(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither finished soft targets nor those that a cut-off run has reserved are counted again."""
    config = tiny()
    train_teacher(config)
    folder = make_soft_targets(config).folder
    monkeypatch.setattr("kdistill.stages.soft_targets.free_bytes", lambda folder: 0)
    check_before([config])
    folder.rename(folder.with_name(folder.name + ".partial"))
    check_before([config])


def test_their_space_is_reserved(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota that nobody can ask for shows before the teacher runs, not in the middle of a page."""
    config = tiny()
    train_teacher(config)

    def full(*args: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"^the disk is full: cannot write to "):
        make_soft_targets(config)


def test_large_ones_are_announced(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """How much will be written, before it is."""
    monkeypatch.setattr("kdistill.stages.soft_targets.LARGE_BYTES", 1000)
    config = tiny()
    train_teacher(config)
    with caplog.at_level("INFO", logger="kdistill"):
        make_soft_targets(config)

    assert "soft targets: 0.01 MB will be written to " in caplog.text


def test_an_older_manifest_is_of_all_logits(tiny: Tiny) -> None:
    """It has no `top_k`."""
    config = tiny()
    train_teacher(config)
    path = make_soft_targets(config).folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["top_k"]
    path.write_text(json.dumps(manifest))

    assert distill(config).manifest["epochs"] == 3
    assert not isinstance(layout_of(manifest), TopLogits)
