"""`kdistill list`: what can be chosen, from the YAML files and the table of models."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from kdistill import plugins
from kdistill.config import folders
from kdistill.config.models import FAMILIES, MODELS
from kdistill.console import say, show_table
from kdistill.errors import ConfigError, did_you_mean

#: what the user names -> config group
GROUPS = {
    "teachers": "teacher",
    "students": "student",
    "datasets": "dataset",
    "losses": "loss",
    "features": "feature",
    "mixing": "mixing",
    "searches": "search",
    "trackers": "tracker",
    "experiments": "experiment",
}
OPTIONS = [
    "teachers",
    "students",
    "models",
    "datasets",
    "losses",
    "features",
    "mixing",
    "searches",
    "trackers",
    "experiments",
]
KINDS = [*OPTIONS, "layers", "artifacts"]


def main(words: Sequence[str]) -> int:
    """Print the overview, or one line about each option of a kind; raises `ConfigError`."""
    if not words:
        say(overview())
        return 0
    kind, *rest = words
    if kind == "artifacts":
        from kdistill import housekeeping

        return housekeeping.main(["list", *rest])
    if kind == "layers":
        layers(rest)
        return 0
    if kind not in KINDS:
        raise ConfigError(
            f"nothing to list as {kind!r}.{did_you_mean(kind, KINDS)}\nchoose from: {', '.join(KINDS)}"
        )
    if rest:
        raise ConfigError(f"list takes one word, got {' '.join(words)!r}")
    lines = models() if kind == "models" else options(GROUPS[kind])
    say(_aligned(lines) if lines else _none_yet(GROUPS[kind]))
    return 0


def overview() -> str:
    parts = []
    for kind in OPTIONS:
        names = list(models() if kind == "models" else options(GROUPS[kind]))
        text = ", ".join(names) or _none_yet(GROUPS[kind])
        parts.append(textwrap.fill(text, 98, initial_indent=f"{kind:12} ", subsequent_indent=" " * 13))
    return "\n".join(
        [
            *parts,
            "",
            "kdistill list KIND says a line about each; kdistill list artifacts: what is on disk;",
            "kdistill list layers: what feature losses can compare; kdistill explain: all methods",
        ]
    )


def models() -> dict[str, str]:
    """Name -> one line."""
    families = {f"{family}/NAME": line for family, (_, line) in FAMILIES.items()}
    return {name: line for name, (_, line) in MODELS.items()} | families


def options(group: str) -> dict[str, str]:
    """Name -> first comment of its YAML file, the user's own options included."""
    lines = {name: first_comment(file) for name, file in folders.groups().get(group, {}).items()}
    own = {name: loss.line for name, loss in plugins.losses().items()} if group == "loss" else {}
    return lines | own


def layers(words: Sequence[str]) -> None:
    """Print the layers of both networks that feature terms can compare, and how to name a pair.

    `words` are overrides as for `kdistill run`. The networks are built and shown a few images, not trained.
    Raises `ConfigError` for a teacher that is no network, and what building raises.
    """
    from kdistill.config import compose
    from kdistill.stages.layers import layers_of

    (config,) = compose.plan("run", words).configs
    table, pair = layers_of(config)
    show_table(table)
    if pair is not None:
        name = next(iter(config.loss.features), "at")
        term = "" if name in config.loss.features else f"feature={name} "
        say(
            f"a pair of your own: {term}loss.features.{name}.layers='[{{student:{pair[0]},teacher:{pair[1]}}}]'"
        )


def first_comment(file: Path) -> str:
    """The first comment line of a YAML file that is not Hydra's `# @package`."""
    for line in file.read_text().splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").rstrip()
    return ""


def _none_yet(group: str) -> str:
    return f"none yet; write one as {folders.own_options_dir() / group / 'NAME.yaml'}"


def _aligned(lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {line}".rstrip() for name, line in lines.items())
