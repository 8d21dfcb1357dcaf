"""Data sets in shards: which tar files are for training, validation and test, and what their labels mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from kdistill.config.data import WebDataset
from kdistill.data.assemble import from_files
from kdistill.data.decoding import EXTENSIONS, existing_folder, files_under
from kdistill.data.filesplit import FileSplit
from kdistill.data.folder import VALIDATION_NAMES
from kdistill.data.shards import read_shards, shard_images, shards_under
from kdistill.data.splits import Data
from kdistill.errors import DataError, did_you_mean

#: words in a shard's path, and the split that they say it is of
_SPLIT_OF = dict.fromkeys(VALIDATION_NAMES, "validation") | {"test": "test"}
_RANGE = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_NUMBER = re.compile(r"-?\d+")


def load_webdataset(
    config: WebDataset,
    *,
    workers: int,
    memory_gb: float,
    cache: str | None,
    index: str | None,
    test_seed: int,
) -> Data:
    """Return the images in the tar files under `config.root`, in the WebDataset format.

    A split's shards are those of its pattern; without one, those with its name in their path, and for training all
    that are left. A split without shards is cut from the training images as an image folder's is. Labels are numbers
    from 0 if all of the training shards' are, else names of classes. A sample's id is its image's path, shards taken
    as folders. Lists of the shards' content are kept in the folder `index`. Raises DataError.
    """
    root = existing_folder("dataset.root", config.root)
    parts = _parts(config, root)

    def read(split: str) -> tuple[FileSplit, list[str]]:
        shards = read_shards(root, parts[split], config.label, index)
        files = shard_images(root, parts[split], shards, config.image_size, config.channels)
        if not files.names:
            raise DataError(f"the shards for {split} in {root} have no images ({' '.join(EXTENSIONS)})")
        unknown = torch.full((len(files),), -1)
        labels = [label for shard in shards for label in shard.labels]
        return FileSplit(files, unknown, config.on_error == "skip", workers), labels

    train, labels = read("train")
    classes = _classes(config, root, labels)
    return from_files(
        config,
        classes.names,
        "classification",
        train=classes.labelled(train, labels),
        validation=classes.labelled(*read("validation")) if "validation" in parts else None,
        read_test=(lambda: classes.labelled(*read("test"))) if "test" in parts else None,
        memory_gb=memory_gb,
        cache=cache,
        test_seed=test_seed,
    )


# --- which shards ---


def _parts(config: WebDataset, root: Path) -> dict[str, list[str]]:
    """The shards of each split that has some, in alphabetical order."""
    there = shards_under(root)
    if not there:
        raise DataError(f"{root} has no shards (*.tar).{_compressed(root)}")
    patterns = {
        "train": config.train_shards,
        "validation": config.validation_shards,
        "test": config.test_shards,
    }
    parts = {
        split: _matching(f"dataset.{split}_shards={pattern}", pattern, root, there)
        for split, pattern in patterns.items()
        if pattern is not None
    }
    count = Counter(name for names in parts.values() for name in names)
    twice = next((name for name in there if count[name] > 1), None)
    if twice is not None:
        settings = [f"dataset.{split}_shards" for split, names in parts.items() if twice in names]
        raise DataError(f"{root / twice} is in {' and '.join(settings)}: a shard is of one split")
    for name in there:
        if not count[name] and patterns[split := _split_in(name)] is None:
            parts.setdefault(split, []).append(name)
    if "train" not in parts:
        raise DataError(
            f"{root} has shards for {' and '.join(parts)} ({there[0]}), but none for training:"
            " name some in dataset.train_shards"
        )
    return parts


def _split_in(name: str) -> str:
    """The split that a word of the path says; training where none does."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((_SPLIT_OF[word] for word in words if word in _SPLIT_OF), "train")


