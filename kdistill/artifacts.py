"""The artifact store: finished results by content key, made once, never half-written, never altered.

On disk, `<root>/<kind>/<label>-<key>/` holds a finished artifact: its files and `manifest.json`, which
has a checksum for each. `<label>-<key>.partial/` is one in the making, with the checkpoint that the
next start resumes from. Making goes on under a lock, so that of two processes that want the same
artifact one makes it and the other waits and uses it.

An artifact pins the digests of what it was made from (its parents). When a parent was made anew with
other content, the child is stale: it is named and made again, never used in silence.
"""

from __future__ import annotations

import json
import logging
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdistill.errors import DamagedArtifact
from kdistill.files import load_state, save_state, sha256_of, storage_errors, sync, write_bytes, write_json

log = logging.getLogger("kdistill")

KINDS = ("teacher", "soft-targets", "student", "finetuned")
#: files of the making, gone from a finished artifact: state to resume from, and the parents it belongs to
SCAFFOLD = ("checkpoint", "origin.json")
#: what every manifest says
_ESSENTIAL = {"kind", "key", "digest", "parents", "files", "created"}


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: a folder with a manifest."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What is known of the artifact; raises `DamagedArtifact`."""
        try:
            content = json.loads((self.folder / "manifest.json").read_text())
        except ValueError:
            raise self._damaged("manifest.json", "it is not JSON") from None
        if not isinstance(content, dict) or not content.keys() >= _ESSENTIAL:
            raise self._damaged("manifest.json", "it is not a manifest")
        return content

    @property
    def is_damaged(self) -> bool:
        """Whether the manifest cannot be read; the other files are verified when they are used."""
        try:
            return not self.manifest
        except DamagedArtifact:
            return True

    # Kind and key are read from the folder's name: they are needed to remove a damaged artifact.

    @property
    def kind(self) -> str:
        return self.folder.parent.name

    @property
    def key(self) -> str:
        return self.folder.name.rpartition("-")[2]

    @property
    def digest(self) -> str:
        """Checksum of the payload: what children pin."""
        return str(self.manifest["digest"])

    @property
    def parents(self) -> dict[str, dict[str, str]]:
        """What it was made from: kind -> {"name", "digest"}."""
        return dict(self.manifest["parents"])

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    def file(self, name: str) -> Path:
        """Path of one of the files, after its size and checksum were verified; raises `DamagedArtifact`."""
        path, expected = self.folder / name, self.manifest["files"][name]
        if not path.is_file():
            raise self._damaged(name, "it is missing")
        if path.stat().st_size != expected["bytes"]:
            raise self._damaged(name, f"it has {path.stat().st_size:,} bytes, not {expected['bytes']:,}")
        if sha256_of(path) != expected["sha256"]:
            raise self._damaged(name, "its content does not match its checksum")
        return path

    def _damaged(self, name: str, problem: str) -> DamagedArtifact:
        runs = self.folder.parents[2]
        elsewhere = "" if runs == Path("runs") else f" {shlex.quote(f'runs={runs}')}"
        return DamagedArtifact(
            f"{self.folder / name} is damaged: {problem}. Remove the artifact with"
            f" `kdistill artifacts rm {self.key}{elsewhere}` and give the command again to make it anew"
        )


@dataclass
class Work:
    """An artifact in the making: a folder to write to, a checkpoint to resume from."""

    folder: Path
    payload: list[str] = field(default_factory=list)
    """Names of the files that make up the digest; the others (logs, notes) may differ from run to run."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the manifest says beyond keys and checksums: metrics, seconds, sizes."""

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


