"""Decoded images on disk: the same data as without, made once, made anew when it must be, never half-written."""

import errno
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from kdistill.config.data import ImageFolder, ImageTable, Synthetic
from kdistill.data import Data, cache, decoding, load_data
from kdistill.data.decoding import decode
from kdistill.data.filesplit import FileSplit
from kdistill.data.splits import ArraySplit
from kdistill.errors import ConfigError, DataError, StorageError
from tests.cases.data import assert_same, whole, write_image
from tests.conftest import NO_AUGMENT

COMMON: dict[str, Any] = {
    "image_size": 8,
    "channels": 3,
    "on_error": "raise",
    "validation": 0.25,
    "test": 0.2,
    "split_seed": 0,
    "train_samples": None,
    "unlabelled": None,
    "augment": NO_AUGMENT,
}


def folder_of(root: Path, **changes: Any) -> ImageFolder:
    return ImageFolder.model_validate({"name": "image_folder", "root": str(root), **COMMON, **changes})


def table_of(root: Path, table: str, **changes: Any) -> ImageTable:
    own = {"name": "image_table", "root": str(root), "table": table, "task": None, "targets": None}
    return ImageTable.model_validate({**own, **COMMON, **changes})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of ten images, JPEG and PNG."""
    for i in range(20):
        write_image(tmp_path / "pets.v2" / "ab"[i % 2] / f"{i:03}.{('jpg', 'png')[i // 2 % 2]}", seed=i)
    return tmp_path / "pets.v2"


class Cached(NamedTuple):
    folder: Path

    def load(self, config: ImageFolder | ImageTable | Synthetic, memory_gb: float = 0.0, **how: Any) -> Data:
        return load_data(config, memory_gb=memory_gb, cache=str(self.folder), **how)

    @property
    def files(self) -> list[str]:
        """Names without the hash of the root; locks left out."""
        names = [path.name for path in self.folder.iterdir() if path.suffix != ".lock"]
        return sorted(name.rpartition("-")[0] + Path(name).suffix for name in names)

    @property
    def pixels(self) -> Path:
        (path,) = self.folder.glob("*-train-*.npy")
        return path


@pytest.fixture
def kept(tmp_path: Path) -> Cached:
    return Cached(tmp_path / "cache")


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the images that are decoded in this process."""
    paths: list[str] = []

    def counted(path: str, image_size: int, channels: int) -> Tensor:
        paths.append(path)
        return decode(path, image_size, channels)

    monkeypatch.setattr(decoding, "decode", counted)
    return paths


# --- the same data ---


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "disk"])
def test_a_cache_changes_nothing_but_who_decodes(
    images: Path, kept: Cached, decodings: list[str], memory_gb: float
) -> None:
    """Pixels of decode(), labels, ids, statistics, fingerprints, kind of split: on making it and on reading it."""
    plain = load_data(folder_of(images), memory_gb=memory_gb)
    made = kept.load(folder_of(images), memory_gb)
    decodings.clear()
    read = kept.load(folder_of(images), memory_gb)

    assert isinstance(read.train, ArraySplit if memory_gb else FileSplit)
    assert_same(read, made)
    assert decodings == []
    assert_same(plain, read)
    for name, image in zip(read.train.ids, whole(read.train)[0], strict=True):
        assert torch.equal(image, decode(str(images / name), 8, 3))


def test_the_file_is_an_array_of_numpy_s(images: Path, kept: Cached) -> None:
    """uint8 [n, C, H, W] of all of the folder's images in their order, with its checksum and size beside it."""
    kept.load(folder_of(images))

    assert kept.files == ["pets.v2-train-3x8x8.json", "pets.v2-train-3x8x8.npy"]
    pixels = np.load(kept.pixels)
    assert (pixels.shape, pixels.dtype) == ((20, 3, 8, 8), np.uint8)
    assert np.array_equal(pixels[0], decode(str(images / "a" / "000.jpg"), 8, 3).numpy())
    about = json.loads(kept.pixels.with_suffix(".json").read_text())
    assert about["bytes"] == kept.pixels.stat().st_size
    assert about["failures"] == {}


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning", "ignore:This DataLoader will create")
def test_workers_make_the_same_cache(images: Path, tmp_path: Path) -> None:
    """Who decodes changes no byte."""
    one, other = Cached(tmp_path / "one"), Cached(tmp_path / "other")
    one.load(folder_of(images))
    other.load(folder_of(images), workers=2)

    assert one.pixels.read_bytes() == other.pixels.read_bytes()


def test_other_cuts_find_theirs(images: Path, kept: Cached, decodings: list[str]) -> None:
    """All of a root's images are kept, whatever split_seed and train_samples take of them."""
    other = folder_of(images, split_seed=1, train_samples=6)
    plain = load_data(other, memory_gb=0.0)
    kept.load(folder_of(images))
    decodings.clear()
    read = kept.load(other)
    whole(read.train)

    assert decodings == []
    assert_same(read, plain)


