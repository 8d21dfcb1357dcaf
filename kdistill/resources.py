"""What memory a machine has and a process uses."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch


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
