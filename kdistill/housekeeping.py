"""`kdistill artifacts`: list them, remove some with all that was made from them, clear what is left over."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdistill.artifacts import Artifact, ArtifactStore, kind_of
from kdistill.console import say, show_table
from kdistill.errors import DamagedArtifact, UserError, did_you_mean
from kdistill.files import storage_errors
from kdistill.records import Table

USAGE = """\
kdistill artifacts [list] [runs=DIR]            what there is
kdistill artifacts rm KEY... [--yes] [runs=DIR] remove artifacts and all that was made from them
kdistill artifacts gc [--yes] [runs=DIR]        remove cut-off runs, stale and damaged artifacts"""
ACTIONS = ("list", "rm", "gc")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = argparse.Namespace(yes=False, runs="runs", words=[])
    for word in argv:
        if word in ("--yes", "-y"):
            options.yes = True
        elif word.startswith("runs="):
            options.runs = word.removeprefix("runs=")
        elif word in ("-h", "--help"):
            say(USAGE)
            return 0
        elif word.startswith("-") or "=" in word:
            name = word.partition("=")[0]
            raise UserError(
                f"unknown option {word!r}.{did_you_mean(name, ['--yes', '--help', 'runs'])}\n{USAGE}"
            )
        else:
            options.words.append(word)
    action, *keys = options.words or ["list"]
    store = ArtifactStore(Path(options.runs) / "artifacts")
    if action == "list" and not keys:
        return _list(store)
    if action == "rm" and keys:
        return _remove(store, _with_dependants(store, [_lookup(store, key) for key in keys]), options.yes)
    if action == "gc" and not keys:
        damaged = [a for a in store.all() if a.is_damaged]
        stale = [a for a in store.all() if not a.is_damaged and store.is_stale(a)]
        useless = _with_dependants(store, stale)
        useless += [a for a in damaged if a not in useless]  # not what was made from them: that is intact
        return _remove(store, useless, options.yes, list(store.unfinished()))
    if action == "rm":
        raise UserError("artifacts rm needs a KEY; `kdistill artifacts` shows them")
    if action in ACTIONS:
        raise UserError(f"artifacts {action} takes no {keys[0]!r}\n{USAGE}")
    raise UserError(f"artifacts cannot {action!r}.{did_you_mean(action, ACTIONS)}\n{USAGE}")


def _list(store: ArtifactStore) -> int:
    artifacts = store.all()
    if not artifacts:
        say(f"no artifacts in {store.root}. `kdistill run` makes some")
        return 0
    columns = ["kind", "artifact", "dataset", "loss", "validation", "MB", "made", ""]
    show_table(Table(f"artifacts in {store.root}", columns, [_row(store, a) for a in artifacts]))
    return 0


def _row(store: ArtifactStore, artifact: Artifact) -> list[object]:
    if artifact.is_damaged:
        return [artifact.kind, artifact.folder.name, "-", "-", "-", "-", "-", "damaged"]
    return [
        artifact.kind,
        artifact.folder.name,
        artifact.manifest.get("dataset", "-"),
        _loss(artifact),
        _score(artifact),
        f"{artifact.bytes / 1e6:,.2f}",
        artifact.manifest["created"][:16].replace("T", " "),
        "stale" if store.is_stale(artifact) else "",
    ]


def _remove(store: ArtifactStore, artifacts: list[Artifact], sure: bool, extra: Sequence[Path] = ()) -> int:
    """Show what goes and how much disk it frees, ask, remove: children before their parents."""
    folders = [a.folder for a in artifacts] + list(extra)
    if not folders:
        say("nothing to remove")
        return 0
    total = 0
    for folder in folders:
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        total += size
        say(f"{size / 1e6:10,.2f} MB  {folder}")
    say(f"{total / 1e6:10,.2f} MB  in all")
    if not sure and not _confirmed():
        say("nothing removed")
        return 0
    removed = 0
    with storage_errors(store.root):
        for folder in reversed(folders):
            if store.remove(folder):
                removed += 1
            else:
                say(f"left alone, another process is at work on it: {folder}")
    say(f"removed {removed} {'folder' if removed == 1 else 'folders'}")
    return 0


def _confirmed() -> bool:
    if not sys.stdin or not sys.stdin.isatty():
        raise UserError("there is nobody to ask: add --yes to remove these")
    return input("remove? [y/N] ").strip().lower() in ("y", "yes")


def _lookup(store: ArtifactStore, key: str) -> Artifact:
    artifacts = store.all()
    found = [a for a in artifacts if key in (a.key, a.folder.name)]
    if not found:
        names = [a.key for a in artifacts] + [a.folder.name for a in artifacts]
        raise UserError(
            f"no artifact {key!r} in {store.root}.{did_you_mean(key, names)} `kdistill artifacts` shows all"
        )
    return found[0]


def _with_dependants(store: ArtifactStore, artifacts: Iterable[Artifact]) -> list[Artifact]:
    """The artifacts and everything that was made from them, parents first."""
    chosen = {(a.kind, a.folder.name) for a in artifacts}
    # in the order of their making: parents come before their children
    everything = sorted(store.all(), key=lambda a: "" if a.is_damaged else a.manifest["created"])
    for artifact in everything:
        if any((kind_of(role, pin), pin["name"]) in chosen for role, pin in _parents(artifact).items()):
            chosen.add((artifact.kind, artifact.folder.name))
    return [a for a in everything if (a.kind, a.folder.name) in chosen]


def _parents(artifact: Artifact) -> dict[str, dict[str, str]]:
    try:
        return artifact.parents
    except DamagedArtifact:  # nothing is known of it
        return {}


#: what a network is known by, for each task, and how it is written
HEADLINES = {"top1": ("top-1 {:.2f} %", 100), "map": ("mAP {:.2f} %", 100), "r2": ("R2 {:.4f}", 1)}


def _score(artifact: Artifact) -> str:
    scores = artifact.manifest.get("validation", {})
    found = (text.format(unit * scores[key]) for key, (text, unit) in HEADLINES.items() if key in scores)
    return next(found, "-")


def _loss(artifact: Artifact) -> str:
    """The loss that a student learnt from, and its feature terms: `kd`, `kd + at`, `at`."""
    loss = artifact.manifest["made_from"].get("loss")
    if not isinstance(loss, dict):
        return "-"
    kind = str(loss.get("name") or loss.get("kind", "ce"))  # no kind: of kd and ce without a teacher
    terms = list(loss.get("features", {}))
    return " + ".join(terms if kind == "features" else [kind, *terms])
