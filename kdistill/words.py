"""The words of a command line, taken apart: command, options, overrides. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from kdistill.errors import ConfigError, did_you_mean

INFO = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
#: option -> what follows it: nothing, any word, or one of these words
FLAGS: dict[str, str | list[str] | None] = {
    "--multirun": None,
    "--cfg": ["job", "hydra", "all"],
    "--resolve": None,
    "--package": "KEY",
    "--info": INFO,
    "--config-dir": "DIR",
    "--trust": "FILE",
    "--help": None,
    "--version": None,
}
SHORT = {
    "-m": "--multirun",
    "-c": "--cfg",
    "-p": "--package",
    "-i": "--info",
    "-h": "--help",
    "-cd": "--config-dir",
}


@dataclass
class Words:
    """A command line, taken apart; options may stand anywhere."""

    command: str = ""
    rest: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)
    config_dirs: list[str] = field(default_factory=list)
    trusted: list[str] = field(default_factory=list)

    @property
    def only_shows(self) -> bool:
        return "--cfg" in self.flags or "--info" in self.flags


def parse(argv: Sequence[str]) -> Words:
    """Take a command line apart; raises `ConfigError` for an unknown option or a wrong value of one."""
    words = Words()
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-") or words.command == "artifacts":  # which has options of its own
            if words.command:
                words.rest.append(word)
            else:
                words.command = word
            continue
        name, equals, value = word.partition("=")
        name = SHORT.get(name, name)
        if name not in FLAGS:
            near = did_you_mean(name, [*FLAGS, *SHORT])
            raise ConfigError(f"unknown option {name!r}.{near}\noptions: {', '.join(FLAGS)}")
        expected = FLAGS[name]
        if expected is None and equals:
            raise ConfigError(f"{name} takes no value")
        if expected is not None and not equals:
            # What follows --info is optional.
            takes_next = queue and (name != "--info" or queue[0] in INFO)
            value = queue.pop(0) if takes_next else "all" if name == "--info" else ""
        _check_value(name, value)
        if name == "--config-dir":
            words.config_dirs.append(value)
        if name == "--trust":
            words.trusted.append(value)
        words.flags[name] = value
    _check_braces(words.rest)
    return words


def _check_braces(words: Sequence[str]) -> None:
    """A shell makes a word of each number of `key={0..2}`; the last would count, in silence."""
    for word, following in pairwise(words):
        key = word.partition("=")[0]
        if key.endswith("_shards") and following.startswith(f"{key}="):
            raise ConfigError(
                f"{key} is given twice, {word} and {following}: braces that the shell must not expand need two pairs of"
                f" quotes: '{key}=\"train-{{000..146}}.tar\"'"
            )


def _check_value(name: str, value: str) -> None:
    expected = FLAGS[name]
    if isinstance(expected, list) and value not in expected:
        got = f"got {value!r}.{did_you_mean(value, expected)}" if value else "got nothing"
        raise ConfigError(f"{name} needs one of {', '.join(expected)}; {got}")
    if isinstance(expected, str) and (not value or value.startswith("-")):
        raise ConfigError(f"{name} needs a value: {name} {expected}")
