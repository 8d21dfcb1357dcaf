"""Memory that is freed stays with the process for its next tensors, until a stage ends."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdistill.artifacts import ArtifactStore
from kdistill.partial import Work
from kdistill.resources import keep_freed_memory, return_freed_memory

MB = 2**20
glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="other C libraries have no such limits"
)

#: tensors of 40 MB, made and freed again and again: how many pages the system had to clear for the later ones
STEPS = """
import resource, torch
from kdistill import load_config
from kdistill.engine import Engine
Engine.open(load_config("dataset=digits", "device=cpu").device)
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def cleared_pages(**environment: str) -> int:
    """What STEPS prints, in a process of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env=own | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@glibc
def test_a_tensor_takes_the_memory_of_the_one_before() -> None:
    """Ten tensors of 10,240 pages: few are cleared, as the heap may grow once or twice. By default all are."""
    assert cleared_pages() < 30_000
    assert cleared_pages(GLIBC_TUNABLES="glibc.malloc.check=0") > 100_000


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "131072")

    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac: nothing is set, nothing is given back, nothing fails."""
    monkeypatch.setattr(sys, "platform", "darwin")

    assert not keep_freed_memory()
    return_freed_memory()


def resident() -> float:
    """MB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


@glibc
def test_a_stage_gives_its_memory_back(tmp_path: Path) -> None:
    """400 MB that a stage has used and freed do not stay with the process."""
    held: list[float] = []

    def make(work: Work) -> None:
        held.append(resident())
        kept = [torch.ones(10 * MB) for _ in range(10)]
        held.append(resident())
        del kept
        held.append(resident())
        (work.folder / "payload").write_text("made")
        work.payload = "payload"

    assert keep_freed_memory()
    return_freed_memory()
    ArtifactStore(tmp_path).obtain("teacher", "mlp", {"seed": 0}, "0123456789ab", make)
    before, during, freed = held

    assert during - before > 350
    assert freed - before > 350  # the process has kept it
    assert resident() - before < 100
