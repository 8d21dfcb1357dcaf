"""Image files: found in folders, and decoded by position, in this process or in workers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from kdistill.errors import DataError, did_you_mean

#: what image files' names end in; torchvision's list, whose import takes seconds
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

#: positions of images that decoded, their pixels (uint8 `[N, C, H, W]`), and positions and causes of the others
Decoded = tuple[list[int], Tensor, list[tuple[int, str]]]


def existing_folder(setting: str, name: str) -> Path:
    """Return the folder that a setting names; raises DataError with the nearest match when there is none."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
        near = did_you_mean(folder.name, sorted(path.name for path in beside if path.is_dir()))
        raise DataError(f"{setting}={name}: there is no such folder.{near}")
    return folder


def files_under(folder: Path, endings: Sequence[str] = EXTENSIONS) -> Iterator[Path]:
    """Yield the files in `folder` and below it with these endings, hidden ones left out, in no particular order."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in endings:
                yield Path(parent, name)


def decode(source: str | BytesIO, image_size: int, channels: int) -> Tensor:
    """Return an image as uint8 `[channels, image_size, image_size]`: its central square, resized.

    `source`: a file's path, or its content. Turned upright as its EXIF says; transparent parts become white;
    16-bit grey keeps its upper 8 bits. Resizing is bilinear with antialiasing. Raises whatever Pillow raises for a
    damaged file.
    """
    with Image.open(source) as opened:
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


def state_of(path: Path) -> tuple[int, ...]:
    """Return a file's size and times of change."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


@dataclass(frozen=True)
class ImageFiles(Dataset[Decoded]):
    """Decodes by position the files `names`, relative to `root`, to one size and number of channels."""

    root: str
    names: Sequence[str]
    image_size: int
    channels: int

    def path(self, index: int) -> Path:
        return Path(self.root, self.names[index])

    def __len__(self) -> int:
        return len(self.names)

    def __getitems__(self, positions: Sequence[int]) -> Decoded:
        """Decode the files at these positions.

        A failure is returned as text: a worker's exception would lose its form.
        """
        good: list[int] = []
        bad: list[tuple[int, str]] = []
        images = torch.empty(len(positions), *self.image_shape, dtype=torch.uint8)
        for index in positions:
            try:
                images[len(good)] = self.decoded(index)
                good.append(index)
            except Exception as error:  # Pillow's plugins raise almost anything for a damaged file
                cause = str(error).replace(f" {str(self.path(index))!r}", "")
                bad.append((index, cause or type(error).__name__))
        return good, images[: len(good)], bad

    def decoded(self, index: int) -> Tensor:
        """Return the pixels of one file; raises what `decode` raises."""
        return decode(str(self.path(index)), self.image_size, self.channels)

    def size(self, index: int) -> int:
        """Return the bytes of a file; 0 for one that is gone."""
        path = self.path(index)
        return path.stat().st_size if path.exists() else 0

    def content(self, index: int) -> bytes:
        """Return a file as it is; nothing for one that is gone."""
        path = self.path(index)
        return path.read_bytes() if path.exists() else b""

    def state(self, index: int) -> tuple[int, ...]:
        """Return what differs once a file was changed: its size and times of change; () for one that is gone."""
        with contextlib.suppress(OSError):
            return state_of(self.path(index))
        return ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size

    def select(self, indices: Tensor) -> ImageFiles:
        """Return the files at these positions (int64 `[m]`), in this order."""
        return replace(self, names=[self.names[i] for i in indices.tolist()])
