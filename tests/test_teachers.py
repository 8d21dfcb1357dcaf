"""Teacher signals: the same logits live and stored, and a teacher that stays as it is."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdistill import distill, load_network, make_soft_targets, train_teacher
from kdistill.config.schema import Config
from kdistill.data import Batch, Shown, Views
from kdistill.data.splits import ArraySplit
from kdistill.engine import Engine
from kdistill.models import build_classifier
from kdistill.stored import AllLogits, Reader
from kdistill.teachers import LiveTeacher, StoredTeacher

CPU = Engine(torch.device("cpu"), "fp32")


def teacher(name: str = "resnet8", **params) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_classifier(name, params, classes=5, channels=1, image_size=(12, 12), mean=[0.4], std=[0.3])


def pixels(n: int = 100) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 12, 12), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.mark.parametrize(
    ("name", "params"), [("resnet8", {"width": 8}), ("resnet20", {}), ("mlp", {"hidden": [64]})]
)
@pytest.mark.parametrize("size", [1, 5, 16, 31, 100])
def test_a_sample_s_logits_are_the_same_bits_in_any_batch(name: str, params: dict, size: int) -> None:
    """Whatever the size of the batch, the order and the company: the same bits."""
    live = LiveTeacher(teacher(name, **params), batch_size=16, engine=CPU)
    images = pixels()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(size))
    shuffled = torch.cat([live.logits(images[part]) for part in order.split(size)])

    assert torch.equal(live.logits(images)[order], shuffled)


def test_the_teacher_stays_as_it_is() -> None:
    """Neither weights nor batch-norm statistics move, no gradient is asked for, dropout is off."""
    network = teacher("resnet8", width=4).train()
    before = copy.deepcopy(network.state_dict())
    live = LiveTeacher(network, batch_size=16, engine=CPU)
    logits = live.logits(pixels())

    assert not network.training
    assert not logits.requires_grad
    assert not any(p.requires_grad for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(before[name], value), name


@pytest.mark.parametrize("in_memory", [2**30, 0])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_stored_logits_are_found_by_view_and_sample(tmp_path: Path, in_memory: int, dtype: str) -> None:
    """Row (view, sample) of the file, as float32, held in memory or mapped."""
    logits = np.arange(2 * 4 * 3).reshape(2, 4, 3).astype(dtype)
    np.save(tmp_path / "logits.npy", logits)
    reader = Reader(tmp_path / "logits.npy", AllLogits(logits.shape, dtype), CPU.device, in_memory)
    indices = torch.tensor([3, 0])
    batch = Batch(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), indices)

    rows = StoredTeacher(reader)(batch, 1, 4.0).logits

    assert rows.tolist() == [[21, 22, 23], [12, 13, 14]]
    assert rows.dtype == torch.float32


def test_stored_logits_are_looked_up_once_for_batches_read_together(tmp_path: Path) -> None:
    """Each batch gets its own rows, in the view that is asked for; a part of a batch is looked up by itself."""
    logits = np.arange(2 * 6 * 3).reshape(2, 6, 3).astype("float32")
    np.save(tmp_path / "logits.npy", logits)
    asked: list[list[int]] = []

    class Counted(Reader):
        def logits(self, view: int, indices: torch.Tensor) -> torch.Tensor:
            asked.append(indices.tolist())
            return super().logits(view, indices)

    signal = StoredTeacher(Counted(tmp_path / "logits.npy", AllLogits(logits.shape, "float32"), CPU.device))
    split = ArraySplit(torch.zeros(6, 1, 1, 1, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    parts = [torch.tensor([5, 0]), torch.tensor([2, 1]), torch.tensor([3])]
    batches = list(Shown(split, Views(seed=0, crop=0, flip=False)).read(parts, 1))

    for batch in batches:
        assert signal(batch, 1, 4.0).logits.tolist() == logits[1][batch.indices.numpy()].tolist()
    assert asked == [[5, 0, 2, 1, 3]]
    assert signal(batches[1], 0, 4.0).logits.tolist() == logits[0][[2, 1]].tolist()
    assert signal(batches[1][1:], 0, 4.0).logits.tolist() == logits[0][[1]].tolist()
    assert asked[1:] == [[5, 0, 2, 1, 3], [1]]
    other = next(Shown(split, Views(seed=0, crop=0, flip=False)).read(parts[::-1], 0))
    assert signal(other, 0, 4.0).logits.tolist() == logits[0][[3]].tolist()


def student_weights(config: Config) -> dict[str, torch.Tensor]:
    return load_network(distill(config).folder).state_dict()


@pytest.mark.parametrize(
    "architecture",
    [
        ("teacher=resnet8", "teacher.params.width=8"),
        ("teacher=mlp", "~teacher.params.width", "teacher.params.hidden=[64]"),
    ],
)
def test_stored_in_float32_equals_live_bit_for_bit(
    tiny: Callable[..., Config], architecture: tuple[str, ...]
) -> None:
    """With one view per epoch, a student cannot tell stored targets from the live teacher.

    The batches differ in size (the teacher's 32, the student's 20), so only padding can make this hold.
    """
    common = (*architecture, "student.batch_size=20", "student.epochs=4")
    stored = tiny(*common, "soft_targets=stored", "soft_targets.dtype=float32")
    live = tiny(*common, "soft_targets=live", "soft_targets.dtype=float32")
    train_teacher(stored)

    a, b = student_weights(stored), student_weights(live)

    assert distill(stored).folder != distill(live).folder
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_stored_equals_live_with_two_threads_and_real_sizes(tiny: Callable[..., Config]) -> None:
    """The same at 28 x 28 with ResNet-20, batches of 128 and two threads, as users run it."""
    threads = torch.get_num_threads()
    common = ("dataset.image_size=28", "dataset.samples=1200", "teacher=resnet20", "teacher.params.width=16")
    common += ("teacher.epochs=1", "student.epochs=2", "student.batch_size=96", "soft_targets.batch_size=128")
    common += ("soft_targets.dtype=float32", "device.threads=2")
    try:
        train_teacher(tiny(*common))
        a, b = (student_weights(tiny(*common, f"soft_targets={mode}")) for mode in ("stored", "live"))
    finally:
        torch.set_num_threads(threads)

    assert all(torch.equal(a[name], b[name]) for name in a)


def test_float16_targets_differ_by_their_rounding(tiny: Callable[..., Config]) -> None:
    """float16 keeps 11 bits: logits are off by less than one part in 2,000, and the student by little."""
    exact, half = tiny("soft_targets.dtype=float32"), tiny("soft_targets.dtype=float16")
    train_teacher(exact)
    logits = np.load(make_soft_targets(exact).folder / "logits.npy")
    rounded = np.load(make_soft_targets(half).folder / "logits.npy")
    a, b = student_weights(exact), student_weights(half)
    moved = torch.cat([(a[n] - b[n]).flatten().float() for n in a]).norm()
    size = torch.cat([a[n].flatten().float() for n in a]).norm()

    assert rounded.dtype == np.float16
    assert 0 < np.abs(logits - rounded).max() < np.abs(logits).max() / 2000
    assert 0 < moved < 0.01 * size


def test_stored_logits_are_those_of_the_view_s_pixels(tiny: Callable[..., Config]) -> None:
    """Row (v, i) of the file is what the trained teacher says to view v of sample i."""
    from kdistill.stages.job import Job

    config = tiny("soft_targets.dtype=float32", "soft_targets.views=2")
    folder = train_teacher(config).folder
    stored = np.load(make_soft_targets(config).folder / "logits.npy")
    job = Job(config)
    network = load_network(folder)
    indices = torch.tensor([17, 3, 200])
    seen = job.student_views(job.data.train.images[indices], indices, 1)
    with torch.no_grad():
        expected = network(seen)

    assert stored.shape == (2, len(job.data.train), 4)
    torch.testing.assert_close(torch.from_numpy(stored[1, indices]), expected, rtol=1e-4, atol=1e-5)
