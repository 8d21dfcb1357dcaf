"""The files of MNIST, Fashion-MNIST and CIFAR in their real formats: found, read, downloaded, damaged."""

import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torchvision import datasets

from kdistill.data import downloaded as downloaded_module
from kdistill.data import load_data
from kdistill.data.downloaded import read_idx
from kdistill.data.published import PUBLISHED, Idx
from kdistill.errors import DataError
from tests.cases.data import config

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


# --- idx files ---


def idx(array: np.ndarray) -> bytes:
    """An idx file of bytes, as its specification says."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, part: str, n: int, compressed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(part)).integers(0, 256, (n, 28, 28))
    for kind, array in (("images-idx3", pixels), ("labels-idx1", np.arange(n) % 10)):
        content = gzip.compress(idx(array)) if compressed else idx(array)
        (folder / f"{part}-{kind}-ubyte{'.gz' if compressed else ''}").write_bytes(content)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_read_without_torchvision_is_as_it_says(name: str) -> None:
    """Folders, files, checksums and class names: one that is wrong would refuse the published files."""
    ours = PUBLISHED[name]
    theirs = getattr(datasets, ours.reader)

    if isinstance(ours, Idx):
        assert ours.classes == tuple(theirs.classes)
        assert ours.folder == Path(theirs.__name__, "raw")
        assert {f"{file}.gz" for train in (True, False) for file in ours.files(train)} == {
            url.rpartition("/")[2] for url, _ in theirs.resources
        }
    else:
        assert ours.folder == Path(theirs.base_folder)
        assert [list(pair) for pair in ours.train.items()] == theirs.train_list
        assert [list(pair) for pair in ours.test.items()] == theirs.test_list
        found = theirs.meta
        assert (*ours.names, ours.names_key) == (found["filename"], found["md5"], found["key"])


def test_idx_files_need_no_torchvision(tmp_path: Path) -> None:
    """It takes seconds to import, and most commands on these data sets need nothing of it."""
    write_idx(tmp_path, "train", 100)
    write_idx(tmp_path, "t10k", 30)
    code = (
        "import sys; from kdistill import load_config; from kdistill.stages.job import Job;"
        f" print(len(Job.open(load_config('dataset=mnist', 'dataset.root={tmp_path}')).data.train));"
        " print([name for name in ('torchvision', 'torch._dynamo', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split("\n") == ["90", "[]", ""]


@pytest.mark.parametrize("inner", ["", "MNIST/raw"])
@pytest.mark.parametrize("compressed", [True, False], ids=["gz", "raw"])
def test_mnist_from_a_root(tmp_path: Path, inner: str, compressed: bool) -> None:
    """root may hold the files themselves or torchvision's folders; gzipped or not."""
    write_idx(tmp_path / inner, "train", 100, compressed)
    write_idx(tmp_path / inner, "t10k", 30, compressed)
    data = load_data(config("mnist", root=str(tmp_path)))
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 30)
    assert (data.channels, data.image_size) == (1, (28, 28))
    assert data.classes == tuple(datasets.MNIST.classes)
    pixels = np.random.default_rng(4).integers(0, 256, (30, 28, 28)).astype(np.uint8)
    test = next(data.test.batches(torch.arange(30), 30))
    assert np.array_equal(test.images[:, 0].numpy(), pixels)
    assert test.labels.tolist() == [i % 10 for i in range(30)]


def test_test_files_are_read_on_first_use(tmp_path: Path) -> None:
    """Without the test files everything but `test` works; `test` names what is missing."""
    write_idx(tmp_path, "train", 100)
    data = load_data(config("mnist", root=str(tmp_path)))
    assert next(data.train.batches(torch.arange(4), 4)).images.shape == (4, 1, 28, 28)
    assert data.fingerprint
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz"):
        _ = data.test
    write_idx(tmp_path, "t10k", 30)
    assert len(data.test) == 30
    assert data.test is data.test


