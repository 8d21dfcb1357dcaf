"""Files of teacher outputs that the user brings: any model's logits or probabilities, by sample."""

from __future__ import annotations

import csv
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdistill.averaging import log_of
from kdistill.errors import DataError, did_you_mean, first_line

_log = logging.getLogger("kdistill")

Kind = Literal["logits", "probabilities"]

#: how far the probabilities of a sample may be from summing to 1: float16 stays within half of it
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Table:
    """A file's content. `values`: `[rows, columns]`; None for `ids`: row i is id str(i); for `classes`: in order."""

    values: np.ndarray
    ids: list[str] | None = None
    classes: list[str] | None = None


def read_outputs(path: Path, kind: Kind, ids: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Return logits float32 `[n, K]` for the samples `ids`, columns in the order of `classes`.

    Formats, by the file's ending; rows may be in any order and more than are asked for:
        .csv          a header: `id`, then one column per class name, in any order
        .npy          `[rows, K]`: row i belongs to id str(i), columns in the order of `classes`
        .npz          `values` `[rows, K]`, `ids` (text or integers), and perhaps `classes` (text)
        .safetensors  `values` `[rows, K]`, perhaps `ids` (integers), and perhaps metadata `classes` (a JSON list)

    `kind="probabilities"` become logits by `averaging.log_of`. Raises DataError, which says what to do, for a
    file that is missing, damaged or of another form; missing, duplicate or unknown ids and classes; values that
    are not finite; and probabilities that are negative or do not sum to 1.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected a file that ends in {', '.join(_READERS)}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    table = reader(path)
    if table.values.ndim != 2 or table.values.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: expected numbers of shape [samples, classes],"
            f" got {table.values.dtype} of shape {list(table.values.shape)}"
        )
    columns = _columns(path, table, classes)
    rows = _rows(path, table, ids)
    with np.errstate(over="ignore"):  # what becomes infinite is named below
        values = torch.from_numpy(table.values[rows][:, columns].astype(np.float32))
    _check_values(path, values, kind, ids)
    return log_of(values) if kind == "probabilities" else values


# --- formats ---


def _read_csv(path: Path) -> _Table:
    # utf-8-sig: spreadsheets begin a file with a byte order mark
    with _reading(path), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if header[:1] != ["id"]:
            raise DataError(
                f"{path}: expected a first line 'id,' and the class names, got {','.join(header)[:60]!r}"
            )
        ids, values = [], []
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: expected {len(header)} columns as in the header,"
                    f" got {len(cells)}"
                )
            ids.append(cells[0].strip())
            values.append(_numbers(path, reader.line_num, cells[1:]))
    shape = (len(values), len(header) - 1)
    return _Table(np.array(values, dtype=np.float64).reshape(shape), ids, header[1:])


def _numbers(path: Path, line: int, cells: list[str]) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError as ex:
        raise DataError(f"{path}, line {line}: {first_line(ex)}; decimals need a point") from None


def _read_npy(path: Path) -> _Table:
    with _reading(path):
        return _Table(np.lib.format.open_memmap(path, mode="r"))


def _read_npz(path: Path) -> _Table:
    # a file of our own: numpy leaves a damaged one open
    with _reading(path), path.open("rb") as file, NpzFile(file, allow_pickle=False) as archive:
        for name in ("values", "ids"):
            if name not in archive:
                raise DataError(
                    f"{path}: no array {name!r}, it has {', '.join(archive) or 'none'};"
                    " expected 'values' [samples, classes], 'ids' [samples] and perhaps 'classes'"
                )
        classes = _texts(archive["classes"]) if "classes" in archive else None
        return _Table(archive["values"], _texts(archive["ids"]), classes)


