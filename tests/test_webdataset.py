"""Data sets in shards: splits, labels, reading like a folder of the same images, errors."""

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from kdistill import load_config
from kdistill.api import distill, evaluate, make_soft_targets, train_teacher
from kdistill.config.data import ImageFolder
from kdistill.config.schema import Config
from kdistill.data import Split, load_data, transfer
from kdistill.data.filesplit import FileSplit
from kdistill.data.splits import ArraySplit
from kdistill.data.webdataset import _expanded
from kdistill.errors import ConfigError, DataError
from tests.cases.data import assert_same, whole
from tests.conftest import NO_AUGMENT, TINY
from tests.shards import Sample, as_json, config, image, samples, write, write_as_webdataset


def by_id(split: Split) -> dict[str, int]:
    return dict(zip(split.ids, split.labels.tolist(), strict=True))


def problem(root: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        _ = load_data(config(root, **changes)).test
    return str(caught.value).replace(str(root), "ROOT")


# --- splits ---


def test_one_set_of_shards(tmp_path: Path) -> None:
    """Test and validation are cut from them as a folder's are; ids are paths, shards taken as folders."""
    write_as_webdataset(str(tmp_path / "%06d.tar"), samples([i % 2 for i in range(20)]), maxcount=8)
    data = load_data(config(tmp_path))

    assert (data.classes, data.task, data.channels, data.image_size) == (
        ("0", "1"),
        "classification",
        3,
        (8, 8),
    )
    assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 4, 4]
    assert data.test.labels.bincount().tolist() == [2, 2]
    labels = by_id(data.train) | by_id(data.validation) | by_id(data.test)
    assert labels == {f"{i // 8:06}.tar/{i:06}.png": i % 2 for i in range(20)}


def test_shards_by_their_names(tmp_path: Path) -> None:
    """Words in the path say which split it is; keys may be the same in several shards."""
    for name in ("train-0.tar", "train-1.tar", "val/0.tar", "Pets-TEST-0.tar"):
        write(tmp_path / name, samples([0, 1, 0, 1]))
    data = load_data(config(tmp_path))

    assert list(by_id(data.train)) == [f"train-{shard}.tar/{i:06}.png" for shard in (0, 1) for i in range(4)]
    assert list(data.validation.ids) == [f"val/0.tar/{i:06}.png" for i in range(4)]
    assert list(data.test.ids) == [f"Pets-TEST-0.tar/{i:06}.png" for i in range(4)]


def test_shards_by_patterns(tmp_path: Path) -> None:
    """They come before names: here val-* is the test split, validation is cut, and one shard is left out."""
    for name in ("train-08.tar", "train-09.tar", "train-10.tar", "val-0.tar"):
        write(tmp_path / name, samples([0, 1] * 4))
    data = load_data(config(tmp_path, train_shards="train-{08..09}.tar", test_shards="val-*.tar"))

    assert sorted({name.partition("/")[0] for name in data.train.ids}) == ["train-08.tar", "train-09.tar"]
    assert {name.partition("/")[0] for name in data.validation.ids} <= {"train-08.tar", "train-09.tar"}
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 8)


def test_braces() -> None:
    """Ranges keep their zeros; words; several; braces of another kind are left alone."""
    assert _expanded("{8..11}") == ["8", "9", "10", "11"]
    assert _expanded("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert _expanded("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]
    assert _expanded("{x}*") == ["{x}*"]


def test_test_shards_are_read_on_first_use(tmp_path: Path) -> None:
    """Everything but `test` works when they are damaged."""
    write(tmp_path / "train.tar", samples([0, 1] * 4))
    write(tmp_path / "test.tar", samples([0, 1])).write_bytes(b"")
    data = load_data(config(tmp_path))
    assert len(data.train) == 6
    with pytest.raises(DataError, match=r"test\.tar is no tar file"):
        _ = data.test


# --- labels ---


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["2", "0", "1"], ("0", "1", "2"), [2, 0, 1]),
        (["1", "00", "0"], ("0", "1"), [1, 0, 0]),
        (["sea", "a b", "sea"], ("a b", "sea"), [1, 0, 1]),
        (["1", "cat", "1"], ("1", "cat"), [0, 1, 0]),
    ],
)
def test_numbers_or_names(
    tmp_path: Path, labels: list[str], classes: tuple[str, ...], expected: list[int]
) -> None:
    """Numbers are positions if all of them are numbers; else they are names, in alphabetical order."""
    write(tmp_path / "0.tar", samples(labels * 4))
    data = load_data(config(tmp_path))
    labels_of = by_id(data.train) | by_id(data.validation) | by_id(data.test)

    assert data.classes == classes
    assert [labels_of[name] for name in sorted(labels_of)] == expected * 4


