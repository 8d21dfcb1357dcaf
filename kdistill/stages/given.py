"""What the user brings along: files of weights, folders of networks, files of outputs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from kdistill.artifacts import Artifact
from kdistill.config.models import kind_of
from kdistill.config.schema import Model
from kdistill.errors import ModelError, did_you_mean
from kdistill.files import sha256_of

Role = Literal["teacher", "student"]


def content_of(section: Model, role: Role) -> str | None:
    """Checksum of what a section's `weights` names; None where it names nothing. Raises `ModelError`."""
    if section.weights is None or section.weights == "DEFAULT":
        return None
    kind = kind_of(section.name)
    if kind == "folder":
        return _content(Artifact(existing(section.weights, "folder", "teacher.weights")))
    what: Literal["outputs", "weights"] = "outputs" if kind == "file" else "weights"
    return sha256_of(existing(section.weights, what, f"{role}.weights"))


def _content(artifact: Artifact) -> str:
    """Checksum of a network's weights and of what else decides about its outputs: normalisation, classes."""
    files = artifact.manifest["files"]
    both = [files[name]["sha256"] for name in ("model.safetensors", "model.json") if name in files]
    return hashlib.sha256(" ".join([artifact.digest, *both]).encode()).hexdigest()


_EXPECTED = {
    "model": "a file of weights (safetensors, or a state dict), or the folder of a trained network",
    "folder": "the folder of a trained network, such as runs/artifacts/teacher/NAME",
    "outputs": "a file of the teacher's outputs (.csv, .npy, .npz or .safetensors)",
    "weights": "a file of weights (safetensors, or a state dict), DEFAULT or null",
}


def existing(name: str, what: Literal["folder", "outputs", "weights", "model"], setting: str) -> Path:
    """The path that a setting names; raises `ModelError` with near matches where there is none."""
    path = Path(name).expanduser()
    kind = "folder" if what == "folder" or (what == "model" and path.is_dir()) else "file"
    if (path / "manifest.json").is_file() if kind == "folder" else path.is_file():
        return path
    if kind == "folder" and path.is_dir():
        problem = "there is no manifest.json in it."
    elif path.exists():
        problem = f"this is a {'folder' if path.is_dir() else 'file'}."
    else:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        problem = f"there is no such {kind}.{did_you_mean(path.name, beside)}"
    raise ModelError(f"{setting}={name}: {problem} Expected {_EXPECTED[what]}")
