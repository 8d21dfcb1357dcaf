"""An artifact in the making: its folder, its checkpoint, and the steps that finish it, each safe against a kill.

`<label>-<key>.partial/` becomes `<label>-<key>/` by one rename, after its manifest is written; a folder on
its way out is first renamed to `.replaced`. So whatever is cut off, no half folder has a whole one's name.
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdistill import launch, ranks
from kdistill.files import load_state, save_state, sha256_of, sync, write_bytes, write_json

log = logging.getLogger("kdistill")

#: files that a kill has left half written
HALF = "*.new"
#: files of the making, gone from a finished artifact: states to resume from, the parents it belongs to, half files
SCAFFOLD = ("checkpoint*", "origin.json", HALF)


@dataclass
class Work:
    """An artifact in the making: a folder to write to, a checkpoint to resume from."""

    folder: Path
    payload: str = ""
    """Name of the file whose checksum is the digest, to be set; others (logs, notes) may differ between runs."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the manifest says beyond keys and checksums: metrics, seconds, sizes."""

    @property
    def shared(self) -> Path:
        """The main rank's folder, for files that all ranks write to."""
        return self.folder

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state that a killed run left behind; None when there is none, or it is damaged."""
        path = self.folder / "checkpoint"
        state = load_state(path)
        if state is None and path.exists():
            log.warning("%s is damaged: starting over", path)
        return state

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        save_state(self.folder / "checkpoint", state)

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        write_bytes(self.folder / name, "".join(json.dumps(row) + "\n" for row in rows).encode())


@dataclass
class Assistance(Work):
    """What a rank that is not the main one works in: it goes on from the same state, and what it writes into `folder`
    is thrown away."""

    source: Path = Path()
    """The main rank's folder."""

    @property
    def shared(self) -> Path:
        return self.source

    def load_checkpoint(self) -> dict[str, Any] | None:
        return Work(self.source).load_checkpoint()

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        pass


def build(final: Path, what: dict[str, Any], make: Callable[[Work], None], origin: dict[str, Any]) -> None:
    """Make an artifact, or go on with making it. `what` and `origin` go into its manifest."""
    partial = prepare_partial(final, origin)
    if ranks.decided(not finished(partial)):  # else killed just before the rename: only that is left to do
        work = Work(partial)
        make(work)
        write_manifest(work, what, origin)
    replace(final, partial)


def assist(final: Path, make: Callable[[Work], None] | None) -> None:
    """Take part, as another rank, in what the main one builds, and wait for it."""
    with launch.scratch() as folder:
        if ranks.decided(False) and make:
            make(Assistance(Path(folder), source=_partial_of(final)))
    ranks.barrier()


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = {name: version(name) for name in ("kdistill", "torch", "torchvision", "numpy")}
    return {"python": platform.python_version(), **packages}


def finished(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def prepare_partial(final: Path, origin: dict[str, Any]) -> Path:
    """The folder to work in; what a cut-off run left there is kept only if it has the same origin."""
    partial = _partial_of(final)
    if partial.exists() and (reason := _other_origin(partial, origin)):
        log.warning("%s starts over: %s", partial, reason)
        discard(partial)
    if not finished(partial):
        partial.mkdir(parents=True, exist_ok=True)
        for path in partial.glob(HALF):  # a kill has left it, and a checkpoint may be large
            path.unlink()
        write_json(partial / "origin.json", origin)
    return partial


def _partial_of(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


def _other_origin(partial: Path, origin: dict[str, Any]) -> str:
    """Why a cut-off run cannot be gone on with: other parents or versions; empty if it can."""
    try:
        name = "manifest.json" if finished(partial) else "origin.json"
        begun = json.loads((partial / name).read_text())
        parents, then = begun["parents"], begun["versions"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "it does not say what it was begun from"
    if parents != origin["parents"]:
        return "what it was begun from has been made anew"
    changed = [f"{k} {then.get(k)}, now {v}" for k, v in origin["versions"].items() if then.get(k) != v]
    return f"it was begun with {'; '.join(changed)}" if changed else ""


def write_manifest(work: Work, what: dict[str, Any], origin: dict[str, Any]) -> None:
    assert work.payload, "make(work) must set work.payload"
    files = sorted({*work.folder.iterdir()} - {work.folder / "manifest.json", *_scaffold(work.folder)})
    entries = {p.name: {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in files}
    for path in files:
        sync(path)
    manifest = {
        **what,
        "digest": entries[work.payload]["sha256"],
        **work.about,
        **origin,
        "files": entries,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(work.folder / "manifest.json", manifest)


def replace(final: Path, partial: Path) -> None:
    """Give a complete folder its name, with nothing in it but what the manifest lists."""
    for path in _scaffold(partial):
        path.unlink()
    replaced = set_aside(final)
    partial.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _scaffold(folder: Path) -> set[Path]:
    return {path for pattern in SCAFFOLD for path in folder.glob(pattern)}


def set_aside(folder: Path) -> Path:
    aside = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    return aside


def discard(folder: Path) -> None:
    shutil.rmtree(folder if folder.suffix == ".replaced" else set_aside(folder))