def test_each_split_and_size_has_its_own(images: Path, kept: Cached, tmp_path: Path) -> None:
    """Folders per split, the test split when it is asked for; another size; unlabelled images; a table."""
    root = tmp_path / "split"
    for part in ("train", "val", "test"):
        shutil.copytree(images, root / part)
    config = folder_of(root, unlabelled=str(images), channels=1)
    data = kept.load(config)
    assert kept.files[1::2] == [
        "pets.v2-unlabelled-1x8x8.npy",
        "split-train-1x8x8.npy",
        "split-validation-1x8x8.npy",
    ]
    assert_same(data, load_data(config))
    assert "split-test-1x8x8.npy" in kept.files
    kept.load(folder_of(root, image_size=6))
    assert "split-train-3x6x6.npy" in kept.files

    names = [f"{'ab'[i % 2]}/{i:03}.{('jpg', 'png')[i // 2 % 2]}" for i in range(20)]
    (images / "sizes.csv").write_text(
        "file,value\n" + "".join(f"{name},{i}\n" for i, name in enumerate(names))
    )
    assert_same(kept.load(table_of(images, "sizes.csv")), load_data(table_of(images, "sizes.csv")))
    assert "pets.v2-sizes-train-3x8x8.npy" in kept.files


def test_data_in_memory_has_no_cache(kept: Cached) -> None:
    """Only image files are kept: the folder is not even made."""
    values = {"name": "synthetic", "classes": 2, "channels": 1, "image_size": 4, "samples": 16, "noise": 1}
    more = {"test_samples": 4, "max_labels": None, "seed": 0, "validation": 0.25, "split_seed": 0}
    last = {"train_samples": None, "unlabelled": None, "augment": NO_AUGMENT}
    kept.load(Synthetic.model_validate(values | more | last))

    assert not kept.folder.exists()


def test_a_worker_is_sent_no_pixels(images: Path, kept: Cached) -> None:
    """Another process maps the cache for itself."""
    train = kept.load(folder_of(images)).train
    assert isinstance(train, FileSplit)
    sent = pickle.dumps(train.files)

    assert np.load(kept.pixels)[0].tobytes() not in sent
    assert torch.equal(pickle.loads(sent).__getitems__([0, 1])[1], whole(train)[0][:2])


# --- corrupt images ---


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "disk"])
def test_corrupt_images_are_left_out_as_before(images: Path, kept: Cached, memory_gb: float) -> None:
    """on_error=skip: the same samples, counts and fingerprints; with all of a batch corrupt, none comes."""
    for name in ("a/000.jpg", "b/003.png", "b/005.jpg"):
        (images / name).write_bytes(b"not an image")
    config = folder_of(images, on_error="skip")
    plain = load_data(config, memory_gb=memory_gb)

    for data in (kept.load(config, memory_gb), kept.load(config, memory_gb)):
        assert_same(plain, data)
    failures = json.loads(kept.pixels.with_suffix(".json").read_text())["failures"]
    assert len(failures) == 3
    if isinstance(data.train, FileSplit):
        assert list(data.train.batches(torch.tensor(sorted(data.train.corrupt)), 8)) == []


def test_a_corrupt_image_stops_with_the_same_words(images: Path, kept: Cached) -> None:
    """on_error=raise: on making and on reading; and once the file is mended, the cache is made anew."""
    write = (images / "a" / "000.jpg").read_bytes()
    (images / "a" / "000.jpg").write_bytes(b"not an image")
    config = folder_of(images)

    def problem(load: Callable[..., Data]) -> str:
        with pytest.raises(DataError) as caught:
            _ = [whole(load(config, memory_gb=0.0).train), load(config, memory_gb=0.0).test]
        return str(caught.value)

    texts = [problem(load) for load in (load_data, kept.load, kept.load)]

    assert texts[0].startswith(f"cannot decode {images / 'a' / '000.jpg'} (cannot identify image file")
    assert texts[0] == texts[1] == texts[2]
    (images / "a" / "000.jpg").write_bytes(write)
    assert_same(kept.load(config), load_data(config))


# --- made anew ---


def changed_pixels(root: Path) -> None:
    path = root / "a" / "002.png"
    before = path.stat()
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # its time of writing is put back