def test_names_in_a_file(tmp_path: Path) -> None:
    """A line for each class from 0 on, for labels that are numbers or names; its place is no part of the data."""
    write(tmp_path / "0.tar", samples([1, 0] * 8))
    write(tmp_path / "names" / "0.tar", samples(["zebra", "ant"] * 8))
    (tmp_path / "classes.txt").write_text("zebra\nant\n")
    (tmp_path / "other.txt").write_text("\ufeffzebra\r\nant", encoding="utf-8")
    data, other = (
        load_data(config(tmp_path, train_shards="0.tar", class_names=name))
        for name in ("classes.txt", "other.txt")
    )
    named = load_data(config(tmp_path / "names", class_names=str(tmp_path / "classes.txt")))

    assert data.classes == other.classes == named.classes == ("zebra", "ant")
    assert data.fingerprint == other.fingerprint
    assert data.train.labels.tolist() == (1 - named.train.labels).tolist()


def test_labels_in_json(tmp_path: Path) -> None:
    """As the package writes a dictionary."""
    content = [(f"{i}", {"jpg": image(i, "jpg"), "json": as_json(label=i % 2, id=i)}) for i in range(12)]
    write_as_webdataset(str(tmp_path / "%d.tar"), content, maxcount=6)
    data = load_data(config(tmp_path, label="json.label"))
    assert all(int(name.split("/")[1][:-4]) % 2 == label for name, label in by_id(data.train).items())


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("json", "a JSON member has fields: name one, such as json.label"),
        ("cls.label", "cls has no fields: only json.FIELD is known"),
    ],
)
def test_a_label_s_setting(tmp_path: Path, label: str, text: str) -> None:
    """Only JSON has fields, and needs one."""
    with pytest.raises(ValidationError, match=text):
        config(tmp_path, label=label)


# --- the same as a folder ---


def write_both(root: Path, count: int = 24) -> tuple[Path, Path]:
    """The same pictures, in the same order, as a folder per class and as shards; class 1 is brighter."""
    content: list[Sample] = []
    for number in range(count):
        label = int(number >= count // 2)
        pixels = np.random.default_rng(number).integers(0, 128, (10, 12, 3)) + 100 * label
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "jpeg")
        path = root / "folder" / "ab"[label] / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        content.append((f"{number:06}", {"jpg": buffer.getvalue(), "cls": b"%d" % label}))
    for shard in range(0, count, 10):
        write(root / "shards" / f"{shard:06}.tar", content[shard : shard + 10])
    return root / "folder", root / "shards"


def test_the_same_pixels_as_a_folder(tmp_path: Path) -> None:
    """Same images in the same order: the same splits, labels, pixels and statistics."""
    folder, shards = write_both(tmp_path)
    values = config(shards).model_dump(exclude={"train_shards", "validation_shards", "test_shards", "label"})
    values = {**values, "name": "image_folder", "root": str(folder), "augment": NO_AUGMENT}
    del values["class_names"]
    one, other = load_data(ImageFolder.model_validate(values)), load_data(config(shards))

    for a, b in ((one.train, other.train), (one.validation, other.validation), (one.test, other.test)):
        assert all(torch.equal(left, right) for left, right in zip(whole(a), whole(b), strict=True))
    assert (one.mean, one.std) == (other.mean, other.std)


@pytest.mark.slow
def test_a_student_of_shards_is_that_of_a_folder(tmp_path: Path) -> None:
    """Stored soft targets, augmented views, image files read anew: the weights are the same bit for bit."""
    folder, shards = write_both(tmp_path, 60)
    (shards / "classes.txt").write_text("a\nb\n")

    def student(*dataset: str) -> tuple[dict[str, Tensor], Config]:
        words = [word for word in TINY if not word.startswith("dataset")]
        made = load_config(
            *words, *dataset, "dataset.image_size=8", "dataset.test=0.2", "device.memory_gb=0",
            f"runs={tmp_path / 'runs'}",
        )  # fmt: skip
        train_teacher(made)
        make_soft_targets(made)
        from safetensors.torch import load_file

        return load_file(distill(made).folder / "model.safetensors"), made

    one, _ = student("dataset=image_folder", f"dataset.root={folder}")
    other, made = student("dataset=webdataset", f"dataset.root={shards}", "dataset.class_names=classes.txt")

    assert all(torch.equal(one[name], other[name]) for name in one)
    assert list((tmp_path / "runs" / "shards").glob("000000-*"))
    evaluate(made)


# --- in memory, from disk, decoded before ---


