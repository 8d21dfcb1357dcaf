"""The artifact store: finished results by content key, made once, never half-written, never altered.

On disk, `<root>/<kind>/<label>-<key>/` holds a finished artifact: its files and `manifest.json`, which
has a checksum for each; beside it may lie files about it, `<label>-<key>.NAME`. `<label>-<key>.partial/`
is one in the making, with the checkpoint that the next start resumes from. Making goes on under a lock, so
that of two processes that want the same artifact one makes it and the other waits and uses it.

An artifact pins the digests of what it was made from (its parents). When a parent was made anew with
other content, the child is stale: it is named and made again, never used in silence.

The steps of making, each safe against a kill, are in `kdistill.partial`.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdistill import ranks
from kdistill.errors import DamagedArtifact
from kdistill.files import locked, sha256_of, storage_errors
from kdistill.partial import Work, assist, build, discard, finished, versions
from kdistill.resources import return_freed_memory

log = logging.getLogger("kdistill")

KINDS = ("teacher", "soft-targets", "student", "finetuned", "predictions", "export")
#: what every manifest says
_ESSENTIAL = {"kind", "key", "digest", "parents", "files", "created"}
#: (root, kind, key) of what this process has made by force: the jobs of a sweep share it, each once
_forced: set[tuple[Path, str, str]] = set()


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: a folder with a manifest."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What is known of the artifact; raises `DamagedArtifact`."""
        try:
            content = json.loads((self.folder / "manifest.json").read_text())
        except FileNotFoundError:
            raise DamagedArtifact(
                f"{self.folder} is not a finished artifact: there is no manifest.json in it"
            ) from None
        except ValueError:
            raise self._damaged("manifest.json", "it is not JSON") from None
        if not isinstance(content, dict) or not content.keys() >= _ESSENTIAL:
            raise self._damaged("manifest.json", "it is not a manifest")
        return content

    @property
    def is_damaged(self) -> bool:
        """Whether the manifest cannot be read, or a file is missing or has another size.

        Checksums take time: they are compared when a file is used.
        """
        try:
            for name in self.manifest["files"]:
                self._of_right_size(name)
        except DamagedArtifact:
            return True
        return False

    # Kind and key are read from the folder's name: they are needed to remove a damaged artifact.

    @property
    def kind(self) -> str:
        return self.folder.parent.name

    @property
    def key(self) -> str:
        return _key_in(self.folder)

    @property
    def digest(self) -> str:
        """Checksum of the payload: what children pin."""
        return str(self.manifest["digest"])

    @property
    def parents(self) -> dict[str, dict[str, str]]:
        """What it was made from: role -> {"name", "digest", "kind"}; the role is mostly the kind."""
        return dict(self.manifest["parents"])

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    @property
    def payload_bytes(self) -> int:
        """Size of the file that `digest` is the checksum of."""
        entries = self.manifest["files"].values()
        return next((entry["bytes"] for entry in entries if entry["sha256"] == self.digest), 0)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Metrics after each epoch of its training; none of what was not trained."""
        file = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def beside(self, name: str) -> Path:
        """Where a file about the artifact lies that is no part of it; it goes when the artifact does."""
        return self.folder.with_name(f"{self.folder.name}.{name}")

    def file(self, name: str) -> Path:
        """Path of one of the files, after its size and checksum were verified; raises `DamagedArtifact`."""
        path = self._of_right_size(name)
        if sha256_of(path) != self.manifest["files"][name]["sha256"]:
            raise self._damaged(name, "its content does not match its checksum")
        return path

    def _of_right_size(self, name: str) -> Path:
        path, expected = self.folder / name, self.manifest["files"][name]["bytes"]
        if not path.is_file():
            raise self._damaged(name, "it is missing")
        if path.stat().st_size != expected:
            raise self._damaged(name, f"it has {path.stat().st_size:,} bytes, not {expected:,}")
        return path

    def _damaged(self, name: str, problem: str) -> DamagedArtifact:
        place = Artifact(self.folder.resolve())
        store = place.folder.parent.parent
        advice = ""
        if place.kind in KINDS and store.name == "artifacts":  # not a copy somewhere else
            runs = store.parent
            elsewhere = "" if runs == Path("runs").resolve() else f" {shlex.quote(f'runs={runs}')}"
            advice = (
                f". Remove the artifact with `kdistill artifacts rm {place.key}{elsewhere}`"
                " and give the command again to make it anew"
            )
        return DamagedArtifact(f"{self.folder / name} is damaged: {problem}{advice}")


class ArtifactStore:
    """Artifacts under one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: str, key: str, parents: Mapping[str, Artifact] | None = None) -> Artifact | None:
        """The finished artifact of that key, or None.

        With `parents` given, an artifact that pins another digest of one of them is stale and not returned.
        """
        artifact = next(self._folders(kind, key), None)
        if artifact is None or not parents:
            return artifact
        for name in _rebuilt(artifact, parents):
            log.warning(
                "%s %s is stale: it was made from another build of %s %s (then %s, now %s)",
                *(kind, artifact.folder.name, name, parents[name].folder.name),
                *(artifact.parents[name]["digest"][:12], parents[name].digest[:12]),
            )
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
        together: bool = False,
    ) -> Artifact:
        """Return the artifact, making it with `make(work)` if it is missing or stale, or if forced.

        `label` is for the reader of the folder's name; `parts` is what the key was computed from. `force`
        makes it anew once per process: the jobs of a sweep that need the same teacher share the new one.
        Of several ranks all call this. The main one makes the artifact, alone or, with `together`, with all
        others calling `make`, too.
        """
        parents = parents or {}
        place = (self.root.resolve(), kind, key)
        force = force and place not in _forced
        found = None if force else self.find(kind, key, parents)
        if not ranks.agree(found is None):
            assert found is not None
            return found
        if not ranks.is_main():
            assist(self.root / kind / f"{label}-{key}", make if together else None)
            return Artifact(self.root / kind / f"{label}-{key}")
        seen = self._digest(kind, key)
        with locked(self._lock_path(kind, key), f"{kind} {key}"):
            # another process may have made it while this one waited
            waited = not force or self._digest(kind, key) != seen
            artifact = self.find(kind, key, parents) if waited else None
            if artifact is None:
                artifact = Artifact(self.root / kind / f"{label}-{key}")
                with storage_errors(self.root):
                    what = {"kind": kind, "key": key, "made_from": parts}
                    build(artifact.folder, what, make, {"parents": _pins(parents), "versions": versions()})
                    _clear_beside(artifact.folder)
            else:
                ranks.decided(False)  # nobody makes it
        ranks.barrier()
        return_freed_memory()
        if force:
            _forced.add(place)
        return artifact

    def all(self) -> list[Artifact]:
        """Every finished artifact, in the order of the pipeline and then of time; damaged ones first."""
        found = [artifact for kind in KINDS for artifact in self._folders(kind, "")]
        return sorted(
            found, key=lambda a: (KINDS.index(a.kind), "" if a.is_damaged else a.manifest["created"])
        )

    def is_stale(self, artifact: Artifact) -> bool:
        """Whether a parent has other content than the artifact was made from, or is stale itself.

        A parent that is gone or damaged says nothing.
        """
        folders = {
            role: self.root / kind_of(role, pin) / pin["name"] for role, pin in artifact.parents.items()
        }
        present = {r: p for r, folder in folders.items() if not (p := Artifact(folder)).is_damaged}
        return bool(_rebuilt(artifact, present)) or any(map(self.is_stale, present.values()))

    def is_begun(self, kind: str, key: str) -> bool:
        """Whether a run of that key was cut off, or is at work: its files are there in part."""
        return any((self.root / kind).glob(f"*-{key}.partial"))

    def unfinished(self) -> Iterator[Path]:
        """Folders of runs that were cut off and are not being worked on now, and of replaced artifacts.

        A complete `.partial` is not among them: the next command gives it its name.
        """
        for kind in KINDS:
            for folder in sorted((self.root / kind).glob("*.*")):
                if folder.suffix == ".replaced" or (folder.suffix == ".partial" and not finished(folder)):
                    with self._free(folder) as free:
                        if free:
                            yield folder

    def remove(self, folder: Path) -> bool:
        """Remove one of the store's folders; False if it was left alone, as a process is at work on it."""
        with self._free(folder) as free:
            if free and folder.exists():
                discard(folder)
                _clear_beside(folder)
        return free

    def abandon(self, kind: str, key: str) -> None:
        """Remove what there is of a run of that key that was begun, unless a process is at work on it."""
        for folder in (self.root / kind).glob(f"*-{key}.partial"):
            self.remove(folder)

    def _folders(self, kind: str, key: str) -> Iterator[Artifact]:
        # a folder whose name ends in the key and that holds a manifest is complete by construction
        for folder in sorted((self.root / kind).glob(f"*-{key or '*'}")):
            if not folder.name.endswith((".partial", ".replaced")) and finished(folder):
                yield Artifact(folder)

    def _digest(self, kind: str, key: str) -> str | None:
        """Digest of what is there now, stale or not; None also when its manifest is damaged."""
        found = self.find(kind, key)
        try:
            return found.digest if found else None
        except DamagedArtifact:
            return None

    @contextmanager
    def _free(self, folder: Path) -> Iterator[bool]:
        """Hold the folder's lock if no process has it; whether it is held."""
        path = self._lock_path(folder.parent.name, _key_in(folder))
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _lock_path(self, kind: str, key: str) -> Path:
        # outside of the artifact's folder, which is renamed and removed
        return self.root / ".locks" / f"{kind}-{key}.lock"


def _key_in(folder: Path) -> str:
    return folder.name.removesuffix(".replaced").removesuffix(".partial").rpartition("-")[2]


def _clear_beside(folder: Path) -> None:
    """Remove the files that `Artifact.beside` names."""
    for path in folder.parent.glob(f"{folder.name}.*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def kind_of(role: str, pin: Mapping[str, str]) -> str:
    """The kind of a parent: a student may have the role of a teacher."""
    return pin.get("kind", role)


def _pins(parents: Mapping[str, Artifact]) -> dict[str, dict[str, str]]:
    return {
        role: {"name": parent.folder.name, "digest": parent.digest, "kind": parent.kind}
        for role, parent in parents.items()
    }


def _rebuilt(artifact: Artifact, parents: Mapping[str, Artifact]) -> list[str]:
    """Roles of the parents that have other content than the artifact was made from."""
    pins = artifact.parents
    return [role for role, p in parents.items() if role in pins and pins[role]["digest"] != p.digest]
