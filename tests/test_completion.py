"""Completion in the shell: what a line begun may go on with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdistill import completion
from kdistill.cli import main


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("kdistill di", ["distill "]),
        ("kdistill distill --c", ["--cfg", "--config-dir"]),
        ("kdistill distill --cfg ", ["job", "hydra", "all"]),
        ("kdistill distill loss.a", ["loss.alpha="]),
        (
            "kdistill distill student.optim=",
            ["student.optim=adamw", "student.optim=sgd", "student.optim=sgd_small"],
        ),
        ("kdistill distill student.optim.sch", ["student.optim.schedule.", "student.optim.schedule="]),
        ("kdistill distill -m device=c", ["device=cpu", "device=cuda"]),
        (
            "kdistill distill student=mlp student.params.",
            ["student.params.dropout=", "student.params.hidden."],
        ),
        ("kdistill list d", ["datasets"]),
        ("kdistill distill st", ["student.", "student="]),
    ],
)
def test_completion(line: str, answers: list[str]) -> None:
    """Commands, options and short forms are ours; settings and options come from Hydra."""
    assert completion.complete(line) == answers


def test_completion_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong line gives no answer and no message: the user is in the middle of it."""
    monkeypatch.setenv("COMP_LINE", "kdistill distill student=nope student.par")
    assert main(["-sc", "query=bash"]) == 0
    printed = capsys.readouterr()
    assert (printed.out.strip(), printed.err) == ("", "")
    assert os.environ["COMP_LINE"] == "kdistill distill student=nope student.par"


def test_completion_in_bash(tmp_path: Path) -> None:
    """bash cuts words at `=`: the answer is what follows the cut; commands get a space."""
    (tmp_path / "kdistill").write_text(f'#!/bin/sh\nexec {sys.executable} -m kdistill "$@"\n')
    (tmp_path / "kdistill").chmod(0o755)
    script = """
        eval "$(kdistill -sc install=bash)"
        try() { COMP_LINE="$1"; COMP_POINT=${#1}; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _kdistill
                printf '%s|' "${COMPREPLY[@]}"; echo; }
        try "kdistill dist" kdistill dist
        try "kdistill distill loss=k" kdistill distill loss = k
        try "kdistill distill device=" kdistill distill device =
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}, check=True
    )
    lines = found.stdout.splitlines()
    assert lines[0] == "distill |"
    assert "kd" in lines[1].split("|")
    assert lines[2] == "auto|cpu|cuda|mps|"
