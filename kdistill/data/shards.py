"""Shards: tar files of images in the WebDataset format, each image read by itself from where it begins.

A sample is the members with the same name up to its first dot: `KEY.jpg`, `KEY.cls`. An uncompressed tar holds
every member as it is, so a list of offsets and sizes is enough to read images in any order and by any process.
Making that list reads the whole tar's headers: it is kept for the next time.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from kdistill.data.decoding import EXTENSIONS, ImageFiles, decode, files_under, state_of
from kdistill.errors import DataError, did_you_mean
from kdistill.files import load_state, locked, save_state, storage_errors
from kdistill.records import Progress

#: raised when the list of a shard holds something else
_FORMAT = 1
_BLOCK = 512  # of a tar, in bytes
#: key and ending of a member; others, such as hidden files, belong to no sample
_MEMBER = re.compile(r"(?:\./)?((?:.*/)?[^/.]+)\.([^/]+)")
#: how compressed files begin
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Shard:
    """The samples of a tar file.

    `names`: of their images, within the tar; `offsets` and `sizes`: where each image begins, and its bytes;
    `labels`: as text; empty where none were asked for.
    """

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[str]


@dataclass(frozen=True, eq=False)
class ShardImages(ImageFiles):
    """Images in tar files. Their names are those of folders with the tars' names.

    `states`: `state_of` each tar; `members`: each image's tar, offset and size, int64 `[n, 3]`; `tars`: their names.
    """

    tars: Sequence[str]
    states: Sequence[tuple[int, ...]]
    members: Tensor

    def decoded(self, index: int) -> Tensor:
        try:
            return decode(BytesIO(self.content(index)), self.image_size, self.channels)
        except UnidentifiedImageError:  # whose text names an object in memory
            raise ValueError("cannot identify image file") from None

    def size(self, index: int) -> int:
        return int(self.members[index, 2])

    def content(self, index: int) -> bytes:
        tar, offset, size = self.members[index].tolist()
        with Path(self.root, self.tars[tar]).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def state(self, index: int) -> tuple[int, ...]:
        tar, offset, size = self.members[index].tolist()
        return (*self.states[tar], offset, size)

    def select(self, indices: Tensor) -> ShardImages:
        names = [self.names[i] for i in indices.tolist()]
        return replace(self, names=names, members=self.members[indices])


def shards_under(folder: Path) -> list[str]:
    """Return the paths within `folder` of the tar files in it and below it, in alphabetical order."""
    return sorted(path.relative_to(folder).as_posix() for path in files_under(folder, (".tar",)))


def shard_images(
    root: Path, tars: Sequence[str], shards: Sequence[Shard], image_size: int, channels: int
) -> ShardImages:
    """Return the images of `shards`, which were read from the files `tars` in `root`, in their order."""
    pairs = list(zip(tars, shards, strict=True))
    names = [f"{tar}/{name}" for tar, shard in pairs for name in shard.names]
    rows = [
        (number, offset, size)
        for number, shard in enumerate(shards)
        for offset, size in zip(shard.offsets, shard.sizes, strict=True)
    ]
    states = [state_of(root / tar) for tar in tars]
    members = torch.tensor(rows, dtype=torch.int64).view(-1, 3)
    return ShardImages(str(root), names, image_size, channels, tars, states, members)


def read_shards(root: Path, tars: Sequence[str], label: str | None, index: str | None) -> list[Shard]:
    """Return what is in the files `tars` of `root`, from the lists in the folder `index` where it was read before.

    `label`: the ending of the member that holds a sample's label, `json.FIELD` for a field of a JSON member; None:
    labels are not read. A file is read again once its size or time has changed. Raises DataError for a tar that is
    compressed, damaged or cut off, a sample without label or image, and a member that is there twice.
    """
    if index is None:
        return [_scan(root / tar, label) for tar in tars]
    shards: list[Shard] = []
    with (
        locked(Path(index) / "lock", f"the lists of the shards in {root}"),
        Progress("listing shards", len(tars)) as bar,
    ):
        for tar in tars:
            shards.append(_listed(root / tar, label, Path(index)))
            bar.advance(len(shards[-1].names), lambda: "")
    return shards


def _listed(path: Path, label: str | None, index: Path) -> Shard:
    """What is in a tar: from its list, which is made if need be."""
    digest = hashlib.sha256(f"{path.resolve()}\n{label}".encode()).hexdigest()[:12]
    file = index / f"{path.stem}-{digest}"
    made_from = [_FORMAT, *state_of(path)]
    found = load_state(file)
    if found is not None and found["made_from"] == made_from:
        return Shard(**json.loads(found["shard"]))
    shard = _scan(path, label)
    with storage_errors(index):
        save_state(file, {"made_from": made_from, "shard": json.dumps(asdict(shard))})
    return shard


# --- what is in a tar ---


@dataclass
class _Sample:
    images: dict[str, tuple[int, int]]  # ending -> offset and size
    endings: list[str]
    label: bytes | None = None


def _scan(path: Path, label: str | None) -> Shard:
    try:
        with path.open("rb") as file:
            _refuse_compressed(path, file.read(8))
            samples = _samples(path, file, label)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    shard = Shard([], [], [], [])
    for key, sample in samples.items():
        if not sample.images and sample.label is None:
            continue  # no sample, but a file such as README.txt
        if len(sample.images) != 1:
            has = " ".join(f"{key}.{ending}" for ending in sample.endings)
            what = "several images" if sample.images else f"no image ({' '.join(EXTENSIONS)})"
            raise DataError(f"{path}: sample {key} has {what}; its members: {has}")
        ((ending, (offset, size)),) = sample.images.items()
        shard.names.append(f"{key}.{ending}")
        shard.offsets.append(offset)
        shard.sizes.append(size)
        if label is not None:
            shard.labels.append(_label(path, key, sample, label))
    return shard


def _samples(path: Path, file: BinaryIO, label: str | None) -> dict[str, _Sample]:
    """By key, in the order of the tar."""
    holds_label = label.partition(".")[0] if label else None
    samples: dict[str, _Sample] = {}
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it grows by a kilobyte with each
                named = _MEMBER.fullmatch(member.name)
                if not member.isreg() or named is None:
                    continue
                key, ending = named.groups()
                sample = samples.setdefault(key, _Sample({}, []))
                if ending in sample.endings:
                    raise DataError(f"{path}: {member.name} is in it twice, but a key stands for one sample")
                sample.endings.append(ending)
                if f".{ending.lower()}" in EXTENSIONS:
                    sample.images[ending] = member.offset_data, member.size
                if ending.lower() == holds_label:
                    file.seek(member.offset_data)
                    sample.label = file.read(member.size)
            file.seek(tar.offset)
    except tarfile.TarError as error:
        raise DataError(f"{path} is no tar file, or a damaged one ({error})") from error
    if file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes an unreadable header for the end
        raise DataError(
            f"{path} is damaged or cut off after {len(samples):,} samples: no tar's end is where it should be;"
            " copy or write it again"
        )
    return samples


def _refuse_compressed(path: Path, start: bytes) -> None:
    for beginning, name in _COMPRESSED.items():
        if start.startswith(beginning):
            raise DataError(
                f"{path} is compressed ({name}), and images are read from the middle of a tar: uncompress it"
            )


def _label(path: Path, key: str, sample: _Sample, label: str) -> str:
    """The label's text, without white space around it."""
    ending, _, field = label.partition(".")
    if sample.label is None:
        raise DataError(
            f"{path}: sample {key} has no label {key}.{ending}; its members:"
            f" {' '.join(f'{key}.{there}' for there in sample.endings)}. dataset.label says where labels are"
        )
    try:
        text = sample.label.decode()
        value = _field(json.loads(text), field) if field else text.strip()
    except ValueError as error:
        raise DataError(f"{path}: {key}.{ending} cannot be read ({error})") from error
    if not value:
        raise DataError(f"{path}: {key}.{ending} holds no label")
    return value


def _field(content: object, field: str) -> str:
    if not isinstance(content, Mapping):
        raise ValueError(f"no field {field!r}: it is no object")
    if field not in content:
        raise ValueError(
            f"no field {field!r}: it has {', '.join(content) or 'none'}.{did_you_mean(field, content)}"
        )
    value = content[field]
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{field}={json.dumps(value)} is neither a whole number nor text")
    return str(value).strip()
