"""Losses of the user's own, from Python files that are trusted on the command line.

    kdistill distill --trust my_loss.py loss=cosine

A config cannot name code. A file that the user names with `--trust` is run, and what it registers with
`register_loss` becomes an option of the group `loss`. This module imports neither Hydra nor torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kdistill.errors import ConfigError, did_you_mean, first_line

Function = TypeVar("Function", bound=Callable[..., Any])
#: what a loss may ask for by name, besides parameters of its own
GIVEN = ("student_logits", "teacher_logits", "labels", "T")


@dataclass(frozen=True)
class OwnLossFunction:
    """A registered loss: its function, its file, and its section's values unless the user sets them."""

    name: str
    function: Callable[..., Any]
    file: Path
    weights: Mapping[str, float]
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Checksum of the file: another version of it is another loss."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    @property
    def asks_teacher(self) -> bool:
        return "teacher_logits" in inspect.signature(self.function).parameters

    @property
    def section(self) -> dict[str, Any]:
        """The `loss` section that `loss=NAME` stands for."""
        return {"kind": "own", "name": self.name, **self.weights, "params": dict(self.params)}

    @property
    def line(self) -> str:
        return (inspect.getdoc(self.function) or f"a loss of your own, from {self.file}").splitlines()[0]


_losses: dict[str, OwnLossFunction] = {}
_trusted: list[str] = []


def register_loss(
    name: str, *, alpha: float = 0.1, beta: float = 0.9, T: float = 4.0
) -> Callable[[Function], Function]:
    """Make a function an option of the group `loss`; the numbers are its weights unless the user sets them.

    The function takes `student_logits` `[N, K]` and, if it names them, `teacher_logits` `[N, K]`, `labels`
    `[N]` and `T`; other parameters need a default and are set with `loss.params.NAME=VALUE`. It returns a
    scalar. Raises `ConfigError` for a name or a signature that does not fit.
    """

    def register(function: Function) -> Function:
        from kdistill.config.folders import groups

        if not re.fullmatch(r"[A-Za-z]\w*", name):
            raise ConfigError(f"register_loss({name!r}): a name has letters, digits and underscores")
        file = Path(inspect.getsourcefile(function) or "").resolve()
        known = groups()["loss"].get(name)
        if known is not None and known != file:
            raise ConfigError(
                f"register_loss({name!r}): there is a loss of that name already, in {known}; choose another one"
            )
        _losses[name] = OwnLossFunction(
            name=name,
            function=function,
            file=file,
            weights={"alpha": alpha, "beta": beta, "T": T},
            params=_own_parameters(name, function),
        )
        return function

    return register


def _own_parameters(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    if "student_logits" not in parameters:
        raise ConfigError(
            f"register_loss({name!r}): the function must take student_logits; it takes {', '.join(parameters)}"
        )
    own = {key: p.default for key, p in parameters.items() if key not in GIVEN}
    for key, default in own.items():
        if default is inspect.Parameter.empty:
            raise ConfigError(
                f"register_loss({name!r}): {key!r} is none of {', '.join(GIVEN)}.{did_you_mean(key, GIVEN)}"
                " A parameter of your own needs a default"
            )
        if not isinstance(default, bool | int | float | str):
            raise ConfigError(f"register_loss({name!r}): the default of {key!r} must be a number or text")
    return own


def trust(path: str) -> None:
    """Run a Python file of the user's, so that it registers its losses; raises `ConfigError`."""
    file = Path(path).expanduser().resolve()
    if file.suffix != ".py" or not file.is_file():
        raise ConfigError(f"--trust: no Python file {path}")
    before = set(_losses)
    spec = importlib.util.spec_from_file_location(f"trusted_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ConfigError as ex:
        raise ConfigError(f"--trust {path}: {ex}") from ex
    except Exception as ex:
        raise ConfigError(f"--trust {path}: {type(ex).__name__}: {first_line(ex)}") from ex
    if not set(_losses) - before and not any(loss.file == file for loss in _losses.values()):
        raise ConfigError(
            f"--trust {path}: it registers no loss. Put @kdistill.register_loss('NAME') above a function"
        )
    _trusted.append(path)


def forget() -> None:
    """Start afresh: every command names the files that it trusts."""
    _losses.clear()
    _trusted.clear()


def losses() -> dict[str, OwnLossFunction]:
    return dict(_losses)


def find(name: str) -> OwnLossFunction:
    """The registered loss of that name; raises `ConfigError`."""
    if name not in _losses:
        raise ConfigError(
            f"no loss {name!r} is registered.{did_you_mean(name, _losses)}"
            " Name the file that registers it: --trust FILE.py"
        )
    return _losses[name]


def on_command_line() -> list[str]:
    """The files given with `--trust`, as they were written there."""
    return list(_trusted)