def test_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With root=null: KDISTILL_DATA, then ~/.cache/kdistill/data, then ./data."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KDISTILL_DATA", str(tmp_path / "chosen"))
    monkeypatch.chdir(tmp_path)
    for place, n in (("data", 30), ("home/.cache/kdistill/data", 40), ("chosen", 50)):
        write_idx(tmp_path / place / "MNIST" / "raw", "train", n)
        data = load_data(config("mnist"))
        assert len(data.train) + len(data.validation) == n


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (gzip.compress(idx(np.zeros((4, 2, 2))))[:-9], "is damaged or cannot be read"),
        (b"<html>not found</html>", "is damaged or cannot be read"),
        (gzip.compress(idx(np.zeros((4, 2, 2)))[:-1]), "is damaged: 31 bytes, expected 32: fetch it again"),
        (gzip.compress(idx(np.zeros(4))), "is not an idx file of bytes with 3 axes"),
        (gzip.compress(b""), "is not an idx file of bytes with 3 axes"),
    ],
    ids=["truncated gz", "a web page", "truncated idx", "labels for images", "empty"],
)
def test_damaged_idx_file_is_named(tmp_path: Path, content: bytes, text: str) -> None:
    """Whatever is wrong with it, the message begins with the file's path."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, 3)
    assert str(caught.value).startswith(f"{path} {text}")


def test_images_and_labels_must_agree(tmp_path: Path) -> None:
    """Different counts, or labels beyond the classes, are refused with the file's name."""
    write_idx(tmp_path, "train", 100)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.zeros(99))))
    with pytest.raises(DataError, match=r"holds 100 images, but .*labels-idx1-ubyte.gz 99 labels"):
        load_data(config("mnist", root=str(tmp_path)))
    labels.write_bytes(gzip.compress(idx(np.full(100, 10))))
    with pytest.raises(DataError, match=r"labels-idx1-ubyte.gz: expected labels from 0 to 9, for MNIST"):
        load_data(config("mnist", root=str(tmp_path)))


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real files, found without a root: 60,000 + 10,000 images, their class names, mean and std."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KDISTILL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    data = load_data(config("fashion_mnist"))
    assert (len(data.train), len(data.validation), len(data.test)) == (54_000, 6_000, 10_000)
    assert data.train.labels.bincount().tolist() == [5_400] * 10
    assert data.validation.labels.bincount().tolist() == [600] * 10
    assert data.test.labels.bincount().tolist() == [1_000] * 10
    assert data.classes[0] == "T-shirt/top"
    assert data.classes[9] == "Ankle boot"
    assert data.mean == pytest.approx([0.286], abs=0.001)
    assert data.std == pytest.approx([0.353], abs=0.001)
    # The first test image of the published files is an ankle boot.
    assert next(data.test.batches(torch.arange(1), 1)).labels.tolist() == [9]


