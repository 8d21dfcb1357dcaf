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
