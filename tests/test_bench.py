"""Benchmarks that cannot run to their end where the tests run: what they need is said, and their code is tried."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    return importlib.import_module("gpu")


def test_a_gpu_is_needed(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as caught:
        gpu.main()

    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == "gpu.py: torch finds no CUDA device; --device cpu --samples 512 tries the code on a CPU\n"


@pytest.mark.slow
def test_the_gpu_benchmark_on_a_cpu(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tables and its JSON line; what is measured fits together."""
    words = "student.batch_size=64 --device cpu --samples 512 --rounds 1 --student tiny --compile false"
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words.split(), "--teacher", "resnet8"])
    gpu.main()
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])

    assert lines[2].startswith("| student | compile | epoch s | distil | plain | limit |")
    (row,) = found["training"]
    assert row["epoch s"] == pytest.approx(512 / row["distil"], abs=1e-3)
    # three convolutions' worth: 16x16x16 outputs of 27 inputs, 8x8x32 of 144, a linear layer
    operations = 6 * (16 * 16 * 16 * 27 + 8 * 8 * 32 * 144 + 32 * 10)
    assert row["limit use"] == pytest.approx(
        row["limit"] * operations / found["peak TFLOP/s"] / 1e12, rel=0.2
    )
    (made,) = found["soft targets"]
    assert made["teacher"] == "resnet8"
    assert made["generate"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "columns"),
    [
        (
            "precision",
            ["--network", "mlp", "--rounds", "1", "--seconds", "0"],
            ["network", "images", "multiply-adds", "threads", "training", "inference"],
        ),
        (
            "pools",
            ["--network", "tiny", "resnet8", "--rounds", "2", "--seconds", "0"],
            ["network", "threads", "kdistill, ms", "plain, ms", "times as fast", "25 %", "75 %"],
        ),
        (
            "heap",
            ["--network", "mlp", "resnet8 on 8 x 8", "--rounds", "1", "--seconds", "0"],
            [
                "network",
                "threads",
                "training",
                "answers",
                "folded",
                "fused",
                "pages, training",
                "pages, answers",
                "peak",
            ],
        ),
        (
            "sharded",
            ["--width", "32", "--depth", "2"],
            ["row", "parameters", "between MiB", "peak MiB", "step s"],
        ),
    ],
)
def test_benchmarks_at_a_tiny_size(script: str, words: list[str], columns: list[str]) -> None:
    """Each prints a JSON line for a row, and all of them as a table."""
    file = ROOT / "scripts" / "bench" / f"{script}.py"
    done = subprocess.run([sys.executable, file, *words], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]

    assert rows
    assert all(list(row) == columns for row in rows)
    assert f"| {' | '.join(columns)} |" in lines
    assert len(lines) - lines.index(f"| {' | '.join(columns)} |") == len(rows) + 2


# --- commands that take turns ---

#: writes the time, on the clock of all processes and on its own, again and again
TICKS = """
import sys, time
until = time.perf_counter() + float(sys.argv[1])
while time.perf_counter() < until or len(sys.argv) > 2:
    print(time.monotonic(), time.perf_counter(), flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    return importlib.import_module("turns")


def test_only_one_runs(turns: ModuleType) -> None:
    """While others run, it does nothing, and its own clock stands still."""
    line = (sys.executable, "-c", TICKS)
    commands = [turns.Command([*line, "3"], weight=3), turns.Command([*line, "1"], [*line, "1"])]

    assert sorted(turns.in_turns(commands, 0.3)) == [0, 1]

    for command, other in zip(commands, reversed(commands), strict=True):
        assert len(command.spans) > 1
        assert command.cpu_seconds > 0
        assert command.peak_mb > 0
        for said in command.said:
            ticks, own = zip(*(map(float, tick.split()) for tick in said.splitlines()), strict=True)
            # a signal takes a moment to arrive
            others = [tick for tick in ticks if any(go + 0.02 < tick < stop for go, stop in other.spans)]
            assert len(others) < 0.2 * len(ticks)
            assert ticks[-1] - ticks[0] > own[-1] - own[0] + 0.5
    assert len(commands[1].said) == len(commands[1].usages) == 2


def test_one_that_fails_ends_all(turns: ModuleType) -> None:
    """What it has said of it is told, and nothing goes on running, stopped or not."""
    for_ever = turns.Command([sys.executable, "-c", TICKS, "0", "for ever"])
    failing = turns.Command([sys.executable, "-c", "import time; time.sleep(0.2); exit('too bad')"], weight=9)

    with pytest.raises(SystemExit) as error:
        list(turns.in_turns([for_ever, failing], 0.1))

    assert error.value.code == "too bad\n"
    assert len(for_ever.usages) == len(failing.usages) == 1
    assert not for_ever._running
