"""Images without labels: a folder of them beside a data set, for a teacher to label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from kdistill.data.cache import cached
from kdistill.data.decoding import EXTENSIONS, ImageFiles, existing_folder, files_under
from kdistill.data.filesplit import FileSplit
from kdistill.data.joined import JoinedSplit
from kdistill.data.shards import read_shards, shard_images, shards_under
from kdistill.data.splits import Data, Split
from kdistill.errors import ConfigError, DataError

#: what the ids of unlabelled images begin with, so that they are not taken for labelled ones
ID_PREFIX = "unlabelled/"


def with_unlabelled(
    data: Data,
    folder: str,
    *,
    skip_corrupt: bool = False,
    workers: int = 0,
    memory_gb: float = 4.0,
    cache: str | None = None,
    index: str | None = None,
) -> Data:
    """Return the data set with all images in `folder` and below it, or in shards there, as its unlabelled split.

    They are decoded at the data set's size and channels. Their labels are -1, nan where the data set's are
    floating; their ids are their paths within `folder`. Raises DataError when there are none, ConfigError when
    images cannot be brought to what the data set has. `index`: where lists of shards are kept.
    """
    height, width = data.image_size
    if data.channels not in (1, 3) or height != width:
        raise ConfigError(
            f"dataset.unlabelled needs square images of 1 or 3 channels; the data set's are"
            f" {data.channels} x {height} x {width}"
        )
    root = existing_folder("dataset.unlabelled", folder)
    files = _images(root, height, data.channels, index)
    if not len(files):
        raise DataError(
            f"dataset.unlabelled={folder} has no images ({' '.join(EXTENSIONS)}) and no shards (.tar)"
        )
    labels = torch.full((len(files),), -1)
    split = cached(FileSplit(files, labels, skip_corrupt, workers), cache, "unlabelled")
    held, fingerprint = split.settled((), memory_gb, len(data.train) + len(data.validation) + len(files))
    if data.train.labels.is_floating_point():
        held = held.with_labels(torch.full((len(held), len(data.classes)), torch.nan))
    return replace(data, unlabelled=held, unlabelled_fingerprint=fingerprint)


def _images(root: Path, image_size: int, channels: int, index: str | None) -> ImageFiles:
    names = [
        Path(path).relative_to(root).as_posix() for path in sorted(str(path) for path in files_under(root))
    ]
    if names:
        return ImageFiles(str(root), names, image_size, channels)
    tars = shards_under(root)
    return shard_images(root, tars, read_shards(root, tars, None, index), image_size, channels)


def transfer(data: Data) -> Split:
    """Return what a teacher's knowledge is passed on with: the training split, then the unlabelled images.

    Positions of training samples are the same as in `data.train`; ids of unlabelled images begin with
    `unlabelled/`.
    """
    if data.unlabelled is None:
        return data.train
    return JoinedSplit((data.train, data.unlabelled), ("", ID_PREFIX))