@pytest.mark.parametrize(
    "workers",
    [0, pytest.param(2, marks=pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"))],
)
def test_memory_and_disk_give_identical_data(tmp_path: Path, workers: int) -> None:
    """Who holds and decodes the images changes nothing; nor do lists of the shards."""
    _, shards = write_both(tmp_path)
    held = load_data(config(shards), memory_gb=1.0)
    streamed = load_data(config(shards), memory_gb=0.0, workers=workers, index=str(tmp_path / "index"))

    assert isinstance(held.train, ArraySplit)
    assert isinstance(streamed.train, FileSplit)
    assert_same(held, streamed)


def test_fingerprint_follows_contents(tmp_path: Path) -> None:
    """Shards elsewhere keep it; another picture of the same size changes it."""
    prints = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        content = [(f"{i}", {"ppm": image(seed + i, "ppm"), "cls": b"%d" % (i % 2)}) for i in range(12)]
        write(tmp_path / name / "0.tar", content)
        prints.append(load_data(config(tmp_path / name)).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_decoded_images_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """device.cache: the same data; made anew when a shard was changed; a worker is sent no pixels."""
    _, shards = write_both(tmp_path)
    plain = load_data(config(shards), memory_gb=0.0)
    made = load_data(config(shards), memory_gb=0.0, cache=str(tmp_path / "cache"))
    with monkeypatch.context() as patched:
        patched.setattr("kdistill.data.shards.decode", None)
        kept = load_data(config(shards), memory_gb=0.0, cache=str(tmp_path / "cache"))
        assert len(whole(kept.train)[0]) + len(whole(kept.test)[0]) == 19
    assert_same(plain, made)
    assert_same(plain, kept)
    assert isinstance(kept.train, FileSplit)
    assert whole(kept.train)[0][0].numpy().tobytes() not in pickle.dumps(kept.train.files)
    write(shards / "000000.tar", [(f"{i:06}", {"jpg": image(i, "jpg"), "cls": b"0"}) for i in range(10)])
    assert_same(
        load_data(config(shards), memory_gb=0.0),
        load_data(config(shards), memory_gb=0.0, cache=str(tmp_path / "cache")),
    )


@pytest.mark.parametrize("how", [{"memory_gb": 1.0}, {"memory_gb": 0.0}, {"cache": "cache"}], ids=str)
def test_corrupt_images(tmp_path: Path, how: dict[str, Any]) -> None:
    """on_error=raise names shard and key; skip leaves them out."""
    if "cache" in how:
        how = {"cache": str(tmp_path / "cache")}
    content = samples([0, 1] * 10)
    content[3] = ("000003", {"png": content[3][1]["png"][:100], "cls": b"1"})
    root = tmp_path / "root"
    write(root / "0.tar", content)
    write(root / "val.tar", samples([0, 1]))
    write(root / "test.tar", samples([0, 1]))

    with pytest.raises(DataError) as caught:
        load_data(config(root), **how)
    assert str(caught.value).startswith(f"cannot decode {root / '0.tar' / '000003.png'} (")
    assert str(caught.value).endswith("); dataset.on_error=skip leaves such images out")
    train = load_data(config(root, on_error="skip"), **how).train
    assert len(whole(train)[0]) == 19
    assert train.skipped == 1


# --- images without labels ---


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "disk"])
def test_unlabelled_shards(tmp_path: Path, memory_gb: float) -> None:
    """dataset.unlabelled takes a folder of shards: no member but the images is looked at."""
    _, root = write_both(tmp_path)
    content = [(f"{i}", {"jpg": image(i, "jpg"), "txt": b"a caption"}) for i in range(3)]
    write(tmp_path / "more" / "0.tar", content)
    how: dict[str, Any] = {"memory_gb": memory_gb, "index": str(tmp_path / "index")}
    data = load_data(config(root, unlabelled=str(tmp_path / "more")), **how)
    split = transfer(data)

    assert list(split.ids[-3:]) == [f"unlabelled/0.tar/{i}.jpg" for i in range(3)]
    assert split.labels[-3:].tolist() == [-1, -1, -1]
    assert len(whole(split)[0]) == len(data.train) + 3


# --- what is wrong ---


def test_shards_that_are_not_there(tmp_path: Path) -> None:
    """No folder, no shard in it, compressed ones; a pattern that matches none or lacks one."""
    assert problem(tmp_path / "none") == "dataset.root=ROOT: there is no such folder."
    assert problem(tmp_path) == "ROOT has no shards (*.tar)."
    write(tmp_path / "a.tar.gz", samples([0]), mode="w:gz")
    told = " a.tar.gz is compressed: uncompress it, images are read from the middle of a tar"
    assert problem(tmp_path) == f"ROOT has no shards (*.tar).{told}"
    for name in ("train-0.tar", "train-1.tar"):
        write(tmp_path / name, samples([0, 1]))
    assert problem(tmp_path, train_shards="trian-0.tar") == (
        "dataset.train_shards=trian-0.tar: nothing of that name is among the 2 shards in ROOT"
        " (train-0.tar ... train-1.tar). Did you mean 'train-0.tar' or 'train-1.tar'?"
    )
    assert problem(tmp_path, train_shards="train-{0..2}.tar") == (
        "dataset.train_shards=train-{0..2}.tar: train-2.tar is not among the 2 shards in ROOT"
        " (train-0.tar ... train-1.tar). Did you mean 'train-1.tar' or 'train-0.tar'?"
    )
    assert problem(tmp_path, train_shards="train-{1..0}.tar").startswith(
        "dataset.train_shards=train-{1..0}.tar: nothing of that name is among the 2 shards in ROOT"
    )
    assert problem(tmp_path, test_shards="*.tar.gz") == (
        "dataset.test_shards=*.tar.gz: nothing of that name is among the 2 shards in ROOT"
        f" (train-0.tar ... train-1.tar).{told}"
    )


def test_shards_of_two_splits_or_none(tmp_path: Path) -> None:
    """Training images would be tested on; or there would be none."""
    write(tmp_path / "val-0.tar", samples([0, 1]))
    write(tmp_path / "test-0.tar", samples([0, 1]))
    assert problem(tmp_path) == (
        "ROOT has shards for test and validation (test-0.tar), but none for training: name some in"
        " dataset.train_shards"
    )
    assert problem(tmp_path, train_shards="*.tar", test_shards="test-*.tar") == (
        "ROOT/test-0.tar is in dataset.train_shards and dataset.test_shards: a shard is of one split"
    )


def test_labels_that_are_wrong(tmp_path: Path) -> None:
    """Out of range, unknown, with gaps: the sample is named."""

    def told(train: Iterable[object], test: Iterable[object] = (0, 1), **changes: Any) -> str:
        write(tmp_path / "train.tar", samples(list(train) * 4))
        write(tmp_path / "test.tar", samples(test))
        return problem(tmp_path, **changes)

    (tmp_path / "names.txt").write_text("ant\nbee\n")
    assert told([0, 1], [1, 0, 2]) == (
        "ROOT/test.tar/000002.png: the label 2 is out of range: there are 2 classes, 0 to 1"
    )
    assert told([0, 1, -1]) == (
        "ROOT/train.tar/000002.png: the label -1 is out of range: there are 2 classes, 0 to 1"
    )
    assert told([0, 1, 2], class_names="names.txt") == (
        "ROOT/train.tar/000002.png: the label 2 is out of range: there are 2 classes, 0 to 1"
    )
    assert told([0, 1], ["cat"]) == (
        "ROOT/test.tar/000000.png: the label cat is out of range: there are 2 classes, 0 to 1"
    )
    assert told(["ant", "be"], class_names="names.txt") == (
        "ROOT/train.tar/000001.png: there is no class 'be'. Did you mean 'bee'?"
    )
    assert told([1, 1_000_000_000, 2]) == (
        "ROOT: no training sample has the label 0, but labels go up to 1000000000: number the classes from 0,"
        " without a gap"
    )
    assert told([0, 0]) == "ROOT: expected at least 2 classes, found 0"
    assert told([]).startswith("the shards for train in ROOT have no images (.jpg ")


def test_files_of_names_that_are_wrong(tmp_path: Path) -> None:
    """Not there, a name twice, an empty line."""
    write(tmp_path / "0.tar", samples([0, 1] * 4))
    (tmp_path / "names.txt").write_text("ant\n\nbee\n")
    assert problem(tmp_path, class_names="name.txt") == (
        "dataset.class_names: there is no file ROOT/name.txt. Did you mean 'names.txt'?"
    )
    assert problem(tmp_path, class_names="names.txt") == "ROOT/names.txt line 2: a class's name is missing"
    (tmp_path / "names.txt").write_text("ant\nant\n")
    assert problem(tmp_path, class_names="names.txt") == "ROOT/names.txt line 2: 'ant' is in line 1 already"
    (tmp_path / "names.txt").write_bytes(b"\xff")
    assert problem(tmp_path, class_names="names.txt").startswith("ROOT/names.txt is no text in UTF-8 (")


def test_braces_need_quotes() -> None:
    """Hydra's grammar has braces of its own: the message has the word as it must be written."""
    with pytest.raises(ConfigError, match=r"two pairs of quotes: 'dataset\.train_shards=\"t-{0..3}\.tar\"'"):
        load_config("dataset=webdataset", "dataset.root=x", "dataset.train_shards=t-{0..3}.tar")
    made = load_config("dataset=webdataset", "dataset.root=x", 'dataset.train_shards="t-{0..3}.tar"')
    assert made.dataset.model_dump()["train_shards"] == "t-{0..3}.tar"
