"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100: find the files, or download them, and read them.

torchvision knows the sources and downloads. The files are read here: one part is read without the other being there,
a damaged file is named, and a pickle cannot run code.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import re
import socket
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdistill.config.data import Downloaded
from kdistill.data.published import PUBLISHED, Cifar, Idx
from kdistill.data.splits import ArraySplit
from kdistill.errors import DataError

_SILENT_SECONDS = 20
_SYSTEM_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}


def read_downloaded(config: Downloaded, *, train: bool) -> tuple[ArraySplit, tuple[str, ...]]:
    """Return one part of the data set and its class names; downloads when the config allows it.

    Raises DataError when the files are neither here nor to be had, or when one is damaged.
    """
    folder = _find(config, train)
    if folder is None:
        _download(config)
        folder = _find(config, train)
    if folder is None:
        raise DataError(_missing(config, "the download lacks some files"))
    published = PUBLISHED[config.name]
    if isinstance(published, Idx):
        return _read_idx_part(folder, published, train)
    return _read_cifar_part(folder, published, train)


# --- where the files are ---


def _places(config: Downloaded) -> list[Path]:
    if config.root is not None:
        return [Path(config.root).expanduser()]
    chosen = os.environ.get("KDISTILL_DATA")
    usual = [Path("~/.cache/kdistill/data").expanduser(), Path("data")]
    return [Path(chosen).expanduser(), *usual] if chosen else usual


def _folders(config: Downloaded) -> list[Path]:
    """All folders that may hold the files, best first."""
    inner = PUBLISHED[config.name].folder
    folders = [place / inner for place in _places(config)]
    if config.root is not None:
        folders += [Path(config.root).expanduser()]
    elif config.name in _SYSTEM_FOLDERS:
        folders += [_SYSTEM_FOLDERS[config.name]]
    return folders


def _locate(folder: Path, file: str) -> Path | None:
    """The file, or for idx files also its gzipped form."""
    names = [file, f"{file}.gz"] if file.endswith("-ubyte") else [file]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _find(config: Downloaded, train: bool) -> Path | None:
    files = PUBLISHED[config.name].files(train)
    return next((f for f in _folders(config) if all(_locate(f, file) for file in files)), None)


def _missing(config: Downloaded, cause: str) -> str:
    published = PUBLISHED[config.name]
    files = dict.fromkeys(published.files(True) + published.files(False))
    return (
        f"the files of {config.name} were not found, and {cause}.\n"
        f"Looked in: {', '.join(str(folder) for folder in _folders(config))}\n"
        f"Put these files into {_places(config)[0] / published.folder}: "
        f"{', '.join(file + published.compressed for file in files)}\n"
        "or name the folder that holds them: dataset.root=DIR"
    )


def _download(config: Downloaded) -> None:
    """Download all files to the first of the usual places, or to `root`."""
    if not config.download:
        raise DataError(_missing(config, "dataset.download=false"))
    place = _places(config)[0]
    try:
        place.mkdir(parents=True, exist_ok=True)
        # A file appears under its own name only when it is complete, also for another run that looks for it.
        with tempfile.TemporaryDirectory(dir=place, prefix=".download-") as partial:
            with (
                _patience(),
                contextlib.redirect_stdout(sys.stderr),
                warnings.catch_warnings(action="ignore"),
            ):
                _fetch(PUBLISHED[config.name], partial)
            inner = PUBLISHED[config.name].folder
            (place / inner).mkdir(parents=True, exist_ok=True)
            for file in (Path(partial) / inner).iterdir():
                file.replace(place / inner / file.name)
    except Exception as error:  # many kinds: no network, a proxy's page, a bad checksum, a full disk
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        cause = re.sub(r"<urlopen error (\[Errno -?\d+\] )?(.*)>", r"\2", cause)
        raise DataError(_missing(config, f"the download failed ({cause})")) from error


def _fetch(published: Idx | Cifar, folder: str) -> None:
    from torchvision import datasets  # not with the module: it takes seconds
    from torchvision.datasets import utils

    reader = getattr(datasets, published.reader)
    if isinstance(published, Idx):
        reader(folder, download=True)
    else:  # CIFAR's reader would unpickle the files, with whatever is in them
        utils.download_and_extract_archive(reader.url, folder, filename=reader.filename, md5=reader.tgz_md5)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Give up on a silent network: torchvision's downloads would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# --- idx: MNIST and Fashion-MNIST ---


def _read_idx_part(folder: Path, published: Idx, train: bool) -> tuple[ArraySplit, tuple[str, ...]]:
    classes = published.classes
    image_path, label_path = (_locate(folder, file) or folder / file for file in published.files(train))
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1).long()
    if len(images) != len(labels):
        raise DataError(f"{image_path} holds {len(images)} images, but {label_path} {len(labels)} labels")
    if len(labels) == 0 or int(labels.max()) >= len(classes):
        raise DataError(f"{label_path}: expected labels from 0 to {len(classes) - 1}, for {published.reader}")
    return ArraySplit(images[:, None], labels), classes


def read_idx(path: Path, axes: int) -> Tensor:
    """Read an idx file of bytes, gzipped or not, as a uint8 tensor with so many axes.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes, each axis as a big-endian 32-bit
    number, the data. Raises DataError that names the file when it is anything else.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cannot be read ({error}): fetch it again") from error
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes([0, 0, 8, axes]):
        raise DataError(f"{path} is not an idx file of bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) != start + prod(shape):
        raise DataError(
            f"{path} is damaged: {len(content)} bytes, expected {start + prod(shape)}: fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


# --- CIFAR: pickles that Python 2 wrote ---


def _read_cifar_part(folder: Path, published: Cifar, train: bool) -> tuple[ArraySplit, tuple[str, ...]]:
    files = published.train if train else published.test
    parts = [_unpickle(folder / file, md5) for file, md5 in files.items()]
    file, md5 = published.names
    names = _unpickle(folder / file, md5)[published.names_key]
    images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    labels = torch.tensor([label for part in parts for label in part[published.labels_key]])
    return ArraySplit(torch.from_numpy(images), labels), tuple(names)


def _unpickle(path: Path, md5: str) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"{path} is not the published file (its md5 is not {md5}): fetch it again")
    # The files give dtype flags as numbers, which newer numpy calls deprecated.
    with warnings.catch_warnings(action="ignore"):
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Builds lists, dicts, strings, numbers and numpy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.ndarray(0).__reduce__()[0]
        raise DataError(f"refused to unpickle {module}.{name}")
