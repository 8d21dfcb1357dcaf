"""Run the commands that README.md shows and put their output below them: `python scripts/readme.py`.

Only ```console blocks are touched: a line that begins with `$ ` is a command, what follows is its stdout.
The blocks run in order in one temporary folder. `tests/test_docs.py` does the same and compares.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The commands of the console blocks, in order."""
    return [line[2:] for block in BLOCK.findall(text) for line in block.splitlines() if line.startswith("$ ")]


def run(command: str, folder: Path) -> str:
    """Output of a command of this environment on stdout; raises when it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def refreshed(text: str, folder: Path) -> str:
    """The README with every command's output as it is now."""

    def block(match: re.Match[str]) -> str:
        parts = [
            f"$ {command}\n{run(command, folder)}\n" for command in commands(f"```console\n{match[0]}```")
        ]
        return "\n".join(parts)

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        README.write_text(refreshed(README.read_text(), Path(folder)))
