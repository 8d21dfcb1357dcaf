"""Files of teacher outputs: real files in every format, and every mistake that a user can make."""

import csv
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdistill.errors import DataError
from kdistill.outside import read_outputs

CLASSES = ("cat", "dog", "cow")
LOGITS = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 0.0], [7.0, 7.5, -1.0], [2.0, 2.0, 2.5]], dtype=np.float32)
#: columns of the files that name their classes are in this order
SHUFFLED = ("cow", "cat", "dog")


def write_csv(path: Path, rows: list[list], header: tuple[str, ...] = ("id", *SHUFFLED)) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write(folder: Path, form: str, values: np.ndarray = LOGITS, ids: tuple = ("0", "1", "2", "3")) -> Path:
    """A file of `values` (columns as CLASSES); those forms that can, name classes in another order."""
    path = folder / f"outputs.{form}"
    named = values[:, [CLASSES.index(name) for name in SHUFFLED]]
    if form == "csv":
        write_csv(path, [[i, *row] for i, row in zip(ids, named.tolist(), strict=True)])
    elif form == "npy":
        np.save(path, values)
    elif form == "npz":
        np.savez(path, values=named, ids=np.array(ids), classes=np.array(SHUFFLED))
    else:
        tensors = {"values": torch.from_numpy(named.copy()), "ids": torch.tensor([int(i) for i in ids])}
        save_file(tensors, path, metadata={"classes": json.dumps(SHUFFLED)})
    return path


FORMS = ["csv", "npy", "npz", "safetensors"]


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_columns_are_found_by_name(form: str, tmp_path: Path) -> None:
    """Samples in the order asked for, fewer than there are; classes in the data set's order."""
    outputs = read_outputs(write(tmp_path, form), "logits", ["2", "0"], CLASSES)

    assert outputs.dtype == torch.float32
    assert outputs.tolist() == [[7.0, 7.5, -1.0], [1.0, -2.0, 0.5]]


@pytest.mark.parametrize("form", FORMS)
def test_probabilities_become_logits(form: str, tmp_path: Path) -> None:
    """softmax gives them back, a zero is the floor of 1e-7."""
    p = np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]], dtype=np.float32)
    outputs = read_outputs(write(tmp_path, form, p), "probabilities", ["0", "1", "2", "3"], CLASSES)

    torch.testing.assert_close(outputs.softmax(1), torch.from_numpy(p), atol=1e-6, rtol=0)
    assert outputs[1, 1].item() == pytest.approx(math.log(1e-7))


def test_ids_may_be_text(tmp_path: Path) -> None:
    """Such as an image folder's relative paths, in csv and npz."""
    ids = ("cat/1.jpg", "dog/2, old.jpg", "cow/ü.jpg", "cow/4.jpg")
    for form in ("csv", "npz"):
        outputs = read_outputs(
            write(tmp_path, form, ids=ids), "logits", ["cow/ü.jpg", "dog/2, old.jpg"], CLASSES
        )
        assert outputs.tolist() == [[7.0, 7.5, -1.0], [0.0, 3.0, 0.0]]


