"""Image tables: a CSV file that names images and what is known of each."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from kdistill.config.data import ImageTable, TaskName
from kdistill.data.assemble import from_files
from kdistill.data.decoding import ImageFiles, existing_folder
from kdistill.data.filesplit import FileSplit
from kdistill.data.splits import Data
from kdistill.errors import DataError, did_you_mean

#: how the `split` column may name a split
_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
_SEPARATOR = ";"
_COLUMNS: dict[TaskName, str] = {"classification": "label", "multilabel": "labels", "regression": "value"}


@dataclass(frozen=True)
class _Row:
    line: int
    file: str
    split: str
    cells: tuple[str, ...]  # of the columns that are learnt


def load_image_table(
    config: ImageTable, *, workers: int, memory_gb: float, cache: str | None, test_seed: int
) -> Data:
    """Return the images that a CSV file names, with their labels.

    Its first line names the columns: `file` (path within `config.root`) and one of `label` (a class), `labels`
    (classes separated by `;`, empty for none of them), `value` (a number), or the columns of `config.targets`
    (numbers). A column `split`, if there, says train, val or test; a split that no line names is cut from the
    training images as an image folder's is. Other columns are ignored. The classes are those of the training
    images, in alphabetical order. Raises DataError with the line of the table that is wrong.
    """
    table = _Table(config)
    rows = table.rows()
    parts = {name: [row for row in rows if row.split == name] for name in ("train", "val", "test")}
    if not parts["train"]:
        raise DataError(f"{table.path}: no line is of the split train")
    classes, label = table.labels(parts["train"])
    splits = {
        name: FileSplit(
            ImageFiles(str(table.root), [row.file for row in part], config.image_size, config.channels),
            torch.stack([label(row) for row in part]),
            config.on_error == "skip",
            workers,
        )
        for name, part in parts.items()
        if part
    }
    return from_files(
        config,
        classes,
        table.task,
        train=splits["train"],
        validation=splits.get("val"),
        read_test=(lambda: splits["test"]) if "test" in splits else None,
        memory_gb=memory_gb,
        cache=cache,
        test_seed=test_seed,
    )


class _Table:
    """The CSV file of a config: its columns, what is learnt from it, its rows."""

    def __init__(self, config: ImageTable) -> None:
        self.root = existing_folder("dataset.root", config.root)
        self.path = self.root / Path(config.table).expanduser()
        if not self.path.is_file():
            beside = [path.name for path in self.path.parent.glob("*")]
            raise DataError(f"there is no table {self.path}.{did_you_mean(self.path.name, beside)}")
        self.lines = self._lines()
        self.columns = self.lines[0][1] if self.lines else []
        if len(set(self.columns)) < len(self.columns):
            raise DataError(f"{self.path}: two columns have the same name: {', '.join(self.columns)}")
        self.task = self._task(config)
        self.learnt = config.targets or [_COLUMNS[self.task]]
        for column in ("file", *self.learnt):
            if column not in self.columns:
                raise self._lacks(f"no column {column!r}.{did_you_mean(column, self.columns)}")

    def _lines(self) -> list[tuple[int, list[str]]]:
        """Every line that is not empty, with its number."""
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                return [(reader.line_num, [cell.strip() for cell in line]) for line in reader if line]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path} cannot be read as a CSV file in UTF-8 ({error})") from error

    def _task(self, config: ImageTable) -> TaskName:
        if config.targets is not None:
            return "regression"
        if config.task is not None:
            return config.task
        found: list[TaskName] = [task for task, column in _COLUMNS.items() if column in self.columns]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(_COLUMNS[task] for task in found)
            raise DataError(
                f"{self.path} has the columns {names}: say which, by dataset.task={' or '.join(found)}"
            )
        raise self._lacks("expected a column label, labels or value, or dataset.targets=[COLUMN,...].")

    def _lacks(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what} Its first line has: {', '.join(self.columns) or 'nothing'}")

    def fail(self, line: int, what: str) -> NoReturn:
        raise DataError(f"{self.path} line {line}: {what}")

    def rows(self) -> list[_Row]:
        """Check and return all rows; each file is there, and is named once."""
        rows: list[_Row] = []
        seen: dict[str, int] = {}
        for line, cells in self.lines[1:]:
            if len(cells) != len(self.columns):
                self.fail(line, f"{len(cells)} cells, but the first line names {len(self.columns)} columns")
            row = dict(zip(self.columns, cells, strict=True))
            file = row["file"]
            if not file or not (self.root / file).is_file():
                self.fail(line, f"there is no file {file!r} in {self.root}.{self._near(file)}")
            name = Path(file).as_posix()
            if name in seen:
                self.fail(line, f"{file} is in line {seen[name]} already")
            seen[name] = line
            split = row.get("split", "train")
            if split not in _SPLITS:
                self.fail(
                    line, f"no split {split!r}.{did_you_mean(split, _SPLITS)} Expected train, val or test"
                )
            rows.append(_Row(line, name, _SPLITS[split], tuple(row[column] for column in self.learnt)))
        return rows

    def _near(self, file: str) -> str:
        folder = Path(file).parent
        if not (self.root / folder).is_dir():
            return f" There is no folder {self.root / folder}"
        beside = sorted(path.name for path in (self.root / folder).iterdir())
        return did_you_mean(file, [(folder / name).as_posix() for name in beside])

    def labels(self, train: Sequence[_Row]) -> tuple[list[str], Callable[[_Row], Tensor]]:
        """Return the names of classes or values, and what turns a row into its label."""
        match self.task:
            case "classification":
                position = self._classes(train)
                return list(position), lambda row: torch.tensor(self._positions(row, position)[0])
            case "multilabel":
                position = self._classes(train)
                return list(position), lambda row: self._indicators(row, position)
            case "regression":
                return list(self.learnt), lambda row: torch.tensor(self._numbers(row))

    def _names(self, row: _Row) -> list[str]:
        (cell,) = row.cells
        if self.task == "multilabel":
            names = [name.strip() for name in cell.split(_SEPARATOR)] if cell else []
        else:
            names = [cell]
        if "" in names:
            self.fail(row.line, f"{self.learnt[0]}={cell!r} has an empty name" if cell else "label is empty")
        return names

    def _classes(self, train: Sequence[_Row]) -> dict[str, int]:
        """Class names with their positions."""
        classes = sorted({name for row in train for name in self._names(row)})
        least = 2 if self.task == "classification" else 1
        if len(classes) < least:
            raise DataError(
                f"{self.path}: expected at least {least} classes in the training images,"
                f" found {', '.join(classes) or 'none'}"
            )
        return {name: i for i, name in enumerate(classes)}

    def _positions(self, row: _Row, position: Mapping[str, int]) -> list[int]:
        names = self._names(row)
        for name in names:
            if name not in position:
                self.fail(
                    row.line, f"no training image has the class {name!r}.{did_you_mean(name, position)}"
                )
        return [position[name] for name in names]

    def _indicators(self, row: _Row, position: Mapping[str, int]) -> Tensor:
        indicators = torch.zeros(len(position))
        indicators[self._positions(row, position)] = 1
        return indicators

    def _numbers(self, row: _Row) -> list[float]:
        numbers = []
        for column, cell in zip(self.learnt, row.cells, strict=True):
            try:
                number = float(cell)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                self.fail(row.line, f"{column}={cell!r} is not a number" if cell else f"{column} is empty")
            numbers.append(number)
        return numbers