def _read_safetensors(path: Path) -> _Table:
    with _reading(path), safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if "values" not in names:
            raise DataError(f"{path}: no tensor 'values', it has {', '.join(names) or 'none'}")
        values = file.get_tensor("values")
        ids = _texts(file.get_tensor("ids").numpy()) if "ids" in names else None
        named = (file.metadata() or {}).get("classes")
        classes = None if named is None else json.loads(named)
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        raise DataError(f"{path}: its metadata 'classes' is {named!r}: expected a JSON list of class names")
    # numpy has no bfloat16
    return _Table(values.float().numpy() if values.is_floating_point() else values.numpy(), ids, classes)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the formats raise for a damaged file into a DataError."""
    try:
        yield
    except (OSError, EOFError, ValueError, csv.Error, zipfile.BadZipFile, zlib.error, SafetensorError) as ex:
        if "Python objects" in str(ex) or "allow_pickle" in str(ex):
            raise DataError(
                f"{path} holds Python objects, which are not read: save plain numbers, and ids as text"
                " (dtype str) or integers"
            ) from None
        raise DataError(f"{path} is damaged or cannot be read ({first_line(ex)}): make it again") from ex


def _texts(ids: np.ndarray) -> list[str]:
    return [str(name) for name in ids.reshape(-1).tolist()]


_READERS = {
    ".csv": _read_csv,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
}


# --- checks ---


def _columns(path: Path, table: _Table, classes: Sequence[str]) -> list[int]:
    """Where each class's column is."""
    found = table.values.shape[1]
    names = table.classes
    if names is None:
        if found != len(classes):
            raise DataError(
                f"{path}: {found} columns, but the data set has {len(classes)} classes: expected one for each"
            )
        return list(range(found))
    if len(names) != found:
        raise DataError(f"{path}: {found} columns, but {len(names)} class names: expected one for each")
    for name in names:
        if name not in classes:
            raise DataError(
                f"{path}: the data set has no class {name!r}.{did_you_mean(name, classes)}"
                " Expected one column per class of the data set, and no other"
            )
    repeated = _repeated(names)
    if repeated:
        raise DataError(f"{path}: more than one column is named {repeated[0]!r}: keep one")
    absent = [name for name in classes if name not in names]
    if absent:
        raise DataError(
            f"{path}: no column for {len(absent)} of {len(classes)} classes: {_first(absent)}; add them"
        )
    place = {name: k for k, name in enumerate(names)}
    return [place[name] for name in classes]


def _rows(path: Path, table: _Table, ids: Sequence[str]) -> list[int]:
    """Where each sample's row is."""
    found = len(table.values)
    names = [str(i) for i in range(found)] if table.ids is None else table.ids
    if len(names) != found:
        raise DataError(f"{path}: {found} rows, but {len(names)} ids: expected one for each")
    repeated = _repeated(names)
    if repeated:
        raise DataError(
            f"{path}: {len(repeated)} ids have more than one row: {_first(repeated)}; keep one row for each"
        )
    place = {name: row for row, name in enumerate(names)}
    absent = [name for name in ids if name not in place]
    if absent:
        raise DataError(
            f"{path}: no row for {len(absent)} of {len(ids)} samples: {_first(absent)};"
            f" add them (the file's ids are {_first(names)})"
        )
    return [place[name] for name in ids]


def _check_values(path: Path, values: Tensor, kind: Kind, ids: Sequence[str]) -> None:
    bad = ~values.isfinite().all(1)
    if bad.any():
        raise DataError(
            f"{path}: {int(bad.sum())} samples have values that are nan or infinite: {_first_where(ids, bad)};"
            " mend them or take these samples out of the data set"
        )
    negative, off = (values < 0).any(1), (values.double().sum(1) - 1).abs() > SUM_TOLERANCE
    if kind == "logits":
        if len(values) and not (negative | off).any():
            _log.warning(
                f"{path}: every row sums to 1 as probabilities do; if they are, set teacher.params.values=probabilities"
            )
        return
    if negative.any():
        raise DataError(
            f"{path}: {int(negative.sum())} samples have negative probabilities: {_first_where(ids, negative)};"
            " if these are logits, set teacher.params.values=logits"
        )
    if off.any():
        row = int(off.nonzero()[0])
        raise DataError(
            f"{path}: the probabilities of {int(off.sum())} samples do not sum to 1: {_first_where(ids, off)}"
            f" (the first to {float(values[row].double().sum()):.4g}); normalise them, or set"
            " teacher.params.values=logits if they are logits"
        )


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({a for a, b in pairwise(sorted(names)) if a == b})


def _first(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _first_where(ids: Sequence[str], mask: Tensor) -> str:
    return _first([ids[row] for row in mask.nonzero().flatten().tolist()])
