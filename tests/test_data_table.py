"""Image tables: a CSV file with one class, several classes or numbers for each image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from kdistill.config.data import ImageTable
from kdistill.data import Data, load_data
from kdistill.data.decoding import decode
from kdistill.data.filesplit import FileSplit
from kdistill.data.splits import ArraySplit
from kdistill.errors import DataError
from tests.conftest import NO_AUGMENT


def config(root: Path, **changes: Any) -> ImageTable:
    values: dict[str, Any] = {"name": "image_table", "root": str(root), "table": "labels.csv"}
    values |= {"task": None, "targets": None, "image_size": 8, "channels": 3, "on_error": "raise"}
    values |= {"validation": 0.25, "test": 0.2, "split_seed": 0, "train_samples": None, "unlabelled": None}
    values |= {"augment": NO_AUGMENT}
    return ImageTable.model_validate(values | changes)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a table's text to labels.csv, and n images as images/000.png, 001.png, ..."""

    def write(text: str, n: int = 4, encoding: str = "utf-8") -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        for i in range(n):
            pixels = np.random.default_rng(i).integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{i:03}.png")
        (tmp_path / "labels.csv").write_text(text, encoding=encoding)
        return tmp_path

    return write


def lines(header: str, cells: list[str]) -> str:
    return "\n".join([header, *(f"images/{i:03}.png,{cell}" for i, cell in enumerate(cells))]) + "\n"


