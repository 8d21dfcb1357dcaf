"""The README is true: its commands run and print what it shows, its Python runs, its links lead somewhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdistill.config.folders import groups
from kdistill.helptext import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
assert spec is not None
assert spec.loader is not None
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)


def shape(text: str) -> list[str]:
    """Lines without scores, costs and keys, which differ from machine to machine; whole numbers stay."""
    text = re.sub(r"^(on|weakest of) .*", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"[0-9a-f]{12}\b|sweep_[\d_-]+", "KEY", text)
    text = re.sub(r"^\w+: \d+ seeds find a difference of .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"BEATS|NO DIFFERENCE|WORSE", "VERDICT", text)
    text = re.sub(r"\b2\d{3}(-\d\d){2}_[\d-]+", "KEY", text)
    text = re.sub(r"[+-]?\d[\d,]*\.\d+", "#", text)
    text = re.sub(r"# \+- #", "#", text)  # no spread is shown where there is none
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_commands_print_what_the_readme_shows(tmp_path: Path) -> None:
    """Every command of a console block, run in order in an empty folder, prints the same but for numbers."""
    fresh = readme.refreshed(README, tmp_path)

    assert shape("\n".join(readme.BLOCK.findall(README))) == shape("\n".join(readme.BLOCK.findall(fresh)))


def test_every_stage_is_shown() -> None:
    """The stage commands are in the README with their output."""
    shown = {command.split()[1] for command in readme.commands(README)}

    assert shown >= {"train-teacher", "soft-targets", "distill", "finetune", "eval", "run", "compare"}
    assert not re.search(r"@[A-Z_]+@", README)


def test_the_python_example_runs(tmp_path: Path) -> None:
    """The code block, word for word, in a process of its own."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    quick = code.replace('"student.epochs=10"', '"student.epochs=1", "teacher.epochs=1", "finetune.epochs=1"')
    done = subprocess.run([sys.executable, "-c", quick], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2


def test_own_options_work_as_shown(tmp_path: Path) -> None:
    """The shell block on own options composes the user's temperature."""
    (block,) = re.findall(r"^```sh\n(mkdir.*?)^```$", README, re.MULTILINE | re.DOTALL)

    assert "T: 8" in readme.run(block, tmp_path)


def test_the_readme_names_every_group_and_command() -> None:
    """Config groups and commands that there are, are in the README."""
    for group in groups():
        assert f"`{group}`" in README or f".{group}`" in README, group
    for command in COMMANDS:
        assert f"kdistill {command}" in README, command


def test_links_and_named_files_are_there() -> None:
    """Relative links and `kdistill/...` files named in the texts exist."""
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        targets = re.findall(r"\]\((?!http)([^)#]+)\)", text)
        targets += re.findall(r"`((?:kdistill|configs|scripts|tests|docs)/[\w/.]+)`", text)
        missing = [t for t in targets if "NAME" not in t and not (ROOT / t).exists()]
        assert missing == [], name
