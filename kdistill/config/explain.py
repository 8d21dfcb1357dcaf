"""What Hydra, OmegaConf and pydantic say, in one or two short lines with near matches.

The texts are part of the product; `tests/cases/config_errors.txt` lists what the user sees for each mistake.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import yaml  # type: ignore[import-untyped]
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdistill.config import folders, launchers
from kdistill.config.models import FAMILIES
from kdistill.config.schema import Config
from kdistill.errors import did_you_mean, first_line, nearest

# --- values: pydantic ---

KINDS = {
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "list_type": "must be a list, for example [1,2]",
    "tuple_type": "must be a list, for example [1,2]",
}


def validation_problems(ex: ValidationError, data: Mapping[str, Any]) -> list[str]:
    """One line per problem: `loss.T=-1: must be greater than 0`."""
    return [_problem(error, data) for error in ex.errors()]


def missing_value(path: str) -> str:
    """The text for a key that must be given, such as the folder of an image folder."""
    description = descriptions().get(path)
    value = "DIR" if path.endswith("root") else "VALUE"
    return f"{path} is missing{f': {description}' if description else ''}; set {path}={value}"


def _problem(error: ErrorDetails, data: Mapping[str, Any]) -> str:
    path = _untagged(error, data)
    kind, given = error["type"], error["input"]
    if kind == "missing":
        return missing_value(path)
    if kind == "union_tag_not_found":
        return missing_value(f"{path}.{_discriminator(error)}")
    if kind == "extra_forbidden":
        parent = path.rpartition(".")[0]
        known = [key.removeprefix(f"{parent}.") for key in descriptions() if key.rpartition(".")[0] == parent]
        siblings = [key for key in _at(data, parent) if key in known and key != "stage"]
        siblings = siblings or [key for key in _at(data, parent) if f"{parent}.{key}" != path]
        return f"{_ask(f'no setting {path!r}', _near(path, siblings))}\n{_settings(parent, siblings)}"
    if kind == "value_error":
        text = error["msg"].removeprefix("Value error, ").replace("input should", "must")
        if text.startswith("params."):
            return f"{path}.{text}"
        return f"{path}: {text}" if path else text
    if kind == "union_tag_invalid":
        path, given = f"{path}.{_discriminator(error)}", error["ctx"]["tag"]
        expected = error["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{path}={given}: {_one_of(expected, given)}"
    return f"{path}={shown(given)}: {_requirement(error, path)}"


def _requirement(error: ErrorDetails, path: str) -> str:
    kind, given = error["type"], error["input"]
    if kind == "literal_error":
        expected = re.findall(r"'([^']*)'|\b(\d+)\b", error["ctx"]["expected"])
        words = [text or number for text, number in expected]
        return _one_of(words, given)
    if kind == "string_pattern_mismatch":
        return f"must be {descriptions()[path]}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"is a section with settings of its own, for example {_example(path)}"
    if kind in KINDS:
        return KINDS[kind]
    text = error["msg"].replace("Input should", "must", 1)
    return text[0].lower() + text[1:]


def _one_of(names: Sequence[str], given: Any) -> str:
    return _ask(f"must be {' or '.join(names)}", did_you_mean(str(given), names))


def _at(data: Any, path: str) -> Mapping[str, Any]:
    key = ""
    for part in filter(None, path.split(".")):
        key = f"{key}.{part}".lstrip(".")
        if isinstance(data, Mapping) and key not in data:
            continue  # keys of `search` have dots
        data, key = data[key] if isinstance(data, Mapping) else data[int(key)], ""
    return dict(data)


def _example(path: str) -> str:
    first = next((key for key in descriptions() if key.startswith(f"{path}.")), f"{path}.KEY")
    return f"{first}=VALUE"


def _discriminator(error: ErrorDetails) -> str:
    return str(error["ctx"]["discriminator"]).strip("'")


def _untagged(error: ErrorDetails, data: Mapping[str, Any]) -> str:
    """The dotted path of a problem without the tags that pydantic adds for the variants of a union."""
    path: list[str] = []
    node: Any = data
    tagged: Any = None
    for part in error["loc"]:
        is_last_of_missing = error["type"] == "missing" and part is error["loc"][-1]
        if not isinstance(node, Mapping | list | tuple):
            continue  # the tag of a variant of a plain value
        if isinstance(node, Mapping) and part not in node and not is_last_of_missing:
            continue
        if isinstance(node, Mapping) and part == node.get("kind") and node is not tagged:
            tagged = node  # loss=features has a setting of its own kind's name
            continue
        if not isinstance(node, Mapping) and not isinstance(part, int):
            continue
        path.append(str(part))
        if isinstance(node, Mapping):
            node = node.get(part)
        elif isinstance(node, Sequence) and isinstance(part, int):
            node = node[part]
    return ".".join(path)


def shown(value: Any) -> str:
    """A value as it would be written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(shown(item) for item in value) + "]"
    return str(value)


