"""Trained networks in files of other formats: a module for each, which writes the file and runs it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from kdistill.exports import onnx_file
from kdistill.interface import Interface


class Exported(Protocol):
    """A network in its exported file, at work."""

    @property
    def interface(self) -> Interface: ...

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs `[N, K]`, float32, of what the interface says, any N."""
        ...


@dataclass(frozen=True)
class Format:
    """A file format. `file`: what the file is called; its suffix is what it is recognised by.

    `check` raises `ConfigError` where a package is missing; `versions` are those of the packages. `write` takes a
    network, its interface, what else the file should say, and a path; `read` raises `ModelError`.
    """

    file: str
    check: Callable[[], None]
    versions: Callable[[], dict[str, str]]
    write: Callable[[nn.Module, Interface, Mapping[str, str], Path], None]
    read: Callable[[Path], Exported]


FORMATS = {
    "onnx": Format(
        file="model.onnx",
        check=onnx_file.check,
        versions=onnx_file.versions,
        write=onnx_file.write,
        read=onnx_file.OnnxNetwork,
    ),
}