def problem(root: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        _ = load_data(config(root, **changes)).test
    return str(caught.value).replace(str(root), "ROOT")


def by_id(data: Data) -> dict[str, Any]:
    """id -> label, over all three splits."""
    return {
        name: label
        for split in (data.train, data.validation, data.test)
        for name, label in zip(split.ids, split.labels.tolist(), strict=True)
    }


# --- what is learnt ---


def test_one_class_each(write: Write) -> None:
    """The column `label`: classes in alphabetical order, splits cut as an image folder's are."""
    root = write(lines("file,label", ["dog", "cat"] * 10), 20)
    data = load_data(config(root))

    assert (data.task, data.classes, data.target_std) == ("classification", ("cat", "dog"), None)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    assert data.test.labels.bincount().tolist() == [2, 2]
    assert by_id(data) == {f"images/{i:03}.png": (i + 1) % 2 for i in range(20)}
    batch = next(data.train.batches(torch.tensor([3]), 1))
    assert torch.equal(batch.images[0], decode(str(root / data.train.ids[3]), 8, 3))


def test_several_classes_each(write: Write) -> None:
    """The column `labels`: names separated by semicolons, spaces around them ignored, empty for none of them."""
    root = write(lines("file,labels", ["sea; sky", "sky", "", "tree;sea;sky"] * 4), 16)
    data = load_data(config(root))

    assert (data.task, data.classes) == ("multilabel", ("sea", "sky", "tree"))
    rows = [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert by_id(data) == {f"images/{i:03}.png": rows[i % 4] for i in range(16)}
    assert data.train.labels.dtype == torch.float32


def test_a_number_each(write: Write) -> None:
    """The column `value`: labels in units of the training split's mean and std, which Data keeps."""
    root = write(lines("file,value", [str(10 * i - 3) for i in range(20)]), 20)
    data = load_data(config(root))

    assert (data.task, data.classes) == ("regression", ("value",))
    assert data.train.labels.mean().item() == pytest.approx(0, abs=1e-6)
    assert data.train.labels.std(correction=0).item() == pytest.approx(1)
    assert data.target_mean is not None
    assert data.target_std is not None
    found = {name: row[0] * data.target_std[0] + data.target_mean[0] for name, row in by_id(data).items()}
    assert found == pytest.approx({f"images/{i:03}.png": 10 * i - 3 for i in range(20)}, abs=1e-4)


def test_named_columns_of_numbers(write: Write) -> None:
    """dataset.targets: one value per column, in their order; a value that never varies has std 1."""
    root = write(lines("file,h,other,w", [f"7,x,{i}" for i in range(12)]), 12)
    data = load_data(config(root, targets=["w", "h"]))

    assert (data.task, data.classes) == ("regression", ("w", "h"))
    assert data.train.labels.shape[1] == 2
    assert (data.target_mean or ())[1] == 7
    assert (data.target_std or ())[1] == 1
    assert data.train.labels[:, 1].tolist() == [0] * len(data.train)


def test_task_decides_between_columns(write: Write) -> None:
    """A table with label and value serves both tasks; which one must be said."""
    root = write(lines("file,label,value", ["a,1", "b,2"] * 8), 16)

    assert load_data(config(root, task="classification")).classes == ("a", "b")
    assert load_data(config(root, task="regression")).classes == ("value",)
    assert problem(root) == (
        "ROOT/labels.csv has the columns label, value: say which, by"
        " dataset.task=classification or regression"
    )


# --- splits and files ---


def test_split_column(write: Write) -> None:
    """train, val (or validation, valid) and test as the table says; what it does not name is cut from train."""
    names = ["train"] * 8 + ["val", "validation", "valid", "val"] + ["test"] * 2
    cells = [f"{'ab'[i % 2]},{name}" for i, name in enumerate(names)]
    data = load_data(config(write(lines("file,label,split", cells), 14)))

    assert list(data.train.ids) == [f"images/{i:03}.png" for i in range(8)]
    assert list(data.validation.ids) == [f"images/{i:03}.png" for i in range(8, 12)]
    assert list(data.test.ids) == ["images/012.png", "images/013.png"]
    without_test = write(lines("file,label,split", cells[:12]), 14)
    assert len(load_data(config(without_test)).test) == 2


def test_memory_and_disk_give_identical_data(write: Write) -> None:
    """Where images are held changes no pixel, label, id, statistic or fingerprint."""
    root = write(lines("file,value", [str(i * i) for i in range(20)]), 20)
    held, streamed = (load_data(config(root), memory_gb=gb) for gb in (1.0, 0.0))

    assert isinstance(held.train, ArraySplit)
    assert isinstance(streamed.train, FileSplit)
    assert (held.mean, held.std, held.target_std) == (streamed.mean, streamed.std, streamed.target_std)
    assert held.fingerprint == streamed.fingerprint
    assert held.test_fingerprint == streamed.test_fingerprint
    assert by_id(held) == by_id(streamed)
    order = torch.tensor([5, 0, 3])
    one, other = (next(data.train.batches(order, 3)) for data in (held, streamed))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)


def test_fingerprint_follows_values_but_not_the_cut_of_validation(write: Write) -> None:
    """Another value changes it; another split_seed leaves the test split's, though units change."""
    root = write(lines("file,value", [str(i) for i in range(20)]), 20)
    before, other = load_data(config(root)), load_data(config(root, split_seed=1))
    write(lines("file,value", [str(i + 1) for i in range(20)]), 20)

    assert before.test_fingerprint == other.test_fingerprint
    assert before.target_mean != other.target_mean
    assert load_data(config(root)).fingerprint != before.fingerprint


def test_a_spreadsheet_s_file(write: Write) -> None:
    """A byte-order mark, quotes, commas in quotes, empty lines, spaces and other columns do no harm."""
    text = "file,note,label\r\n" + "".join(
        f'images/{i:03}.png,"a, ""b""", {"xy"[i % 2]} \r\n\r\n' for i in range(12)
    )
    data = load_data(config(write(text, 12, "utf-8-sig")))

    assert data.classes == ("x", "y")
    assert sum(map(len, (data.train, data.validation, data.test))) == 12


def test_corrupt_images_are_skipped_with_their_labels(write: Write) -> None:
    """on_error=skip: in memory the image goes with its label and its id."""
    root = write(
        lines("file,label,split", [f"{'ab'[i % 2]},{'train' if i < 8 else 'val'}" for i in range(12)]), 12
    )
    (root / "images" / "001.png").write_bytes(b"nothing")
    data = load_data(config(root, on_error="skip", test=0.2))

    assert data.train.skipped + data.test.skipped == 1
    assert by_id(data) == {f"images/{i:03}.png": i % 2 for i in range(12) if i != 1}


# --- what is wrong with a table ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\n", "ROOT/labels.csv: no column 'file'. Its first line has: path, label"),
        (
            "fil,label\n",
            "ROOT/labels.csv: no column 'file'. Did you mean 'fil'? Its first line has: fil, label",
        ),
        (
            "file;label\n",
            "ROOT/labels.csv: expected a column label, labels or value, or dataset.targets=[COLUMN,...]."
            " Its first line has: file;label",
        ),
        (
            "",
            "ROOT/labels.csv: expected a column label, labels or value, or dataset.targets=[COLUMN,...]."
            " Its first line has: nothing",
        ),
        ("file,label,label\n", "ROOT/labels.csv: two columns have the same name: file, label, label"),
        ("file,label\n", "ROOT/labels.csv: no line is of the split train"),
        (
            "file,label\nimages/000.png,a\n\nimages/01.png,b\n",
            "ROOT/labels.csv line 4: there is no file 'images/01.png' in ROOT."
            " Did you mean 'images/001.png' or 'images/003.png'?",
        ),
        (
            "file,label\nimage/000.png,a\n",
            "ROOT/labels.csv line 2: there is no file 'image/000.png' in ROOT. There is no folder ROOT/image",
        ),
        (
            "file,label\nimages/000.png,a\nimages/000.png,b\n",
            "ROOT/labels.csv line 3: images/000.png is in line 2 already",
        ),
        (
            "file,label\nimages/000.png,a,train\n",
            "ROOT/labels.csv line 2: 3 cells, but the first line names 2 columns",
        ),
        (
            "file,label,split\nimages/000.png,a,tset\n",
            "ROOT/labels.csv line 2: no split 'tset'. Did you mean 'test'? Expected train, val or test",
        ),
        ("file,label\nimages/000.png,\n", "ROOT/labels.csv line 2: label is empty"),
        (
            "file,labels\nimages/000.png,a;;b\n",
            "ROOT/labels.csv line 2: labels='a;;b' has an empty name",
        ),
        ("file,value\nimages/000.png,\n", "ROOT/labels.csv line 2: value is empty"),
        ('file,value\nimages/000.png,"1,5"\n', "ROOT/labels.csv line 2: value='1,5' is not a number"),
        ("file,value\nimages/000.png,nan\n", "ROOT/labels.csv line 2: value='nan' is not a number"),
        (
            "file,label\nimages/000.png,a\n",
            "ROOT/labels.csv: expected at least 2 classes in the training images, found a",
        ),
        (
            "file,label,split\nimages/000.png,cat,train\nimages/001.png,dog,train\nimages/002.png,cats,val\n",
            "ROOT/labels.csv line 4: no training image has the class 'cats'. Did you mean 'cat'?",
        ),
        (
            "file,value\nimages/000.png,1\n",
            "no sample is left for the train split: add samples, or cut off smaller shares",
        ),
    ],
)
def test_mistakes_are_named_with_their_line(write: Write, text: str, expected: str) -> None:
    """What is wrong, in which line, and the nearest match."""
    assert problem(write(text)) == expected


