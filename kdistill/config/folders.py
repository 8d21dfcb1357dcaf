"""Where configs are found: the shipped folder and the user's own. Imports neither Hydra nor torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from kdistill import plugins
from kdistill.errors import ConfigError

_user_dirs: list[Path] = []
_on_command_line: list[str] = []


def shipped_dir() -> Path:
    """The folder of kdistill's own configs: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"kdistill's own configs are missing next to {package}: install it again")


def home_dir() -> Path:
    return Path.home() / ".config" / "kdistill"


def use_folders(given: Sequence[str] = (), *, remember: bool = False) -> None:
    """Set the user's folders: `--config-dir`, then KDISTILL_CONFIG_DIR, then ~/.config/kdistill.

    An earlier folder wins. A root config in one of them would replace the whole tree and is refused.
    The current folder is not searched: it may belong to another project. With `remember` the given ones
    are part of the commands that messages suggest.
    """
    from_env = [folder for folder in os.environ.get("KDISTILL_CONFIG_DIR", "").split(os.pathsep) if folder]
    named = [
        *(("--config-dir", name) for name in given),
        *(("KDISTILL_CONFIG_DIR", name) for name in from_env),
    ]
    folders = []
    for source, name in named:
        folder = Path(name).expanduser().resolve()
        if not folder.is_dir():
            raise ConfigError(f"{source}: no folder {name}")
        folders.append(folder)
    folders += [home_dir()] if home_dir().is_dir() else []
    for folder in folders:
        if (folder / "config.yaml").exists():
            raise ConfigError(
                f"{folder / 'config.yaml'} would replace kdistill's root config."
                f" Make it {folder / 'experiment' / 'NAME.yaml'} and choose it with experiment=NAME"
            )
    _user_dirs[:] = folders
    _on_command_line[:] = given if remember else []


def user_dirs() -> list[Path]:
    return list(_user_dirs)


def on_command_line() -> list[str]:
    """The folders given with `--config-dir`, as they were written there."""
    return list(_on_command_line)


def own_options_dir() -> Path:
    """Where a user would put an own option: the first user folder, or the one to make."""
    return _user_dirs[0] if _user_dirs else home_dir()


def groups() -> dict[str, dict[str, Path]]:
    """Every config group with its options and their files, `hydra` apart; the user's file wins.

    A registered loss is an option, too; its file is the Python file.
    """
    found: dict[str, dict[str, Path]] = {"experiment": {}}
    for folder in (shipped_dir(), *reversed(_user_dirs)):
        for file in sorted(folder.glob("*/**/*.yaml")):
            group, _, option = file.relative_to(folder).with_suffix("").as_posix().partition("/")
            if group != "hydra":
                found.setdefault(group, {})[option] = file
    found["loss"] |= {name: loss.file for name, loss in plugins.losses().items()}
    return {
        group: {name: options[name] for name in sorted(options, key=_natural)}
        for group, options in sorted(found.items())
    }


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Order numbers in names by their size: resnet8 before resnet14."""
    parts = re.findall(r"\d+|\D+", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
