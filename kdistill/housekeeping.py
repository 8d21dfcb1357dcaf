"""`kdistill artifacts`: list them, remove some with all that was made from them, clear what is left over."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.markup import escape

from kdistill.artifacts import Artifact, ArtifactStore
from kdistill.console import out
from kdistill.errors import UserError, did_you_mean
from kdistill.records import Table

USAGE = """\
kdistill artifacts [list] [runs=DIR]            what there is
kdistill artifacts rm KEY... [--yes] [runs=DIR] remove artifacts and all that was made from them
kdistill artifacts gc [--yes] [runs=DIR]        remove cut-off runs and stale artifacts"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = argparse.Namespace(yes=False, runs="runs", words=[])
    for word in argv:
        if word in ("--yes", "-y"):
            options.yes = True
        elif word.startswith("runs="):
            options.runs = word.removeprefix("runs=")
        elif word in ("-h", "--help"):
            out.print(USAGE, markup=False, highlight=False)
            return 0
        elif word.startswith("-"):
            raise UserError(f"unknown option {word!r}.{did_you_mean(word, ['--yes', '--help'])}\n{USAGE}")
        else:
            options.words.append(word)
    action, *keys = options.words or ["list"]
    store = ArtifactStore(Path(options.runs) / "artifacts")
    if action == "list" and not keys:
        return _list(store)
    if action == "rm" and keys:
        return _remove(store, _with_dependants(store, [_lookup(store, key) for key in keys]), options.yes)
    if action == "gc" and not keys:
        stale = [a for a in store.all() if store.is_stale(a)]
        return _remove(store, _with_dependants(store, stale), options.yes, extra=list(store.unfinished()))
    raise UserError(
        f"cannot read 'artifacts {' '.join(options.words)}'.{did_you_mean(action, ['list', 'rm', 'gc'])}\n{USAGE}"
    )


def _list(store: ArtifactStore) -> int:
    artifacts = store.all()
    if not artifacts:
        out.print(f"no artifacts in {store.root}. `kdistill run` makes some", markup=False, highlight=False)
        return 0
    rows: list[list[object]] = [
        [
            artifact.kind,
            artifact.folder.name,
            _score(artifact),
            f"{artifact.bytes / 1e6:,.2f}",
            artifact.manifest["created"][:16].replace("T", " "),
            "stale" if store.is_stale(artifact) else "",
        ]
        for artifact in artifacts
    ]
    columns = ["kind", "artifact", "validation %", "MB", "made", ""]
    out.print(Table(f"artifacts in {store.root}", columns, rows).rich(), crop=False)
    return 0


def _remove(store: ArtifactStore, artifacts: list[Artifact], sure: bool, extra: Sequence[Path] = ()) -> int:
    """Show what goes and how much disk it frees, ask, remove: children before their parents."""
    folders = [a.folder for a in artifacts] + list(extra)
    if not folders:
        out.print("nothing to remove")
        return 0
    total = 0
    for folder in folders:
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        total += size
        out.print(f"{size / 1e6:10,.2f} MB  {escape(str(folder))}", highlight=False, soft_wrap=True)
    out.print(f"{total / 1e6:10,.2f} MB  in all", highlight=False)
    if not sure and not _confirmed():
        out.print("nothing removed")
        return 0
    for folder in reversed(folders):
        shutil.rmtree(folder)
    out.print(f"removed {len(folders)} folders")
    return 0


def _confirmed() -> bool:
    if not sys.stdin or not sys.stdin.isatty():
        raise UserError("there is nobody to ask: add --yes to remove these")
    return out.input("remove? [y/N] ").strip().lower() in ("y", "yes")


def _lookup(store: ArtifactStore, key: str) -> Artifact:
    artifacts = store.all()
    found = [a for a in artifacts if key in (a.key, a.folder.name)]
    if not found:
        names = [a.key for a in artifacts] + [a.folder.name for a in artifacts]
        raise UserError(
            f"no artifact {key!r} in {store.root}.{did_you_mean(key, names)} `kdistill artifacts list` shows all"
        )
    return found[0]


def _with_dependants(store: ArtifactStore, artifacts: Iterable[Artifact]) -> list[Artifact]:
    """The artifacts and everything that was made from them, parents first."""
    chosen = {(a.kind, a.folder.name) for a in artifacts}
    everything = store.all()  # parents come before their children
    for artifact in everything:
        if any((kind, pin["name"]) in chosen for kind, pin in artifact.parents.items()):
            chosen.add((artifact.kind, artifact.folder.name))
    return [a for a in everything if (a.kind, a.folder.name) in chosen]


def _score(artifact: Artifact) -> str:
    scores = artifact.manifest.get("validation")
    return f"{100 * scores['top1']:.2f}" if scores else "-"
