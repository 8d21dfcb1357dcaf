"""Stages of a config, and what they have made."""

import json
from pathlib import Path

import torch

from kdistill import load_network
from kdistill.config.schema import Config, Stage
from kdistill.files import sha256_of
from kdistill.models import save_weights
from kdistill.stages import run_stage


def at_stage(config: Config, stage: Stage) -> Config:
    return config.model_copy(update={"stage": stage})


def folders_of(config: Config, kind: str) -> list[Path]:
    return sorted(p for p in (Path(config.runs) / "artifacts" / kind).glob("*") if p.is_dir())


def made(config: Config, kind: str) -> list[str]:
    return [folder.name for folder in folders_of(config, kind)]


def rebuild(folder: Path) -> None:
    """What a rebuild with other library versions does: other weights, and a manifest that fits them."""
    network = load_network(folder)
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    path = folder / "model.safetensors"
    save_weights(network.net, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    manifest["files"][path.name] |= entry
    manifest["digest"] = entry["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def train_all(config: Config) -> None:
    """`kdistill train-teacher`: every member."""
    run_stage(at_stage(config, "train-teacher"))


def one(runs: Path, pattern: str) -> Path:
    (found,) = (runs / "artifacts").glob(pattern)
    return found