def test_integer_ids_and_unnamed_columns(tmp_path: Path) -> None:
    """npz with ints and without classes, safetensors with neither: columns as in the data set, rows by position."""
    np.savez(tmp_path / "a.npz", values=LOGITS, ids=np.array([10, 11, 12, 13]))
    assert read_outputs(tmp_path / "a.npz", "logits", ["12"], CLASSES).tolist() == [[7.0, 7.5, -1.0]]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        save_file({"values": torch.from_numpy(LOGITS).to(dtype)}, tmp_path / "a.safetensors")
        assert read_outputs(tmp_path / "a.safetensors", "logits", ["2"], CLASSES).tolist() == [
            [7.0, 7.5, -1.0]
        ]


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """A byte order mark, spaces after commas, Windows line ends, an empty last line."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfid, dog, cat, cow\r\n0, 1, 2, 3e0\r\n7, -1, .5, 1e-3\r\n\r\n")
    assert read_outputs(path, "logits", ["7", "0"], CLASSES).tolist() == [
        pytest.approx([0.5, -1, 0.001]),
        [2, 1, 3],
    ]


def test_no_samples_asked_for(tmp_path: Path) -> None:
    """An empty split is no error."""
    assert read_outputs(write(tmp_path, "npy"), "logits", [], CLASSES).shape == (0, 3)


def test_float16_probabilities_are_within_the_tolerance(tmp_path: Path) -> None:
    """A thousand classes, rounded to float16, sum to 1 closely enough."""
    p = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1)
    np.save(tmp_path / "a.npy", p.half().numpy())
    classes, ids = [str(k) for k in range(1000)], [str(i) for i in range(50)]

    outputs = read_outputs(tmp_path / "a.npy", "probabilities", ids, classes)

    torch.testing.assert_close(outputs.softmax(1), p, atol=1e-3, rtol=0)


# --- mistakes ---


def fails(path: Path, message: str, kind: str = "logits", ids: tuple[str, ...] = ("0", "1")) -> None:
    """Reading raises DataError of one line: the path, then exactly `message`."""
    with pytest.raises(DataError) as error:
        read_outputs(path, kind, ids, CLASSES)  # type: ignore[arg-type]
    assert str(error.value) == f"{path}{message}"
    assert "\n" not in message


def test_no_such_file_or_format(tmp_path: Path) -> None:
    """Which endings there are."""
    fails(tmp_path / "a.npy", ": there is no such file")
    fails(tmp_path / "a.pkl", ": expected a file that ends in .csv, .npy, .npz, .safetensors")


@pytest.mark.parametrize("form", ["csv", "npz", "safetensors"])
def test_missing_ids(form: str, tmp_path: Path) -> None:
    """How many, the first three, and what the file's ids look like."""
    fails(
        write(tmp_path, form, ids=("10", "11", "12", "13")),
        ": no row for 5 of 6 samples: '0', '1', '2', ...; add them (the file's ids are '10', '11', '12', ...)",
        ids=("0", "1", "2", "11", "3", "4"),
    )


def test_npy_with_too_few_rows(tmp_path: Path) -> None:
    """Row i is sample i."""
    fails(
        write(tmp_path, "npy"),
        ": no row for 1 of 2 samples: '4'; add them (the file's ids are '0', '1', '2', ...)",
        ids=("3", "4"),
    )


@pytest.mark.parametrize("form", ["csv", "npz", "safetensors"])
def test_duplicate_ids(form: str, tmp_path: Path) -> None:
    """Which of two rows is meant is unknown, also of a sample that is not asked for."""
    fails(
        write(tmp_path, form, ids=("0", "1", "3", "3")),
        ": 1 ids have more than one row: '3'; keep one row for each",
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers(form: str, value: float, tmp_path: Path) -> None:
    """Count and ids."""
    values = LOGITS.copy()
    values[1, 2] = value
    fails(
        write(tmp_path, form, values),
        ": 1 samples have values that are nan or infinite: '1'; mend them or take these samples out of the data set",
    )


def test_too_large_for_float32(tmp_path: Path) -> None:
    """1e300 is finite in the file, and not in float32."""
    np.save(tmp_path / "a.npy", LOGITS.astype(np.float64) * 1e300)
    with pytest.raises(DataError, match="2 samples have values that are nan or infinite: '0', '1'; mend"):
        read_outputs(tmp_path / "a.npy", "logits", ["0", "1"], CLASSES)


def test_wrong_number_of_columns(tmp_path: Path) -> None:
    """Without names, there must be one column per class; of names, one per column."""
    np.save(tmp_path / "a.npy", LOGITS[:, :2])
    fails(tmp_path / "a.npy", ": 2 columns, but the data set has 3 classes: expected one for each")
    np.savez(tmp_path / "a.npz", values=LOGITS, ids=np.arange(4), classes=np.array(["cat", "dog"]))
    fails(tmp_path / "a.npz", ": 3 columns, but 2 class names: expected one for each")
    np.savez(tmp_path / "b.npz", values=LOGITS, ids=np.arange(3))
    fails(tmp_path / "b.npz", ": 4 rows, but 3 ids: expected one for each")
    write_csv(tmp_path / "a.csv", [["0", 1, 2, 3], ["1", 1, 2]])
    fails(tmp_path / "a.csv", ", line 3: expected 4 columns as in the header, got 3")


def test_class_names(tmp_path: Path) -> None:
    """Unknown, with the nearest; missing; twice."""
    write_csv(tmp_path / "a.csv", [["0", 1, 2, 3]], ("id", "cat", "dogg", "cow"))
    fails(
        tmp_path / "a.csv",
        ": the data set has no class 'dogg'. Did you mean 'dog'? Expected one column per class of the data set,"
        " and no other",
    )
    write_csv(tmp_path / "b.csv", [["0", 1]], ("id", "dog"))
    fails(tmp_path / "b.csv", ": no column for 2 of 3 classes: 'cat', 'cow'; add them")
    write_csv(tmp_path / "c.csv", [["0", 1, 2, 3, 4]], ("id", "cat", "dog", "cow", "cat"))
    fails(tmp_path / "c.csv", ": more than one column is named 'cat': keep one")


def test_probabilities_that_are_none(tmp_path: Path) -> None:
    """Negative, or another sum: with the other kind as a likely reason."""
    fails(
        write(tmp_path, "npy"),
        ": 1 samples have negative probabilities: '0'; if these are logits, set teacher.params.values=logits",
        kind="probabilities",
    )
    np.save(tmp_path / "b.npy", np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.1]]))
    fails(
        tmp_path / "b.npy",
        ": the probabilities of 1 samples do not sum to 1: '1' (the first to 0.9); normalise them, or set"
        " teacher.params.values=logits if they are logits",
        kind="probabilities",
    )