@pytest.mark.parametrize(
    "change",
    [
        lambda root: write_image(root / "b" / "new.png", seed=99),
        lambda root: (root / "b" / "001.jpg").unlink(),
        lambda root: (root / "b" / "001.jpg").rename(root / "b" / "0.jpg"),
        changed_pixels,
    ],
    ids=["added", "removed", "renamed", "changed"],
)
def test_other_images_are_decoded_anew(
    images: Path, kept: Cached, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    """An image added, removed, renamed or changed: the log says why, and the data is that of the files now."""
    before = kept.load(folder_of(images))
    change(images)
    with caplog.at_level(logging.INFO, logger="kdistill"):
        after = kept.load(folder_of(images))

    assert caplog.messages[0] == f"{kept.pixels} is made anew: images changed"
    assert caplog.messages[1].startswith("decoding ")
    assert before.fingerprint != after.fingerprint
    assert_same(after, load_data(folder_of(images)))


def test_another_pillow_decodes_anew(
    images: Path, kept: Cached, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may resize to other pixels."""
    kept.load(folder_of(images))
    monkeypatch.setattr("PIL.__version__", "0")
    with caplog.at_level(logging.INFO, logger="kdistill"):
        kept.load(folder_of(images))

    assert caplog.messages[0] == f"{kept.pixels} is made anew: Pillow changed"


def cut_off(pixels: Path) -> None:
    os.truncate(pixels, pixels.stat().st_size - 1)


def flip_a_bit(pixels: Path) -> None:
    content = bytearray(pixels.read_bytes())
    content[-1] ^= 1
    pixels.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        cut_off,
        flip_a_bit,
        lambda pixels: pixels.with_suffix(".json").write_text("{"),
        lambda pixels: pixels.with_suffix(".json").write_text("[]"),
    ],
    ids=["size", "checksum", "no JSON", "other JSON"],
)
def test_damage_is_found_and_mended(
    images: Path, kept: Cached, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    """A cut-off file, a flipped bit, a broken list: a warning, and the images are decoded again."""
    kept.load(folder_of(images))
    harm(kept.pixels)
    with caplog.at_level(logging.WARNING, logger="kdistill"):
        data = kept.load(folder_of(images))

    assert caplog.messages == [f"{kept.pixels} is damaged: it is made anew"]
    assert_same(data, load_data(folder_of(images)))


def test_a_kill_at_any_moment_leaves_nothing_to_be_misread(
    images: Path, kept: Cached, decodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the list is written there is no cache, whatever lies there; an interrupted making is removed."""
    kept.load(folder_of(images))
    content = kept.pixels.read_bytes()
    kept.pixels.with_suffix(".partial").write_bytes(b"half of it")
    kept.pixels.write_bytes(b"pixels whose list is not written yet")
    kept.pixels.with_suffix(".json").unlink()
    kept.load(folder_of(images))
    assert kept.pixels.read_bytes() == content
    assert len(kept.files) == 2

    def interrupted(*_: object) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "decode", interrupted)
    write_image(images / "a" / "new.png", seed=99)
    with pytest.raises(KeyboardInterrupt):
        kept.load(folder_of(images))
    assert not list(kept.folder.glob("*.partial"))
    assert kept.pixels.read_bytes() == content


# --- what cannot be ---


def test_too_little_space_is_said_before_decoding(
    images: Path, kept: Cached, decodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is known beforehand: what it takes, what is free, what helps."""
    free = shutil.disk_usage(images)._replace(free=2**30)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: free)
    with pytest.raises(StorageError) as caught:
        kept.load(folder_of(images, image_size=8192))

    assert str(caught.value) == (
        f"device.cache={kept.folder} would take 3.8 GiB (20 images of 3 x 8192 x 8192 bytes) and 1.0 GiB are"
        " free there. Name a folder on another disk, or leave the cache out with device.cache=null"
    )
    assert decodings == []


def test_a_disk_that_fills_up_all_the_same(
    images: Path, kept: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process took the space: the setting is named, and nothing half-written stays."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(StorageError, match=rf"cannot write to {kept.folder}\..* with device\.cache=DIR, and"):
        kept.load(folder_of(images))
    assert kept.files == []


def test_a_folder_that_cannot_be(images: Path, tmp_path: Path) -> None:
    """A file of that name; a folder among the images, which would become a class."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        Cached(tmp_path / "file").load(folder_of(images))
    assert str(caught.value) == (
        f"cannot write to {tmp_path / 'file'}: file exists. Choose another folder with device.cache=DIR"
    )
    with pytest.raises(ConfigError) as refused:
        Cached(images / "cache").load(folder_of(images))
    assert str(refused.value) == (
        f"device.cache={images / 'cache'} lies among the images of {images}: name a folder outside of it"
    )


def test_another_process_is_waited_for(
    images: Path, kept: Cached, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process makes the same cache, this one waits, and says so."""
    kept.load(folder_of(images))
    other = FileLock(kept.pixels.with_suffix(".lock"))
    other.acquire()
    acquire = FileLock.acquire

    def freed(self: FileLock, blocking: bool = True) -> Any:
        if blocking:  # the other process ends
            other.release()
        return acquire(self, blocking=blocking)

    monkeypatch.setattr(FileLock, "acquire", freed)
    with caplog.at_level(logging.INFO, logger="kdistill"):
        kept.load(folder_of(images))

    assert caplog.messages == [f"another process is making the cache {kept.pixels}: waiting for it"]
