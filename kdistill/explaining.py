"""`kdistill explain`: a method's formula, paper, needs and settings, from the catalogue and the composed config."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdistill import plugins
from kdistill.config import folders
from kdistill.config.method import FAMILIES, NOTATION
from kdistill.config.methods import METHODS, of_family
from kdistill.console import say
from kdistill.errors import ConfigError, did_you_mean

WIDTH = 110
#: width of the names of parts and methods
INDENT = 17
#: longest value that stands in one line with its note
LONG = 30


class Setting(NamedTuple):
    """A setting as the user writes it on the command line: `loss.T`, `4`, and what it means."""

    key: str
    value: str
    note: str


def main(words: Sequence[str]) -> int:
    """Print all methods, or all about one; raises `ConfigError` for one that there is not."""
    if len(words) > 1:
        raise ConfigError(f"explain takes one method, got {' '.join(words)!r}")
    say(explained(words[0]) if words else overview())
    return 0


def names() -> list[str]:
    """All that can be explained: the catalogue, and the user's own options of `loss` and `feature`."""
    found = folders.groups()
    return list(dict.fromkeys([*METHODS, *found["loss"], *found["feature"]]))


def overview() -> str:
    """A line about each method, by family; then the user's own options."""
    parts = [
        "\n".join([title, *(_part(method.kind, method.line) for method in of_family(family))])
        for family, title in FAMILIES.items()
    ]
    if own := [name for name in names() if name not in METHODS]:
        parts.append("\n".join(["your own", *(f"  {name}" for name in own)]))
    return "\n\n".join([*parts, "kdistill explain METHOD tells its formula, paper, needs and settings"])


def explained(name: str) -> str:
    """All about one method, or about an option of the user's own."""
    if name not in names():
        raise ConfigError(
            f"no method {name!r}.{did_you_mean(name, names())} `kdistill explain` lists all;"
            " one of your own needs --trust FILE.py or --config-dir DIR"
        )
    words = choice(name)
    about = _registered(name) if name in plugins.losses() else _catalogued(name, words)
    found = settings(words)
    table = ["", f"settings of {words}", *_aligned(found)] if found else []
    if name in METHODS:
        commands = METHODS[name].examples
    else:
        options = "".join(f"--trust {file} " for file in plugins.on_command_line())
        options += "".join(f"--config-dir {folder} " for folder in folders.on_command_line())
        commands = (options + words, f"{options}-m {words} student.seed=0,1,2")
    examples = [f"  kdistill run {command}" for command in commands]
    return "\n".join([*about, *table, "", "examples", *examples])


def choice(name: str) -> str:
    """The words that choose an option, with what must stand beside it."""
    if name in METHODS:
        return METHODS[name].examples[0] if METHODS[name].family != "control" else f"loss={name}"
    return f"loss={name}" if name in folders.groups()["loss"] else f"feature={name}"


def settings(words: str) -> list[Setting]:
    """The settings of a method that `words` choose, inherited ones included, with the values that its YAML gives."""
    from kdistill.config import compose
    from kdistill.config.models import EnsembleParams

    cfg, _ = compose.preview("distill", words.split())
    config = compose.validate(cfg)
    group, _, option = words.split()[0].partition("=")
    file = folders.groups().get(group, {}).get(option)
    if group == "mixing":
        return list(_section("mixing", cfg.mixing, type(config.mixing).model_fields, file))
    if group == "teacher":
        return list(_section("teacher.params", cfg.teacher.params, EnsembleParams.model_fields, file))
    found = list(_section("loss", cfg.loss, type(config.loss).model_fields, file)) if group == "loss" else []
    for name, term in config.loss.features.items() if group in ("loss", "feature") else ():
        own = folders.groups()["feature"].get(name)
        found += _section(f"loss.features.{name}", cfg.loss.features[name], type(term).model_fields, own)
    return found


# --- parts ---


def _catalogued(name: str, words: str) -> list[str]:
    method = METHODS.get(name)
    if method is None:
        from kdistill.config import compose
        from kdistill.config.losses import OwnLoss

        loss = compose.validate(compose.preview("distill", words.split())[0]).loss
        if isinstance(loss, OwnLoss):
            return _registered(loss.name)
        terms = list(loss.features.values())
        method = METHODS[terms[-1].kind if words.startswith("feature=") and terms else loss.kind]
    title = method.title if name == method.kind else f"settings of your own for {method.kind}, {method.title}"
    return [
        f"{name}: {title}",
        "",
        *(_part("formula" if i == 0 else "", line) for i, line in enumerate(method.formula.splitlines())),
        *(_part("", line) for line in NOTATION.splitlines() if method.family != "teaching"),
        _part("paper", method.paper.removeprefix("-: ")),
        _part("needs", "; ".join(method.needs)),
        _part("use it when", method.when),
    ]


def _registered(name: str) -> list[str]:
    loss = plugins.find(name)
    doc = inspect.getdoc(loss.function) or "(no docstring)"
    signature = ", ".join(inspect.signature(loss.function).parameters)
    return [
        f"{name}: a loss of your own, from {loss.file}",
        "",
        textwrap.indent(doc, "  "),
        "",
        f"  takes {signature}",
    ]


def _section(
    path: str, values: Mapping[Any, Any], fields: Mapping[str, Any], file: Path | None
) -> Iterator[Setting]:
    """The settings of a section: its values, with its YAML's comments, or else the descriptions of its fields."""
    from omegaconf import OmegaConf

    comments = _comments(file)
    plain: Any = OmegaConf.to_container(values)
    for key, value in plain.items():
        if key in ("kind", "name", "features"):
            continue
        note = comments.get(key) or fields[key].description or ""
        if key == "params":
            yield from (
                Setting(f"{path}.params.{own}", _text(default), note) for own, default in value.items()
            )
        else:
            yield Setting(f"{path}.{key}", _text(value), note)


def _comments(file: Path | None) -> dict[str, str]:
    """Setting -> the comment behind it in a YAML file."""
    if file is None or file.suffix != ".yaml":
        return {}
    return dict(re.findall(r"^ *(\w+):.*? # *(.+)$", file.read_text(), re.MULTILINE))


def _text(value: Any) -> str:
    """A value as on the command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _part(name: str, text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=f"  {name:{INDENT}}", subsequent_indent=" " * (INDENT + 2)
    )


def _aligned(rows: Sequence[Setting]) -> list[str]:
    """Three columns; a long value takes a line of its own."""
    key = max(len(row.key) for row in rows)
    value = max((len(row.value) for row in rows if len(row.value) <= LONG), default=0)
    indent = " " * (key + value + 6)
    lines = []
    for row in rows:
        start = f"  {row.key:{key}}  {row.value:{value}}  "
        if len(start) > len(indent):
            lines.append(start.rstrip())
            start = indent
        lines.append(
            textwrap.fill(row.note or " ", WIDTH, initial_indent=start, subsequent_indent=indent).rstrip()
        )
    return lines
