"""From the words of a command to checked configs: every combination of a sweep, before its first job."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from kdistill.config import explain, folders, safety
from kdistill.config.hydra_state import as_current, composer
from kdistill.config.launchers import Launcher
from kdistill.config.overrides import long_form, quoted, short_form
from kdistill.config.overrides import users_words as users_words
from kdistill.config.schema import Config
from kdistill.config.search import flat
from kdistill.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Plan:
    """What a command will do, all of it checked."""

    cfg: DictConfig
    """As Hydra composed it, with its own section; of a sweep the first job's."""
    configs: list[Config]
    """Of each job."""
    jobs: list[list[str]]
    """Overrides of each job."""
    swept: list[str]
    """Keys that the sweep varies."""
    multirun: bool
    is_listed: bool
    """Whether the jobs are known beforehand: a sweeper that searches chooses them itself."""
    launcher: Launcher
    folder: Path
    """The run's folder, or the sweep's, below which each job has its own."""
    overrides: list[str]
    """What Hydra's sweeper is given."""


def plan(stage: str, words: Sequence[str], multirun: bool = False) -> Plan:
    """Compose and check every job of a command; raises `ConfigError`: all problems of the first bad one."""
    with composer():
        words, parsed = _prepare(stage, words)
        first = next(_jobs(parsed))
        with _told_of(first, parsed):
            cfg = _raise_any(*_composed(first))
        _check_safety(cfg)
        multirun = multirun or cfg.hydra.mode == RunMode.MULTIRUN
        lists = [str(override.input_line) for override in parsed if override.is_sweep_override()]
        if lists and not multirun:
            raise ConfigError(f"{short_form(lists[0])} is a list: add -m to sweep over it")
        if multirun:
            _check_sweeper(cfg, parsed)
            parsed = [*_parse(_preset(cfg)), *parsed]
        launcher = Launcher.of(cfg)
        launcher.check(multirun, force=cfg.force is True)
        jobs = list(_jobs(parsed)) if multirun else [words]
        configs = []
        for job in jobs:
            with _told_of(job, parsed):
                configs.append(_checked(job) if multirun and job != first else validate(cfg))
        folder = _folder(cfg, multirun)
    swept = [_name(override) for override in parsed if override.is_sweep_override()]
    return Plan(
        cfg=cfg,
        configs=configs,
        jobs=jobs,
        swept=list(dict.fromkeys(swept)),
        multirun=multirun,
        is_listed=_is_basic(cfg),
        launcher=launcher,
        folder=folder,
        overrides=[*words, f"hydra.sweep.dir={quoted(str(folder))}"],
    )