def _matching(setting: str, pattern: str, root: Path, there: Sequence[str]) -> list[str]:
    names = set(there)
    found: set[str] = set()
    for part in _expanded(pattern) or [pattern]:  # none for a range that runs backwards
        matches = {part} & names or {name for name in there if fnmatchcase(name, part)}
        if not matches:
            what = f"{part} is not" if part != pattern else "nothing of that name is"
            among = f"{there[0]} ... {there[-1]}" if len(there) > 1 else there[0]
            raise DataError(
                f"{setting}: {what} among the {len(there):,} shards in {root} ({among})."
                f"{did_you_mean(part, there) or _compressed(root)}"
            )
        found |= matches
    return sorted(found)


def _expanded(pattern: str) -> list[str]:
    """The patterns that one with braces stands for: `{00..12}` for numbers, `{a,b}` for words."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last, words = found.groups()
    if words is None:
        parts = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    else:
        parts = words.split(",")
    rests = _expanded(pattern[found.end() :])
    return [f"{pattern[: found.start()]}{part}{rest}" for part in parts for rest in rests]


def _compressed(root: Path) -> str:
    found = min(
        (path.name for path in files_under(root, (".gz", ".tgz", ".bz2", ".xz", ".zst"))), default=None
    )
    return f" {found} is compressed: uncompress it, images are read from the middle of a tar" if found else ""


# --- what labels mean ---


@dataclass(frozen=True)
class _Classes:
    """The classes' names in their order. `numbered`: labels are positions, not names."""

    names: list[str]
    numbered: bool

    def labelled(self, split: FileSplit, labels: Sequence[str]) -> FileSplit:
        """Return the split with labels int64 `[n]`; raises DataError with the first sample whose label is wrong."""
        known = {str(i) if self.numbered else name: i for i, name in enumerate(self.names)}
        positions: dict[str, int] = {}
        for label in dict.fromkeys(labels):
            plain = str(int(label)) if self.numbered and _NUMBER.fullmatch(label) else label
            if plain not in known:
                what = (
                    f"the label {label} is out of range: there are {len(known)} classes, 0 to {len(known) - 1}"
                    if self.numbered
                    else f"there is no class {label!r}.{did_you_mean(label, known)}"
                )
                raise DataError(f"{split.files.path(labels.index(label))}: {what}")
            positions[label] = known[plain]
        return split.with_labels(torch.tensor([positions[label] for label in labels], dtype=torch.int64))


def _classes(config: WebDataset, root: Path, labels: Sequence[str]) -> _Classes:
    """The classes that the labels of the training shards are of."""
    numbered = all(_NUMBER.fullmatch(label) for label in dict.fromkeys(labels))
    names = _class_names(config, root, labels, numbered)
    if len(names) < 2:
        raise DataError(f"{root}: expected at least 2 classes, found {', '.join(names) or 'none'}")
    return _Classes(names, numbered)


def _class_names(config: WebDataset, root: Path, labels: Sequence[str], numbered: bool) -> list[str]:
    if config.class_names is not None:
        return _names_in(root / Path(config.class_names).expanduser())
    if numbered:
        numbers = {int(label) for label in labels}
        count = max(numbers, default=-1) + 1
        missing = next((number for number in range(count) if number not in numbers), None)
        if missing is not None:
            raise DataError(
                f"{root}: no training sample has the label {missing}, but labels go up to {count - 1}: number the"
                " classes from 0, without a gap"
            )
        return [str(number) for number in range(count)]
    return sorted(set(labels))


def _names_in(path: Path) -> list[str]:
    """The names of classes in a file, a line each."""
    if not path.is_file():
        beside = [other.name for other in path.parent.glob("*")]
        raise DataError(f"dataset.class_names: there is no file {path}.{did_you_mean(path.name, beside)}")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error})") from error
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if not name or name in lines:
            what = f"{name!r} is in line {lines[name]} already" if name else "a class's name is missing"
            raise DataError(f"{path} line {line}: {what}")
        lines[name] = line
    return names