def from_experiment(problem: str, words: Sequence[str]) -> str:
    """Add where an unknown parameter comes from, if the override `experiment=NAME` brought it along."""
    unknown = re.match(r"(teacher|student): \S+ has no parameter '(\w+)'", problem)
    experiment = next((word for word in words if word.startswith("experiment=")), None)
    if unknown is None or experiment is None:
        return problem
    role, name = unknown.groups()
    if any(re.match(rf"\+*{role}\.params(\.{name})?=", word) for word in words):
        return problem
    return f"{problem} (set by {experiment}; take it out with ~{role}.params.{name})"


# --- names: settings and options ---


def descriptions() -> dict[str, str]:
    """Every setting of the schema, all variants of unions together: dotted path -> description."""
    return dict(_descriptions(Config, ""))


def _descriptions(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field.description or ""
        for section in _sections(field.annotation):
            yield from _descriptions(section, f"{prefix}{name}.")


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def unknown_setting(key: str, cfg: DictConfig) -> str:
    """The text for an override of a key that the composed config (with its `hydra` section) does not have."""
    term = re.match(r"loss\.features\.(\w+)\.\w+", key)
    if term and term[1] not in cfg.loss.features and term[1] in folders.groups()["feature"]:
        return f"no setting {key!r}: {term[1]} is not chosen. Add feature={term[1]}"
    parent, _, wrong = key.rpartition(".")
    while parent and not OmegaConf.is_dict(OmegaConf.select(cfg, parent)):
        value = OmegaConf.select(cfg, parent)
        if value is not None:
            return f"no setting {key!r}: {parent} is a value ({shown(value)}), not a section"
        parent, _, wrong = parent.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    siblings = [str(name) for name in node if name not in ("hydra", "stage")]
    if not parent:
        groups = [group for group in cfg.hydra.runtime.choices if not re.search("[@/]", group)]
        siblings += [group for group in groups if group not in siblings]
    prefix = f"{parent}." if parent else ""
    tail = key.removeprefix(f"{prefix}{wrong}")
    repaired = [f"{prefix}{name}{tail}" for name in _close(wrong, siblings)]
    hint = _or(_respelt(key, cfg)) or _or(repaired) or _near(key, [name for name in siblings if prefix], cfg)
    return f"{_ask(f'no setting {key!r}', hint)}\n{_settings(parent, siblings)}"


def _settings(parent: str, names: Sequence[str]) -> str:
    return f"settings{f' of {parent}' if parent else ''}: {', '.join(names)}"


def _ask(text: str, hint: str) -> str:
    return f"{text}.{hint}" if hint else text


def _near(key: str, siblings: Sequence[str], cfg: DictConfig | None = None) -> str:
    """Near matches for a key: a sibling's name or description, then a name or description elsewhere."""
    parent, _, wrong = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    texts = {path: text for path, text in descriptions().items() if cfg is None or _has(cfg, path)}
    near = [prefix + name for name in _close(wrong, siblings)]
    beside = {path: texts.get(path, "") for path in (prefix + name for name in siblings)}
    near = near or _described(wrong, beside)
    near = near or [path for path in texts if path.rpartition(".")[2] == wrong][:3]
    return _or(near or _described(wrong, texts)[:2])


def _respelt(key: str, cfg: DictConfig) -> list[str]:
    """The settings that differ from a key in dots, dashes and underscores alone: `lossT`, `student-epochs`."""
    return [path for path in descriptions() if _letters(path) == _letters(key) and _has(cfg, path)]


def _letters(key: str) -> str:
    return re.sub("[._-]", "", key)


def _close(word: str, names: Sequence[str]) -> list[str]:
    return nearest(word, names, cutoff=0.65)


def _described(word: str, texts: Mapping[str, str]) -> list[str]:
    """Paths whose description has a word near `word`: this is how `temperatur` finds `loss.T`."""
    return [
        path
        for path, text in texts.items()
        if difflib.get_close_matches(word.lower(), re.findall(r"[a-z]{4,}", text.lower()), cutoff=0.8)
    ]


def _has(cfg: DictConfig, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return OmegaConf.is_dict(node) and name in node


def _or(names: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(repr(name) for name in names)}?" if names else ""


def unknown_option(group: str, option: str, options: Sequence[str], word: str, folder: str) -> str:
    """The text for a name that a config group does not have."""
    if group == "hydra/launcher" and option in launchers.EXTRAS:
        return launchers.missing(option)
    if not options:
        file = f"{folder}/{group}/{option}.yaml"
        return f"no option {option!r} in group {group!r}: it has none yet. Write one as {file}"
    key = word.partition("=")[0] if word else group
    if option.partition("/")[0] in FAMILIES and "/" in option:
        family = option.partition("/")[0]
        return f"no option {option!r} in group {group!r}: write {key}={family} {key}.name={option}"
    near = did_you_mean(option, options)
    own = "\nor name the file that registers it: --trust FILE.py" if group == "loss" and not near else ""
    return f"{_ask(f'no option {option!r} in group {group!r}', near)}\nchoose from: {', '.join(sorted(options))}{own}"


# --- everything else that composing may raise ---


def unreadable(word: str) -> str:
    """The text for an override that Hydra's grammar does not take."""
    if "=" not in word or word.startswith("="):
        return f"cannot read {word!r}: write key=value, for example loss.T=4"
    key, _, value = word.partition("=")
    return (
        f"cannot read {word!r}: a list is written {key}=[1,2]; text with brackets, commas or spaces needs"
        f" two pairs of quotes: '{key}=\"{value}\"'"
    )


def explain(ex: BaseException) -> str | None:
    """The message for an error of the config that names no override; None if it is not the user's mistake."""
    if isinstance(ex, OverrideParseException):
        return unreadable(ex.override)
    if isinstance(ex, InterpolationResolutionError):
        return re.sub(r"^\w+ raised while resolving interpolation: ", "", first_line(ex))
    if isinstance(ex, yaml.MarkedYAMLError):
        mark = ex.problem_mark
        where = f"{mark.name}:{mark.line + 1}:{mark.column + 1}" if mark else "a config"
        return f"{where}: not valid YAML: {ex.problem}"
    if isinstance(ex, ValueError) and str(ex).startswith("Config group override"):
        return "a list over a config group takes names of options, not numbers or null"
    if isinstance(ex, MissingConfigException):
        options = f"\nchoose from: {', '.join(ex.options)}" if ex.options else ""
        return first_line(ex) + options
    twice = re.match(r"Multiple values for (\S+)\.", str(ex)) if isinstance(ex, HydraException) else None
    if twice:
        return f"{twice[1]} is chosen twice: write {twice[1]}=NAME once, without +"
    if isinstance(ex, HydraException):
        cause = ex.__cause__
        lines = [first_line(ex), first_line(cause) if isinstance(cause, OmegaConfBaseException) else ""]
        return ": ".join(line for line in lines if line)
    if isinstance(ex, OmegaConfBaseException):
        key = getattr(ex, "full_key", None)
        return f"{key}: {first_line(ex)}" if key else first_line(ex)
    return None
