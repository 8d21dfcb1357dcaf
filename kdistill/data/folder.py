"""Image folders: one folder per class, with or without a folder per split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kdistill.config.data import ImageFolder
from kdistill.data.assemble import from_files
from kdistill.data.decoding import EXTENSIONS, ImageFiles, existing_folder, files_under
from kdistill.data.filesplit import FileSplit
from kdistill.data.splits import Data
from kdistill.errors import DataError

VALIDATION_NAMES = ("val", "validation", "valid")


def load_image_folder(
    config: ImageFolder, *, workers: int, memory_gb: float, cache: str | None, test_seed: int
) -> Data:
    """Return the images under `config.root`, laid out in one of two ways.

    `root/train/<class>/` with, if there, `root/val/<class>/` (or validation, valid) and `root/test/<class>/`;
    or `root/<class>/`. A split without a folder is cut from the training images: test first, by `config.test`
    and `test_seed`, then validation by `config.validation` and `config.split_seed`. Raises DataError.
    """
    root = existing_folder("dataset.root", config.root)
    train_root = _train_root(root)
    classes = _class_names(train_root, config.unlabelled)
    validation_root = next((root / f for f in VALIDATION_NAMES if (root / f).is_dir()), None)

    def read(folder: Path) -> FileSplit:
        _check_same_classes(folder, classes, train_root)
        return _list_images(folder, classes, config, workers)

    return from_files(
        config,
        classes,
        "classification",
        train=_list_images(train_root, classes, config, workers),
        validation=read(validation_root) if validation_root else None,
        read_test=(lambda: read(root / "test")) if (root / "test").is_dir() else None,
        memory_gb=memory_gb,
        cache=cache,
        test_seed=test_seed,
    )


def _train_root(root: Path) -> Path:
    if (root / "train").is_dir():
        return root / "train"
    other = next((name for name in (*VALIDATION_NAMES, "test") if (root / name).is_dir()), None)
    if other:
        raise DataError(f"{root} holds {other}/ but no train/: expected train/ with a folder per class")
    return root


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(folder: Path, unlabelled: str | None) -> list[str]:
    names = _subfolders(folder)
    if unlabelled is not None:  # which may lie among the classes
        names = [n for n in names if (folder / n).resolve() != Path(unlabelled).expanduser().resolve()]
    if not names:
        raise DataError(
            f"{folder} has no class folders: expected {folder / '<class>'} with images, per class"
        )
    if len(names) < 2:
        raise DataError(f"{folder} has one class folder, {names[0]!r}: expected at least 2 classes")
    return names


def _check_same_classes(folder: Path, classes: Sequence[str], train_root: Path) -> None:
    found = set(_subfolders(folder))
    missing, unknown = sorted(set(classes) - found), sorted(found - set(classes))
    if missing or unknown:
        parts = [f"missing {', '.join(missing[:5])}"] * bool(missing)
        parts += [f"not among them {', '.join(unknown[:5])}"] * bool(unknown)
        raise DataError(f"{folder} must have the classes of {train_root}: {'; '.join(parts)}")


def _list_images(folder: Path, classes: Sequence[str], config: ImageFolder, workers: int) -> FileSplit:
    root = Path(config.root).expanduser()
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(str(path) for path in files_under(folder / name))
        if not found:
            raise DataError(f"class folder {folder / name} has no images ({' '.join(EXTENSIONS)})")
        names += [Path(path).relative_to(root).as_posix() for path in found]
        labels += [label] * len(found)
    files = ImageFiles(str(root), names, config.image_size, config.channels)
    return FileSplit(files, torch.tensor(labels), config.on_error == "skip", workers)
