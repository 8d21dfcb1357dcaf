"""Image folders: one folder per class, held in memory when small, else decoded by worker processes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from kdistill.config import schema
from kdistill.data.splits import (
    ArraySplit,
    Batch,
    Data,
    Split,
    channel_statistics,
    check_classes,
    cut,
    sample_order,
    slices,
    subset,
)
from kdistill.errors import DataError, did_you_mean

_log = logging.getLogger("kdistill")

_VALIDATION_FOLDERS = ("val", "validation", "valid")
_STATISTICS_IMAGES = 2000
_HASHED_BYTES = 2**30
_CPU = torch.device("cpu")


# --- one image ---


def decode(path: str, image_size: int, channels: int) -> Tensor:
    """Return the image as uint8 `[channels, image_size, image_size]`: its central square, resized.

    Turned upright as its EXIF says; transparent parts become white; 16-bit grey keeps its upper 8 bits.
    Resizing is bilinear with antialiasing. Raises whatever Pillow raises for a damaged file.
    """
    with Image.open(path) as opened:
        # JPEG can decode at 1/2, 1/4 or 1/8 of its size; twice the target is enough to resize well from.
        opened.draft(None, (2 * image_size, 2 * image_size))
        upright: Image.Image = ImageOps.exif_transpose(opened)
        image = _eight_bits(upright).convert("L" if channels == 1 else "RGB")
    short = min(image.size)
    left, top = ((side - short) / 2 for side in image.size)
    square = (left, top, left + short, top + short)
    image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=square)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.reshape(image_size, image_size, channels).permute(2, 0, 1).contiguous()


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers, of unknown range")
    if image.mode == "I" or image.mode.startswith("I;"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return image


class _Files(Dataset[tuple[int, Tensor | str]]):
    """Decodes by position. A failure is returned as text: a worker's exception would lose its form."""

    def __init__(self, paths: list[str], image_size: int, channels: int) -> None:
        self.paths, self.image_size, self.channels = paths, image_size, channels

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, decode(self.paths[index], self.image_size, self.channels)
        except Exception as error:  # Pillow's plugins raise almost anything for a damaged file
            text = str(error).replace(f" {self.paths[index]!r}", "")
            return index, text or type(error).__name__


_Decoded = tuple[list[int], Tensor | None, list[tuple[int, str]]]


def _collate(samples: list[tuple[int, Tensor | str]]) -> _Decoded:
    """Part the positions and images that decoded from those that did not, with their causes."""
    good = [(index, image) for index, image in samples if isinstance(image, Tensor)]
    bad = [(index, cause) for index, cause in samples if isinstance(cause, str)]
    return [i for i, _ in good], torch.stack([x for _, x in good]) if good else None, bad