class ArtifactStore:
    """Artifacts under one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: str, key: str, parents: Mapping[str, Artifact] | None = None) -> Artifact | None:
        """The finished artifact of that key, or None.

        With `parents` given, an artifact that pins another digest of one of them is stale and not returned.
        """
        artifact = next(iter(self._folders(kind, key)), None)
        if artifact is None or self._stale(artifact, parents or {}):
            return None
        return artifact

    def obtain(
        self,
        kind: str,
        label: str,
        parts: dict[str, Any],
        key: str,
        make: Callable[[Work], None],
        *,
        parents: Mapping[str, Artifact] | None = None,
        force: bool = False,
    ) -> Artifact:
        """Return the artifact, making it with `make(work)` if it is missing or stale, or if forced.

        `label` is for the reader of the folder's name; `parts` is what the key was computed from.
        """
        parents = parents or {}
        found = None if force else self.find(kind, key, parents)
        if found is not None:
            return found
        seen = self._digest_of_existing(kind, key)
        with self._locked(kind, key):
            found = self.find(kind, key, parents)
            if found is not None and (not force or found.digest != seen):
                return found  # another process has made it while this one waited
            final = self.root / kind / f"{label}-{key}"
            with storage_errors(self.root):
                partial = _prepare_partial(final, parents)
                if not _finished(partial):  # killed just before the rename: only that is left to do
                    work = Work(partial)
                    make(work)
                    self._write_manifest(work, kind, key, parts, parents)
                self._replace(final, partial)
        return Artifact(final)

    def all(self) -> list[Artifact]:
        """Every finished artifact, in the order of the pipeline and then of time; damaged ones first."""
        found = [artifact for kind in KINDS for artifact in self._folders(kind, "")]
        return sorted(
            found, key=lambda a: (KINDS.index(a.kind), "" if a.is_damaged else a.manifest["created"])
        )

    def is_stale(self, artifact: Artifact) -> bool:
        """Whether a parent that is still there has other content than the artifact was made from."""
        names = {kind: pin["name"] for kind, pin in artifact.parents.items()}
        present = {k: Artifact(self.root / k / n) for k, n in names.items() if _finished(self.root / k / n)}
        return any(
            artifact.parents[k]["digest"] != parent.digest
            for k, parent in present.items()
            if not parent.is_damaged
        )

    def unfinished(self) -> Iterator[Path]:
        """Folders of runs that were cut off and are not being worked on now, and of replaced artifacts."""
        for kind in KINDS:
            yield from (self.root / kind).glob("*.replaced")
            for partial in (self.root / kind).glob("*.partial"):
                key = partial.name.removesuffix(".partial").rpartition("-")[2]
                lock = FileLock(self._lock_path(kind, key))
                try:
                    with lock.acquire(blocking=False):
                        yield partial
                except Timeout:
                    continue

    def _folders(self, kind: str, key: str) -> Iterator[Artifact]:
        # a folder whose name ends in the key and that holds a manifest is complete by construction
        for folder in sorted((self.root / kind).glob(f"*-{key or '*'}")):
            if not folder.name.endswith((".partial", ".replaced")) and _finished(folder):
                yield Artifact(folder)

    def _stale(self, artifact: Artifact, parents: Mapping[str, Artifact]) -> bool:
        for kind, parent in parents.items():
            pin = artifact.parents.get(kind)
            if pin is not None and pin["digest"] != parent.digest:
                log.warning(
                    "%s %s is stale: it was made from another build of %s %s (then %s, now %s)",
                    *(artifact.kind, artifact.folder.name, kind, parent.folder.name),
                    *(pin["digest"][:12], parent.digest[:12]),
                )
                return True
        return False

    def _digest_of_existing(self, kind: str, key: str) -> str | None:
        found = self.find(kind, key)
        return found.digest if found else None

    @contextmanager
    def _locked(self, kind: str, key: str) -> Iterator[None]:
        path = self._lock_path(kind, key)
        with storage_errors(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                log.info("another process is making %s %s: waiting for it", kind, key)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _lock_path(self, kind: str, key: str) -> Path:
        # outside of the artifact's folder, which is renamed and removed
        return self.root / ".locks" / f"{kind}-{key}.lock"

    def _write_manifest(
        self, work: Work, kind: str, key: str, parts: dict[str, Any], parents: Mapping[str, Artifact]
    ) -> None:
        files = sorted(p for p in work.folder.iterdir() if p.name not in (*SCAFFOLD, "manifest.json"))
        entries = {p.name: {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in files}
        for path in files:
            sync(path)
        payload = [entries[name]["sha256"] for name in sorted(work.payload)]
        manifest = {
            "kind": kind,
            "key": key,
            "digest": payload[0]
            if len(payload) == 1
            else sha256("".join(map(str, payload)).encode()).hexdigest(),
            "made_from": parts,
            "parents": _pins(parents),
            **work.about,
            "files": entries,
            "versions": versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(work.folder / "manifest.json", manifest)

    def _replace(self, final: Path, partial: Path) -> None:
        replaced = final.with_name(final.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        sync(final.parent)
        for name in SCAFFOLD:
            (final / name).unlink(missing_ok=True)
        shutil.rmtree(replaced, ignore_errors=True)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = {name: version(name) for name in ("kdistill", "torch", "torchvision", "numpy")}
    return {"python": platform.python_version(), **packages}


def _finished(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _pins(parents: Mapping[str, Artifact]) -> dict[str, dict[str, str]]:
    return {kind: {"name": parent.folder.name, "digest": parent.digest} for kind, parent in parents.items()}


def _prepare_partial(final: Path, parents: Mapping[str, Artifact]) -> Path:
    """The folder to work in; what a cut-off run left there is kept only if its parents are still the same."""
    partial = final.with_name(final.name + ".partial")
    origin, pins = partial / "origin.json", _pins(parents)
    if partial.exists() and (not origin.is_file() or json.loads(origin.read_text()) != pins):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(origin, pins)
    return partial