def test_missing_table_or_folder(tmp_path: Path, write: Write) -> None:
    """The table is looked for in root unless its path is absolute."""
    root = write(lines("file,label", ["a", "b"] * 8), 16)
    (root / "elsewhere").mkdir()
    (root / "labels.csv").rename(root / "elsewhere" / "labels.csv")

    assert load_data(config(root, table=str(root / "elsewhere" / "labels.csv"))).classes == ("a", "b")
    assert load_data(config(root, table="elsewhere/labels.csv")).classes == ("a", "b")
    assert problem(root, table="elsewhere/label.csv") == (
        "there is no table ROOT/elsewhere/label.csv. Did you mean 'labels.csv'?"
    )
    with pytest.raises(DataError, match=r"dataset\.root=nowhere: there is no such folder"):
        load_data(config(Path("nowhere")))


def test_bytes_that_are_no_text(tmp_path: Path, write: Write) -> None:
    """An Excel file, say: the message names the file and what was expected."""
    root = write("")
    (root / "labels.csv").write_bytes(b"PK\x03\x04\xff\xfe")

    assert problem(root).startswith("ROOT/labels.csv cannot be read as a CSV file in UTF-8 (")


def test_targets_belong_to_regression() -> None:
    """Columns of numbers and another task contradict each other; a column is named once."""
    with pytest.raises(ValidationError, match="targets are the numbers of a regression, but task=multilabel"):
        config(Path("x"), task="multilabel", targets=["a"])
    with pytest.raises(ValidationError, match="targets names a column twice: a, a"):
        config(Path("x"), targets=["a", "a"])
