"""What memory a machine has, and how a process uses it."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

#: glibc's `mallopt`: parameter -> value. Freed memory is not given back to the system, and a tensor below 1 GiB is no
#: mapping of its own, which would be.
KEPT = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_MMAP_THRESHOLD": (-3, 2**30)}
#: what a user says of the same in the environment; the tunables name it glibc.malloc
USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have this process keep the memory of freed tensors for its next ones; returns whether it will.

    By default glibc gives an activation's memory back to the system when it is freed, and the next step gets it page
    by page, each page cleared: on a CPU a third of a small network's forward pass. docs/performance.md has the
    measurements. Does nothing where the C library is another one, or the user has set these limits in the environment.
    """
    if any(os.environ.get(name) for name in USERS_OWN):
        return False
    set_limit = _of_glibc("mallopt")
    return set_limit is not None and all(set_limit(*limit) == 1 for limit in KEPT.values())


def return_freed_memory() -> None:
    """Give the system what `keep_freed_memory` has kept, as a stage ends."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where that is not glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name, None) if hasattr(library, "gnu_get_libc_version") else None


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish its work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on; only Linux can forget the peak of a process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    return_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """The most memory in use at once, in bytes.

    On a CUDA device that of its tensors (`max_memory_allocated`); elsewhere that of the whole process, the
    data set and Python itself included (VmHWM on Linux, `ru_maxrss` on other systems).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = _kilobytes("/proc/self/status", "VmHWM")
    if peak is not None:
        return peak
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def memory_limit(device: torch.device) -> int | None:
    """How far `peak_memory` can grow, in bytes: what is in use and what is free; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    used, available = _kilobytes("/proc/self/status", "VmRSS"), _kilobytes("/proc/meminfo", "MemAvailable")
    return None if used is None or available is None else used + available


def _kilobytes(file: str, name: str) -> int | None:
    """A value of a file of Linux's, such as `VmHWM:  2076 kB`, in bytes."""
    with suppress(OSError):
        for line in Path(file).read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * 1024
    return None
