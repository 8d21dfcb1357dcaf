"""What it takes to use a model: operations, memory, time for one image and for many. Measured, not estimated."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdistill.resources import peak_memory, reset_peak_memory, synchronize
from kdistill.trial import pace

#: images `[N, C, H, W]` -> logits
Forward = Callable[[Tensor], object]
#: images at once for throughput and memory
BATCH_SIZE = 64
#: single images before the clock starts; seconds after which no further one is timed, but for the first few
WARM_UP, SECONDS, LEAST = 10, 10.0, 5


@dataclass(frozen=True)
class Footprint:
    """What a model takes, and where that was measured.

    `flops` and `memory` are None of a model that does not work with torch.
    """

    flops: int | None
    """Floating-point operations for one image; a multiply-add is two."""
    memory: int | None
    """Bytes of tensors in use at once for a batch of `BATCH_SIZE`: weights, input and what lies between."""
    latency_p50: float
    """Median of the seconds that one image takes."""
    latency_p95: float
    """Seconds that 95 % of single images stay below."""
    runs: int
    """Single images that were timed."""
    throughput: float
    """Images per second in batches of `BATCH_SIZE`."""
    device: str
    threads: int


@torch.no_grad()
def measure(forward: Forward, images: Tensor, runs: int) -> Footprint:
    """The footprint of a model on the device of `images` `[n, C, H, W]`, which are repeated where they are few.

    Times are of the call alone, with the images on the device already.
    """
    many = images[torch.arange(BATCH_SIZE, device=images.device) % len(images)]
    times = latencies(forward, many[:1], runs)
    p50, p95 = np.percentile(times, [50, 95]).tolist()
    _, seconds = pace((forward(many) for _ in itertools.count()), images.device)
    flops = operations(forward, many[:1])
    return Footprint(
        flops=flops or None,
        memory=working_memory(forward, many) if flops else None,
        latency_p50=p50,
        latency_p95=p95,
        runs=len(times),
        throughput=BATCH_SIZE / seconds,
        device=device_name(images.device),
        threads=torch.get_num_threads(),
    )


def operations(forward: Forward, images: Tensor) -> int:
    """Floating-point operations of the call, as torch counts them: two for a multiply-add of a matrix product."""
    # imported here: it loads torch's compiler, which takes a second
    from torch.utils.flop_counter import FlopCounterMode

    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        forward(images)
    return counter.get_total_flops()


def working_memory(forward: Forward, images: Tensor) -> int:
    """Bytes in use at once during the call, weights and images included.

    On a CUDA device the peak of its allocator, workspaces of the libraries included; elsewhere the sum of the tensors
    that are alive at once, without what a library takes within one operation.
    """
    with torch.compiler.set_stance("force_eager"), _LiveTensors() as seen:
        forward(images)
    device = images.device
    if device.type != "cuda":
        return seen.given + seen.peak
    before = torch.cuda.memory_allocated(device)
    reset_peak_memory(device)
    forward(images)
    return seen.given + peak_memory(device) - before


def device_name(device: torch.device) -> str:
    """`cpu`, `mps`, or the name of a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def latencies(forward: Forward, image: Tensor, runs: int) -> list[float]:
    """Seconds of single calls, after some that warm up."""
    for _ in range(WARM_UP):
        forward(image)
    synchronize(image.device)
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < runs and (len(times) < LEAST or time.perf_counter() - started < SECONDS):
        begun = time.perf_counter()
        forward(image)
        synchronize(image.device)
        times.append(time.perf_counter() - begun)
    return times


class _LiveTensors(TorchDispatchMode):
    """Adds up the memory of tensors while a function runs: `given` to it, and the `peak` of what it made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.given = self.peak = self._made = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.given += sum(storage.nbytes() for storage in self._new(args, kwargs))
        result = func(*args, **(kwargs or {}))
        for storage in self._new(result):
            self._made += storage.nbytes()
            weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self._made)
        return result

    def _new(self, *values: Any) -> list[torch.UntypedStorage]:
        """Storages of these tensors that were not seen before; views share one."""
        found = {
            id(s): s for t in tree_leaves(values) if isinstance(t, Tensor) for s in [t.untyped_storage()]
        }
        fresh = [storage for storage in found.values() if storage not in self._known]
        for storage in fresh:
            self._known.add(storage)
        return fresh

    def _forget(self, size: int) -> None:
        self._made -= size
