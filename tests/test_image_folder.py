"""Image folders: layouts, decoding, corrupt files; in memory and from disk."""

import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kdistill.config.data import ImageFolder
from kdistill.data import Data, decoding, load_data
from kdistill.data.decoding import decode
from kdistill.data.filesplit import FileSplit
from kdistill.data.splits import ArraySplit
from kdistill.errors import DataError
from tests.cases.data import whole, write_image
from tests.conftest import NO_AUGMENT


def config(root: Path, **changes: Any) -> ImageFolder:
    values: dict[str, Any] = {"name": "image_folder", "root": str(root), "image_size": 8, "channels": 3}
    values |= {"validation": 0.25, "test": 0.2, "split_seed": 0, "train_samples": None, "on_error": "raise"}
    values |= {"unlabelled": None, "augment": NO_AUGMENT}
    return ImageFolder.model_validate(values | changes)


def write_classes(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    for offset, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(root / name / f"{i:03}.png", seed=1000 * (seed + offset) + i)
    return root


def sizes(data: Data) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


# --- layouts ---


def test_folder_per_class(tmp_path: Path) -> None:
    """root/<class>: a fifth of each class is for test, a quarter of the rest for validation."""
    data = load_data(config(write_classes(tmp_path, {"cats": 20, "birds": 10})))
    assert data.classes == ("birds", "cats")
    assert sizes(data) == (18, 6, 6)
    assert data.train.labels.bincount().tolist() == [6, 12]
    assert data.validation.labels.bincount().tolist() == [2, 4]
    assert data.test.labels.bincount().tolist() == [2, 4]
    assert (data.channels, data.image_size) == (3, (8, 8))
    images = torch.cat([whole(split)[0].flatten(1) for split in (data.train, data.validation, data.test)])
    assert len(images.unique(dim=0)) == 30


@pytest.mark.parametrize("validation", ["val", "validation", "valid"])
def test_folder_per_split(tmp_path: Path, validation: str) -> None:
    """root/train, root/val (or validation, valid) and root/test are taken as they are."""
    for seed, (part, count) in enumerate((("train", 5), (validation, 3), ("test", 4))):
        write_classes(tmp_path / part, {"a": count, "b": count + 1}, seed=10 * seed)
    data = load_data(config(tmp_path))
    assert sizes(data) == (11, 7, 9)
    assert torch.equal(
        whole(data.validation)[0][0], decode(str(tmp_path / validation / "a" / "000.png"), 8, 3)
    )


def test_missing_parts_are_cut_from_train(tmp_path: Path) -> None:
    """Only root/train: test and validation are cut from it; with root/test only validation is."""
    write_classes(tmp_path / "train", {"a": 10, "b": 10})
    assert sizes(load_data(config(tmp_path))) == (12, 4, 4)
    write_classes(tmp_path / "test", {"a": 3, "b": 3})
    assert sizes(load_data(config(tmp_path))) == (15, 5, 6)


def test_nested_upper_case_and_hidden_files(tmp_path: Path) -> None:
    """Folders within a class are read, extensions in any case; hidden and other files are not."""
    write_classes(tmp_path, {"a": 5, "b": 5})
    write_image(tmp_path / "a" / "more" / "deep.JPG", seed=1)
    write_image(tmp_path / "a" / ".hidden.png", seed=2)
    write_image(tmp_path / "a" / ".thumbnails" / "x.png", seed=3)
    write_image(tmp_path / ".cache" / "x.png", seed=4)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    data = load_data(config(tmp_path))
    assert data.classes == ("a", "b")
    assert sum(sizes(data)) == 11


def test_split_seed_moves_validation_but_not_test(tmp_path: Path) -> None:
    """Another split_seed: another cut of train and validation, the same test split."""
    write_classes(tmp_path, {"a": 20, "b": 20})
    one, same, other = (load_data(config(tmp_path, split_seed=seed)) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.test_fingerprint == other.test_fingerprint
    assert torch.equal(whole(one.test)[0], whole(other.test)[0])


def test_train_samples_are_nested(tmp_path: Path) -> None:
    """A smaller number of training images is part of a larger one."""
    write_classes(tmp_path, {"a": 20, "b": 20})
    small, large = (load_data(config(tmp_path, train_samples=n)) for n in (6, 12))
    rows = {row.numpy().tobytes() for row in whole(large.train)[0]}
    assert small.train.labels.bincount().tolist() == [3, 3]
    assert all(row.numpy().tobytes() in rows for row in whole(small.train)[0])


def test_test_files_are_read_on_first_use(tmp_path: Path) -> None:
    """Everything but `test` works when the images under root/test are gone or corrupt."""
    for part in ("train", "val", "test"):
        write_classes(tmp_path / part, {"a": 3, "b": 3})
    before = load_data(config(tmp_path)).fingerprint
    shutil.rmtree(tmp_path / "test" / "a")
    data = load_data(config(tmp_path))
    assert len(whole(data.train)[0]) == 6
    assert data.fingerprint == before
    with pytest.raises(DataError, match=r"test must have the classes of .*train: missing a$"):
        _ = data.test


# --- fingerprint ---


def test_fingerprint_follows_names_and_contents(tmp_path: Path) -> None:
    """A moved root keeps it; a changed pixel, a renamed file or another label changes it."""
    write_classes(tmp_path / "one", {"a": 8, "b": 8})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one = load_data(config(tmp_path / "one"))
    assert load_data(config(tmp_path / "two")).fingerprint == one.fingerprint
    for path in sorted((tmp_path / "two" / "a").iterdir()):
        write_image(path, seed=int(path.stem) + 1)
    changed = load_data(config(tmp_path / "two"))
    assert changed.fingerprint != one.fingerprint
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert load_data(config(tmp_path / "two")).fingerprint != changed.fingerprint


# --- in memory and from disk ---


def assert_same_data(one: Data, other: Data) -> None:
    for a, b in ((one.train, other.train), (one.validation, other.validation), (one.test, other.test)):
        for left, right in zip(whole(a), whole(b), strict=True):
            assert torch.equal(left, right)
    assert (one.mean, one.std) == (other.mean, other.std)
    assert one.fingerprint == other.fingerprint
    assert one.test_fingerprint == other.test_fingerprint


@pytest.mark.parametrize(
    "workers",
    [0, pytest.param(2, marks=pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"))],
)
def test_memory_and_disk_give_identical_data(tmp_path: Path, workers: int) -> None:
    """Where images are held and who decodes them changes no pixel, statistic or fingerprint."""
    write_classes(tmp_path, {"a": 12, "b": 9})
    held = load_data(config(tmp_path), memory_gb=1.0)
    streamed = load_data(config(tmp_path), memory_gb=0.0, workers=workers)
    assert isinstance(held.train, ArraySplit)
    assert isinstance(streamed.train, FileSplit)
    assert_same_data(held, streamed)


def test_memory_limit_counts_decoded_bytes(tmp_path: Path) -> None:
    """Train and validation of 16 images of 3 x 8 x 8 bytes: in memory at exactly that size, else not."""
    write_classes(tmp_path, {"a": 10, "b": 10})
    needed = 16 * 3 * 8 * 8 / 2**30
    assert isinstance(load_data(config(tmp_path), memory_gb=needed).train, ArraySplit)
    assert isinstance(load_data(config(tmp_path), memory_gb=needed * 0.99).train, FileSplit)


def test_streamed_batches_follow_the_order(tmp_path: Path) -> None:
    """Slices of the order, the last one smaller; the global random state is not touched."""
    write_classes(tmp_path, {"a": 5, "b": 5})
    train = load_data(config(tmp_path), memory_gb=0.0).train
    state = torch.get_rng_state()
    batches = list(train.batches(torch.tensor([5, 0, 3]), 2))
    assert [batch.indices.tolist() for batch in batches] == [[5, 0], [3]]
    assert torch.equal(torch.cat([batch.images for batch in batches]), whole(train)[0][[5, 0, 3]])
    assert torch.equal(torch.cat([batch.labels for batch in batches]), train.labels[[5, 0, 3]])
    assert torch.equal(torch.get_rng_state(), state)
    assert list(train.batches(torch.arange(0), 2)) == []


def test_streamed_split_moves_its_batches(tmp_path: Path) -> None:
    """`to` changes where batches arrive, not the split it was called on."""
    write_classes(tmp_path, {"a": 5, "b": 5})
    train = load_data(config(tmp_path), memory_gb=0.0).train
    batch = next(train.to(torch.device("meta")).batches(torch.tensor([1, 0]), 2))
    assert {batch.images.device.type, batch.labels.device.type, batch.indices.device.type} == {"meta"}
    assert train.labels.device.type == "cpu"


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_stay_for_the_next_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same process decodes every epoch; after a reading that was broken off, another one from its start."""
    write_classes(tmp_path, {"a": 10, "b": 10})
    train = load_data(config(tmp_path), memory_gb=0.0).train
    assert isinstance(train, FileSplit)
    train = replace(train, workers=1)

    def signed(path: str, image_size: int, channels: int) -> Tensor:
        return (
            torch.tensor(list(os.getpid().to_bytes(4, "little")), dtype=torch.uint8)
            .view(1, 2, 2)
            .expand(3, 2, 2)
        )

    monkeypatch.setattr(decoding, "decode", signed)
    train = replace(train, files=replace(train.files, image_size=2))
    processes = [whole(train)[0].flatten(1).unique(dim=0) for _ in range(2)]
    assert torch.equal(*processes)
    assert processes[0].tolist() != [list(os.getpid().to_bytes(4, "little")) * 3]
    next(train.batches(torch.tensor([3, 4, 5]), 1))
    assert whole(train)[2].tolist() == list(range(len(train)))


def test_reading_images_waits_for_no_other_library() -> None:
    """A worker that starts afresh imports what decoding needs; torchvision and scikit-learn take seconds."""
    code = (
        "import sys, kdistill.data;"
        " heavy = {'torchvision', 'sklearn', 'hydra'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- corrupt images ---


def corrupt_train(root: Path) -> list[Path]:
    """A laid-out folder with a truncated, an empty and a false image among 10 training images."""
    for part in ("train", "val", "test"):
        write_classes(root / part, {"a": 5, "b": 5})
    bad = [
        root / "train" / "a" / "001.png",
        root / "train" / "b" / "000.png",
        root / "train" / "b" / "004.png",
    ]
    bad[0].write_bytes(bad[0].read_bytes()[:200])
    bad[1].write_bytes(b"")
    bad[2].write_text("not an image")
    return bad


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "disk"])
def test_corrupt_image_is_named(tmp_path: Path, memory_gb: float) -> None:
    """on_error=raise: the first corrupt file, and the option that helps."""
    bad = corrupt_train(tmp_path)
    with pytest.raises(DataError) as caught:
        whole(load_data(config(tmp_path), memory_gb=memory_gb).train)
    assert any(str(caught.value).startswith(f"cannot decode {path} (") for path in bad)
    assert str(caught.value).endswith("); dataset.on_error=skip leaves such images out")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_corrupt_image_met_by_a_worker_is_named(tmp_path: Path) -> None:
    """The same one-line message as without workers, no traceback of another process."""
    corrupt_train(tmp_path)
    with pytest.raises(DataError) as caught:
        load_data(config(tmp_path), memory_gb=0.0, workers=1)
    assert str(caught.value).startswith("cannot decode ")
    assert "\n" not in str(caught.value)


def test_corrupt_images_are_dropped_at_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """on_error=skip in memory: the split is shorter, the count is kept and logged once."""
    bad = corrupt_train(tmp_path)
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        data = load_data(config(tmp_path, on_error="skip"))
        whole(data.train)
    assert (len(data.train), data.train.skipped, data.validation.skipped) == (7, 3, 0)
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert caplog.messages == [f"left out 3 corrupt images of 10, such as {bad[0]}"]


def test_corrupt_images_are_dropped_from_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """on_error=skip from disk: positions stay, batches lack the corrupt images; logged once only."""
    bad = corrupt_train(tmp_path)
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        train = load_data(config(tmp_path, on_error="skip"), memory_gb=0.0).train
        for _ in range(2):
            images, labels, indices = whole(train)
            assert indices.tolist() == [0, 2, 3, 4, 6, 7, 8]
            assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert (len(train), train.skipped) == (10, 3)
    assert caplog.messages == [f"left out 3 corrupt images of 10, such as {bad[0]}"]
    held = load_data(config(tmp_path, on_error="skip")).train
    assert torch.equal(images, whole(held)[0])
    assert list(train.batches(torch.tensor([1]), 1)) == []


def test_fingerprint_tells_dropped_positions_apart(tmp_path: Path) -> None:
    """Positions differ between memory and disk once images were dropped, so the fingerprints must too."""
    corrupt_train(tmp_path)
    held, streamed = (load_data(config(tmp_path, on_error="skip"), memory_gb=gb) for gb in (1.0, 0.0))
    assert held.fingerprint != streamed.fingerprint


def test_class_of_corrupt_images_only(tmp_path: Path) -> None:
    """When skipping leaves a class empty, class and split are named."""
    for part in ("train", "val", "test"):
        write_classes(tmp_path / part, {"a": 2, "b": 2})
    for path in (tmp_path / "train" / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="class 'b' has no sample in the train split"):
        load_data(config(tmp_path, on_error="skip"))


# --- what is wrong with a folder ---


def test_folder_problems_are_named(tmp_path: Path) -> None:
    """Each mistake of layout has its own message."""

    def problem(root: Path) -> str:
        with pytest.raises(DataError) as caught:
            load_data(config(root))
        return str(caught.value)

    assert problem(tmp_path / "none") == f"dataset.root={tmp_path / 'none'}: there is no such folder."
    empty = tmp_path / "empty"
    empty.mkdir()
    assert problem(empty) == (
        f"{empty} has no class folders: expected {empty}/<class> with images, per class"
    )
    one = write_classes(tmp_path / "one", {"cats": 3})
    assert problem(one) == f"{one} has one class folder, 'cats': expected at least 2 classes"
    (one / "dogs").mkdir()
    assert problem(one).startswith(f"class folder {one / 'dogs'} has no images (.jpg .jpeg .png ")
    rare = write_classes(tmp_path / "rare", {"cats": 8, "dogs": 1})
    assert problem(rare).startswith("class 'dogs' has no sample in the train split")
    no_train = write_classes(tmp_path / "no_train", {"test": 2, "dogs": 2})
    assert problem(no_train) == (
        f"{no_train} holds test/ but no train/: expected train/ with a folder per class"
    )


def test_other_classes_in_validation_are_named(tmp_path: Path) -> None:
    """Missing and unknown classes of a split, in one message."""
    write_classes(tmp_path / "train", {"cats": 3, "dogs": 3})
    write_classes(tmp_path / "val", {"cats": 3, "dog": 3})
    with pytest.raises(DataError) as caught:
        load_data(config(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / 'val'} must have the classes of {tmp_path / 'train'}: missing dogs; not among them dog"
    )


# --- decoding ---


def decoded(image: Image.Image, path: Path, size: int, channels: int, **options: Any) -> Tensor:
    image.save(path, **options)
    out = decode(str(path), size, channels)
    assert (out.shape, out.dtype) == ((channels, size, size), torch.uint8)
    return out


def test_central_square_is_kept(tmp_path: Path) -> None:
    """Of an 8 x 4 image the middle four columns remain, unchanged at size 4."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    out = decoded(Image.fromarray(pixels), tmp_path / "x.png", 4, 3)
    assert np.array_equal(out.permute(1, 2, 0).numpy(), pixels[:, 2:6])
    upright = decoded(Image.fromarray(pixels.transpose(1, 0, 2)), tmp_path / "y.png", 4, 3)
    assert np.array_equal(upright.permute(1, 2, 0).numpy(), pixels[:, 2:6].transpose(1, 0, 2))


def test_shrinking_averages(tmp_path: Path) -> None:
    """With antialiasing a fine chequerboard becomes grey; plain bilinear would keep black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    out = decoded(Image.fromarray(board), tmp_path / "x.png", 4, 1)
    assert int((out.int() - 128).abs().max()) <= 8


def test_very_long_image(tmp_path: Path) -> None:
    """An image of 1 x 3,000 pixels is only its central pixel."""
    row = np.zeros((1, 3000), np.uint8)
    row[0, 1499:1501] = 200
    assert decoded(Image.fromarray(row), tmp_path / "x.png", 4, 1).unique().tolist() == [200]


def test_channels(tmp_path: Path) -> None:
    """Colour to grey by luma; grey to three equal channels."""
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert decoded(red, tmp_path / "red.png", 4, 1).unique().tolist() == [76]
    grey = decoded(Image.new("L", (4, 4), 90), tmp_path / "grey.png", 4, 3)
    assert grey.unique().tolist() == [90]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    """The hidden colour of transparent pixels does not show: alpha channels and palettes."""
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    image.paste((10, 10, 10, 0), (0, 0, 4, 2))
    if mode == "P":
        indexed = Image.new("P", (4, 4), 1)
        indexed.putpalette([200, 0, 0, 0, 0, 0])
        indexed.paste(0, (0, 0, 4, 2))
        out = decoded(indexed, tmp_path / "x.png", 4, 3, transparency=0)
    else:
        out = decoded(image.convert(mode), tmp_path / "x.png", 4, 3)
    assert out[:, :2].unique().tolist() == [255]
    assert out[:, 2:].unique().tolist() == [0]


def test_opaque_palette_shows_its_colours(tmp_path: Path) -> None:
    """A palette image is its colours, not its indices."""
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert decoded(image, tmp_path / "x.png", 4, 3)[:, 0, 0].tolist() == [10, 20, 30]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    """Print colours become screen colours: cyan is no red, much green and blue."""
    out = decoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), tmp_path / "x.jpg", 8, 3)
    assert out[:, 4, 4].tolist() == pytest.approx([0, 255, 255], abs=4)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey(tmp_path: Path, suffix: str) -> None:
    """The upper eight bits are kept: no clipping to white, no wrapping around."""
    values = np.array([[0, 255, 256, 0x7FFF], [0x8000, 0xABCD, 0xFF00, 0xFFFF]] * 2, np.uint16)
    out = decoded(Image.fromarray(values), tmp_path / f"x.{suffix}", 4, 1)
    assert np.array_equal(out[0].numpy(), values >> 8)


def test_floating_point_image_is_refused(tmp_path: Path) -> None:
    """Pixels without a known range are an error, not a guess."""
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="floating-point numbers, of unknown range"):
        decode(str(tmp_path / "x.tiff"), 4, 1)


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    """Orientation 6, a phone held upright: the stored left edge is the top."""
    stored = np.zeros((16, 16), np.uint8)
    stored[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    out = decoded(Image.fromarray(stored), tmp_path / "x.jpg", 16, 1, exif=exif)
    assert int(out[0, :7].min()) > 240
    assert int(out[0, 9:].max()) < 15


def test_large_jpeg_is_decoded_small_and_right(tmp_path: Path) -> None:
    """JPEG's own reduction on decoding keeps a smooth image within two grey levels of the full decode."""
    ramp = np.linspace(0, 255, 512).astype(np.uint8)[None].repeat(512, 0)
    image = Image.fromarray(ramp)
    out = decoded(image, tmp_path / "x.jpg", 16, 1, quality=95)
    full = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(out[0].numpy().astype(int) - full).max() <= 2