def preview(stage: str, words: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """Compose one config to look at (`--cfg`, `--info`): names are checked, values are not."""
    with composer():
        words, parsed = _prepare(stage, words)
        for override in parsed:
            if override.is_sweep_override():
                raise ConfigError(
                    f"{short_form(str(override.input_line))} is a list: give one value to see its config"
                )
        cfg = _raise_any(*_composed(words))
        _check_safety(cfg)
    return cfg, words


def validate(cfg: DictConfig) -> Config:
    """Check a composed config against the schema; raises `ConfigError` with one line per problem."""
    config, problems = _validated(cfg)
    if config is None:
        raise ConfigError(_joined(problems))
    return config


# --- words ---


def _prepare(stage: str, words: Sequence[str]) -> tuple[list[str], list[Override]]:
    words = [*map(long_form, words)]
    safety.check_words(_parse(words))
    words = [f"stage={stage}", *words]
    parsed = _parse(words)
    known = folders.groups()
    for override in parsed:
        group = override.key_or_group
        named = (
            isinstance(override.value(), str | list) or override.is_sweep_override() or override.is_delete()
        )
        if group in known and not named:
            word, options = short_form(str(override.input_line)), ", ".join(known[group])
            raise ConfigError(f"{word}: not an option of group {group!r}\nchoose from: {options}")
        chosen = override.value()
        if group in known and isinstance(chosen, list) and len({*map(str, chosen)}) < len(chosen):
            raise ConfigError(f"{short_form(str(override.input_line))}: each option can be chosen once")
    return words, parsed


def _parse(words: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed, problems = [], []
    for word in words:
        try:
            parsed += parser.parse_overrides([word])
            if not parsed[-1].key_or_group:
                problems.append(explain.unreadable(short_form(word)))
        except OverrideParseException:
            problems.append(explain.unreadable(short_form(word)))
    if problems:
        raise ConfigError("\n".join(problems))
    return parsed


def _jobs(parsed: Sequence[Override]) -> Iterator[list[str]]:
    """The overrides of each job, in the order of Hydra's basic sweeper; of a repeated key the last counts."""
    choices: dict[str, list[str]] = {}
    for override in parsed:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [str(override.input_line)]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return map(list, itertools.product(*choices.values()))


@contextmanager
def _told_of(job: Sequence[str], parsed: Sequence[Override]) -> Iterator[None]:
    """Have a `ConfigError` say which job of a sweep it is of, unless all jobs have that mistake or it names the job."""
    try:
        yield
    except ConfigError as ex:
        swept = {override.get_key_element() for override in parsed if override.is_sweep_override()}
        varied = [short_form(word) for word in job if word.partition("=")[0] in swept]
        is_named = any(word in str(ex) or repr(word.partition("=")[2]) in str(ex) for word in varied)
        jobs = list(_jobs(parsed))
        if varied and not is_named and (job != jobs[0] or _is_fine(jobs[-1])):
            raise ConfigError(f"{ex}\nin the job {' '.join(varied)}") from ex
        raise


def _is_fine(job: Sequence[str]) -> bool:
    try:
        _checked(job)
    except ConfigError:
        return False
    return True


def _preset(cfg: DictConfig) -> list[str]:
    """The sweep that a config asks for in `hydra.sweeper.params`, as overrides."""
    params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    return [f"{key}={value}" for key, value in params.items()] if _is_basic(cfg) else []


def _is_basic(cfg: DictConfig) -> bool:
    return str(cfg.hydra.runtime.choices["hydra/sweeper"]) == "basic"


def _check_sweeper(cfg: DictConfig, parsed: Sequence[Override]) -> None:
    for override in parsed:
        if _is_basic(cfg) and override.is_sweep_override() and not override.is_discrete_sweep():
            name = _name(override)
            raise ConfigError(
                f"{override.input_line}: a sweep needs a list, {name}=1,2,4 or {name}=range(1,9)"
            )


def _name(override: Override) -> str:
    return short_form(override.get_key_element())


# --- composing, with all problems ---


def _composed(words: Sequence[str]) -> tuple[DictConfig | None, list[str]]:
    """Compose; every override that does not fit is left out and reported."""
    words, problems, unknown = list(words), [], []
    while True:
        try:
            cfg = compose("config", overrides=words, return_hydra_config=True)
            break
        except MissingConfigException as ex:
            culprit, text = _unknown_option(ex, words)
            problems.append(text)
        except ConfigCompositionException as ex:
            # Defaults are resolved before keys: with a wrong option, keys may seem wrong only because of it.
            if problems:
                return None, problems
            key = re.match(r"Could not override '(.+?)'", str(ex))
            culprit = next(
                (word for word in words if key and word.partition("=")[0].lstrip("+") == key[1]), None
            )
            if culprit is None or key is None:
                raise
            if "@" in key[1]:
                hint = re.search(r"Did you mean to override (?:one of )?(.+)\?", str(ex))
                return None, [
                    f"no place {key[1]!r}." + (did_you_mean(key[1], hint[1].split(", ")) if hint else "")
                ]
            unknown.append(key[1])
        if culprit is None:
            return None, problems
        words.remove(culprit)
    if problems:
        return None, problems
    return cfg, [explain.unknown_setting(key, cfg) for key in unknown]


def _unknown_option(ex: MissingConfigException, words: Sequence[str]) -> tuple[str | None, str]:
    """The override that names a missing option, and the text; None if a file names it."""
    missing, options, folder = ex.missing_cfg_file or "", ex.options or [], str(folders.own_options_dir())
    for word in words:
        key, _, option = word.partition("=")
        group = key.lstrip("+").partition("@")[0]
        for name in option.strip("[]").replace(" ", "").split(","):  # feature=[at,sp]
            if missing == f"{group}/{name}":
                options = list(folders.groups().get(group, options))
                return word, explain.unknown_option(group, name, options, short_form(word), folder)
    group, _, option = missing.partition("/")
    return None, f"a config names it: {explain.unknown_option(group, option, options, '', folder)}"


def _raise_any(cfg: DictConfig | None, problems: list[str]) -> DictConfig:
    if cfg is None or problems:
        values = _validated(cfg)[1] if cfg is not None else []
        raise ConfigError(_joined([*problems, *values]))
    return cfg


def _joined(problems: Sequence[str]) -> str:
    """One text; a list of settings that helps with two problems is given once."""
    return "\n".join(dict.fromkeys("\n".join(problems).split("\n")))


def _checked(job: Sequence[str]) -> Config:
    cfg = _raise_any(*_composed(job))
    _check_safety(cfg)
    return validate(cfg)


def _check_safety(cfg: DictConfig) -> None:
    with as_current(cfg):
        safety.check_composed(cfg, folders.shipped_dir())


def _folder(cfg: DictConfig, multirun: bool) -> Path:
    with as_current(cfg):
        return Path(str(cfg.hydra.sweep.dir if multirun else cfg.hydra.run.dir))


def _validated(cfg: DictConfig) -> tuple[Config | None, list[str]]:
    job = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    data = _without_missing(OmegaConf.to_container(job, resolve=True))
    if isinstance(data.get("search"), dict):
        data["search"] = flat(data["search"])
    try:
        return Config.model_validate(data), []
    except ValidationError as ex:
        words = OmegaConf.select(cfg, "hydra.overrides.task") or []
        return None, [explain.from_experiment(text, words) for text in explain.validation_problems(ex, data)]


def _without_missing(node: Any) -> Any:
    """Drop keys whose value is `???`: the schema then reports them as missing."""
    if isinstance(node, dict):
        return {key: _without_missing(value) for key, value in node.items() if value != "???"}
    return node