# --- nothing found ---


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, no system folders, no network; returns the first place that is looked in."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(downloaded_module, "_SYSTEM_FOLDERS", {})
    monkeypatch.delenv("KDISTILL_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".cache" / "kdistill" / "data"


IDX_FILES = ", ".join(
    f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def test_missing_files_without_download(offline: Path) -> None:
    """download=false: the message says where to put which files, and how to name another folder."""
    with pytest.raises(DataError) as caught:
        load_data(config("fashion_mnist"))
    assert str(caught.value) == (
        "the files of fashion_mnist were not found, and dataset.download=false.\n"
        f"Looked in: {offline / 'FashionMNIST' / 'raw'}, {Path('data', 'FashionMNIST', 'raw')}\n"
        f"Put these files into {offline / 'FashionMNIST' / 'raw'}: {IDX_FILES}\n"
        "or name the folder that holds them: dataset.root=DIR"
    )


@pytest.mark.parametrize(
    ("name", "inner", "files"),
    [
        ("mnist", "MNIST/raw", IDX_FILES),
        (
            "cifar10",
            "cifar-10-batches-py",
            "data_batch_1, data_batch_2, data_batch_3, data_batch_4, data_batch_5, batches.meta, test_batch",
        ),
        ("cifar100", "cifar-100-python", "train, meta, test"),
    ],
)
def test_failed_download(
    offline: Path, capsys: pytest.CaptureFixture[str], name: str, inner: str, files: str
) -> None:
    """No network: the same help, with the cause; nothing half-made is left, nothing on standard output."""
    with pytest.raises(DataError) as caught:
        load_data(config(name, download=True))
    first, _, put, last = str(caught.value).splitlines()
    assert first == (f"the files of {name} were not found, and the download failed (no route to host).")
    assert put == f"Put these files into {offline / inner}: {files}"
    assert last == "or name the folder that holds them: dataset.root=DIR"
    assert list(offline.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_root_is_the_only_place_when_given(offline: Path, tmp_path: Path) -> None:
    """With a root nothing else is looked at, and the message speaks of that folder."""
    write_idx(offline / "MNIST" / "raw", "train", 20)
    with pytest.raises(DataError) as caught:
        load_data(config("mnist", root=str(tmp_path / "mine")))
    looked = f"Looked in: {tmp_path / 'mine' / 'MNIST' / 'raw'}, {tmp_path / 'mine'}"
    assert str(caught.value).splitlines()[1] == looked


def test_download_goes_to_the_first_place(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchvision downloads is moved there as a whole, and found there the next time."""

    def download(reader: datasets.MNIST) -> None:
        write_idx(Path(reader.raw_folder), "train", 20, compressed=False)
        write_idx(Path(reader.raw_folder), "t10k", 10, compressed=False)

    monkeypatch.setattr(datasets.MNIST, "download", download)
    assert len(load_data(config("mnist", download=True)).train) > 0
    assert [path.name for path in offline.iterdir()] == ["MNIST"]
    assert len(load_data(config("mnist", download=False)).test) == 10


# --- CIFAR ---


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes what Python 2 wrote, as the published CIFAR files have it: byte strings, flags as numbers."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, text: str | bytes) -> None:
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    def save_flag(self, flag: bool) -> None:
        self.write(pickle.BININT1 + bytes([flag]))

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[bool] = save_flag


def python2_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_part(n: int, label_key: str) -> dict[str, Any]:
    pixels = np.random.default_rng(n).integers(0, 256, (n, 3072), dtype=np.uint8)
    return {"batch_label": "a part", label_key: [i % 10 for i in range(n)], "data": pixels}


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in CIFAR-10's format, with the published checksums set to theirs."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, value: Any) -> str:
        content = python2_pickle(value)
        (folder / name).write_bytes(content)
        return hashlib.md5(content).hexdigest()

    published = PUBLISHED["cifar10"]
    own = replace(
        published,
        train={name: write(name, cifar_part(20 + i, "labels")) for i, name in enumerate(published.train)},
        test={"test_batch": write("test_batch", cifar_part(30, "labels"))},
        names=("batches.meta", write("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})),
    )
    monkeypatch.setitem(PUBLISHED, "cifar10", own)
    return folder


def test_python2_pickles_are_real() -> None:
    """The test's files have the marks of Python 2's pickles: no unicode strings, numpy.core."""
    content = python2_pickle(cifar_part(1, "labels"))
    assert content.startswith(b"\x80\x02}")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"X\x04\x00\x00\x00data" not in content


def test_cifar10(cifar10: Path) -> None:
    """Five training files and one test file; channels first; a root of either level."""
    for root in (cifar10, cifar10.parent):
        data = load_data(config("cifar10", root=str(root)))
        assert (len(data.train), len(data.validation), len(data.test)) == (99, 11, 30)
        assert (data.channels, data.image_size) == (3, (32, 32))
        assert data.classes == tuple(f"class{i}" for i in range(10))
        test = next(data.test.batches(torch.arange(30), 30))
        assert torch.equal(test.images.flatten(1), torch.from_numpy(cifar_part(30, "labels")["data"]))
        assert test.labels.tolist() == [i % 10 for i in range(30)]


def test_cifar100_uses_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 100 fine classes, not the 20 coarse ones."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    part = cifar_part(200, "coarse_labels") | {"fine_labels": [i % 100 for i in range(200)]}
    meta = {"fine_label_names": [f"fine{i}" for i in range(100)], "coarse_label_names": ["coarse"]}
    for name, value in (("train", part), ("meta", meta)):
        (folder / name).write_bytes(python2_pickle(value))
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    own = replace(PUBLISHED["cifar100"], train={"train": md5["train"]}, names=("meta", md5["meta"]))
    monkeypatch.setitem(PUBLISHED, "cifar100", own)
    data = load_data(config("cifar100", root=str(tmp_path)))
    assert len(data.classes) == 100
    assert data.classes[7] == "fine7"
    assert data.train.labels.bincount().tolist() == [1] * 100


def test_cifar_file_with_a_wrong_checksum_is_never_unpickled(
    cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is named; no unpickler sees it."""
    with (cifar10 / "data_batch_3").open("ab") as file:
        file.write(b"x")
    seen: list[bytes] = []
    original = downloaded_module._ArrayUnpickler

    def watch(file: io.BytesIO, **kwargs: Any) -> pickle.Unpickler:
        seen.append(file.getvalue())
        return original(file, **kwargs)

    monkeypatch.setattr(downloaded_module, "_ArrayUnpickler", watch)
    with pytest.raises(
        DataError, match=r"data_batch_3 is not the published file \(its md5 is not [0-9a-f]{32}\)"
    ):
        load_data(config("cifar10", root=str(cifar10)))
    assert (cifar10 / "data_batch_3").read_bytes() not in seen
    assert len(seen) == 2


def test_cifar_is_downloaded_without_unpickling(
    cifar10: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is checked against its md5 and unpacked; only the reader that runs no code reads it."""

    def download(url: str, root: str, filename: str, md5: str) -> None:
        assert (url, md5) == (datasets.CIFAR10.url, datasets.CIFAR10.tgz_md5)
        with tarfile.open(Path(root, filename), "w:gz") as archive:
            archive.add(cifar10, cifar10.name)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled by another reader")

    monkeypatch.setattr(datasets.utils, "download_url", download)
    monkeypatch.setattr(pickle, "load", refuse)
    assert len(load_data(config("cifar10", download=True)).test) == 30
    assert sorted(path.name for path in offline.rglob("*")) == sorted(
        [cifar10.name, *(path.name for path in cifar10.iterdir())]
    )


def test_cifar_pickle_cannot_run_code(cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with the right checksum only arrays and plain values are built."""

    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "attacked",))

    content = pickle.dumps({"labels": [0], "data": Attack()})
    (cifar10 / "data_batch_1").write_bytes(content)
    published = PUBLISHED["cifar10"]
    train = {**published.train, "data_batch_1": hashlib.md5(content).hexdigest()}
    monkeypatch.setitem(PUBLISHED, "cifar10", replace(published, train=train))
    with pytest.raises(DataError, match=r"^refused to unpickle "):
        load_data(config("cifar10", root=str(cifar10)))
    assert not (tmp_path / "attacked").exists()