def test_logits_that_look_like_probabilities(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Allowed, but said: a softmax of probabilities is nearly flat."""
    np.save(tmp_path / "a.npy", np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]))
    with caplog.at_level(logging.WARNING, "kdistill"):
        read_outputs(tmp_path / "a.npy", "logits", ["0", "1"], CLASSES)
    assert (
        "every row sums to 1 as probabilities do; if they are, set teacher.params.values=probabilities"
        in caplog.text
    )


def test_csv_header_and_numbers(tmp_path: Path) -> None:
    """What the first line must be; which line has what is no number."""
    path = tmp_path / "a.csv"
    path.write_text("cat,dog,cow\n1,2,3\n")
    fails(path, ": expected a first line 'id,' and the class names, got 'cat,dog,cow'")
    path.write_text("")
    fails(path, ": expected a first line 'id,' and the class names, got ''")
    path.write_text('id,cat,dog,cow\n0,"1,5",2,3\n')
    fails(path, ", line 2: could not convert string to float: '1,5'; decimals need a point")
    path.write_bytes("id,cat,dog,cow\n0,1,2,ü\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"is damaged or cannot be read .*utf-8.* make it again"):
        read_outputs(path, "logits", ["0"], CLASSES)


def test_python_objects_are_never_read(tmp_path: Path) -> None:
    """A pickle inside a numpy file is refused, and how to save ids is said."""
    np.savez(tmp_path / "a.npz", values=LOGITS, ids=np.array(["0", "1", "2", "3"], dtype=object))
    np.save(tmp_path / "a.npy", LOGITS.astype(object), allow_pickle=True)
    for name in ("a.npz", "a.npy"):
        fails(
            tmp_path / name,
            " holds Python objects, which are not read: save plain numbers, and ids as text (dtype str) or integers",
        )


def test_other_arrays_and_shapes(tmp_path: Path) -> None:
    """Names of the arrays, axes, and types that are expected."""
    np.savez(tmp_path / "a.npz", logits=LOGITS)
    fails(
        tmp_path / "a.npz",
        ": no array 'values', it has logits; expected 'values' [samples, classes], 'ids' [samples] and perhaps"
        " 'classes'",
    )
    save_file({"logits": torch.from_numpy(LOGITS)}, tmp_path / "a.safetensors")
    fails(tmp_path / "a.safetensors", ": no tensor 'values', it has logits")
    np.save(tmp_path / "b.npy", LOGITS[0])
    fails(tmp_path / "b.npy", ": expected numbers of shape [samples, classes], got float32 of shape [3]")
    np.save(tmp_path / "c.npy", LOGITS.astype(str))
    with pytest.raises(
        DataError, match=r"expected numbers of shape \[samples, classes\], got <U32 of shape \[4, 3\]"
    ):
        read_outputs(tmp_path / "c.npy", "logits", ["0"], CLASSES)
    save_file({"values": torch.from_numpy(LOGITS)}, tmp_path / "b.safetensors", metadata={"classes": '"cat"'})
    fails(
        tmp_path / "b.safetensors",
        """: its metadata 'classes' is '"cat"': expected a JSON list of class names""",
    )


@pytest.mark.parametrize("form", ["npy", "npz", "safetensors"])
def test_damaged_files(form: str, tmp_path: Path) -> None:
    """Half a file, an empty one, and another format under this name."""
    path = write(tmp_path, form)
    whole = path.read_bytes()
    other = write(tmp_path, "npz" if form == "npy" else "npy").read_bytes()
    for content in (whole[: len(whole) // 2], b"", other):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is damaged or cannot be read \(.*\): make it again$"):
            read_outputs(path, "logits", ["0"], CLASSES)