# --- a split on disk ---


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """A split whose images are decoded when asked for. `corrupt`: positions met that could not be decoded."""

    files: _Files
    labels: Tensor
    skip_corrupt: bool
    workers: int = 0
    device: torch.device = _CPU
    corrupt: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def skipped(self) -> int:
        return len(self.corrupt)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield batches, without corrupt images; raises DataError for one unless `skip_corrupt`."""
        loader: DataLoader[Any] = DataLoader(
            self.files,
            batch_sampler=[part.tolist() for part in slices(order, batch_size)],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one, which dropout depends on
        )
        known = self.skipped
        for positions, images, failures in loader:
            for index, cause in failures:
                self._leave_out(index, cause)
            if images is not None:
                indices = torch.tensor(positions, device=self.device)
                yield Batch(images.to(self.device, non_blocking=True), self.labels[indices], indices)
        if self.skipped > known:
            first = self.files.paths[min(self.corrupt)]
            _log.warning("left out %d corrupt images of %d, such as %s", self.skipped, len(self), first)

    def _leave_out(self, index: int, cause: str) -> None:
        if not self.skip_corrupt:
            path = self.files.paths[index]
            raise DataError(f"cannot decode {path} ({cause}); dataset.on_error=skip leaves such images out")
        self.corrupt.add(index)

    def to(self, device: torch.device) -> FolderSplit:
        return replace(self, labels=self.labels.to(device), device=device)

    def load(self) -> ArraySplit:
        """Return the same images in memory, without the corrupt ones."""
        files, n = self.files, 0
        images = torch.empty(len(self), files.channels, files.image_size, files.image_size, dtype=torch.uint8)
        labels = torch.empty_like(self.labels)
        for batch in self.batches(torch.arange(len(self)), 64):
            end = n + len(batch.labels)
            images[n:end], labels[n:end] = batch.images, batch.labels
            n = end
        return ArraySplit(images[:n], labels[:n], self.skipped)

    def fingerprint(self, root: Path, classes: Sequence[str]) -> str:
        """Return the sha256 (hex) over class names and each file's label, path within root and size.

        Contents are included when all files together are below 1 GiB. Corrupt images met so far are not.
        """
        held = [i for i in range(len(self)) if i not in self.corrupt]
        paths, labels = [Path(self.files.paths[i]) for i in held], self.labels[held].tolist()
        sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
        names = [path.relative_to(root).as_posix() for path in paths]
        digest = hashlib.sha256(json.dumps([list(classes), names, labels, sizes]).encode())
        if sum(sizes) < _HASHED_BYTES:
            for path in paths:
                digest.update(path.read_bytes() if path.exists() else b"")
        return digest.hexdigest()

    def select(self, indices: Tensor) -> FolderSplit:
        """Return a split of these positions (int64 `[m]`), in this order."""
        paths = [self.files.paths[i] for i in indices.tolist()]
        files = _Files(paths, self.files.image_size, self.files.channels)
        return replace(self, files=files, labels=self.labels[indices], corrupt=set())


# --- the folders ---


def load_image_folder(config: schema.ImageFolder, *, workers: int, memory_gb: float, test_seed: int) -> Data:
    """Return the images under `config.root`, laid out in one of two ways.

    `root/train/<class>/` with, if there, `root/val/<class>/` (or validation, valid) and `root/test/<class>/`;
    or `root/<class>/`. A split without a folder is cut from the training images: test first, by `config.test`
    and `test_seed`, then validation by `config.validation` and `config.split_seed`. Raises DataError.
    """
    root = Path(config.root).expanduser()
    train_root = _train_root(root)
    classes = _class_names(train_root)
    validation_root = next((root / f for f in _VALIDATION_FOLDERS if (root / f).is_dir()), None)

    def read(folder: Path) -> FolderSplit:
        _check_same_classes(folder, classes, train_root)
        return _list_images(folder, classes, config, workers)

    def settle(split: FolderSplit, name: str, count: int) -> tuple[Split, str]:
        """Hold the split in memory if `count` images fit there: its own and those held at the same time."""
        fits = count * config.channels * config.image_size**2 <= memory_gb * 2**30
        settled = split.load() if fits else split
        check_classes(settled.labels, classes, name)
        return settled, split.fingerprint(root, classes)

    train = read(train_root)
    test = None
    if not (root / "test").is_dir():
        train, test = _cut(train, config.test, test_seed)
        check_classes(test.labels, classes, "test")
    if validation_root:
        validation = read(validation_root)
    else:
        train, validation = _cut(train, config.validation, config.split_seed)
    check_classes(train.labels, classes, "train")
    train = train.select(subset(train.labels, config.train_samples, classes, config.split_seed))

    def read_test() -> tuple[Split, str]:
        split = read(root / "test") if test is None else test
        return settle(split, "test", len(split))

    count = len(train) + len(validation)
    held_train, train_print = settle(train, "train", count)
    held_validation, validation_print = settle(validation, "validation", count)
    # The same sample in memory and on disk, so that where the images are held changes no result.
    sample = sample_order(len(held_train), seed=0, epoch=0)[:_STATISTICS_IMAGES]
    mean, std = channel_statistics(held_train, sample)
    return Data(
        train=held_train,
        validation=held_validation,
        classes=tuple(classes),
        channels=config.channels,
        image_size=(config.image_size, config.image_size),
        mean=mean,
        std=std,
        fingerprint=hashlib.sha256((train_print + validation_print).encode()).hexdigest(),
        read_test=read_test,
    )


def _cut(split: FolderSplit, share: float, seed: int) -> tuple[FolderSplit, FolderSplit]:
    rest, cut_off = cut(split.labels, share, seed)
    return split.select(rest), split.select(cut_off)


def _train_root(root: Path) -> Path:
    if not root.is_dir():
        hint = did_you_mean(root.name, _subfolders(root.parent)) if root.parent.is_dir() else ""
        raise DataError(f"dataset.root={root}: there is no such folder.{hint}")
    if (root / "train").is_dir():
        return root / "train"
    other = next((name for name in (*_VALIDATION_FOLDERS, "test") if (root / name).is_dir()), None)
    if other:
        raise DataError(f"{root} holds {other}/ but no train/: expected train/ with a folder per class")
    return root


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(folder: Path) -> list[str]:
    names = _subfolders(folder)
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


def _list_images(
    folder: Path, classes: Sequence[str], config: schema.ImageFolder, workers: int
) -> FolderSplit:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images_under(folder / name))
        if not found:
            raise DataError(f"class folder {folder / name} has no images ({' '.join(IMG_EXTENSIONS)})")
        paths += found
        labels += [label] * len(found)
    files = _Files(paths, config.image_size, config.channels)
    return FolderSplit(files, torch.tensor(labels), config.on_error == "skip", workers)


def _images_under(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMG_EXTENSIONS:
                yield str(Path(parent, name))
