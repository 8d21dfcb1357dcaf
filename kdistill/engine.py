"""The machine: device, precision, seeds. What runs where is decided here and nowhere else."""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from kdistill import fsdp, ranks
from kdistill.channels_last import to_channels_last
from kdistill.config import schema
from kdistill.errors import ConfigError
from kdistill.resources import keep_freed_memory

log = logging.getLogger("kdistill")
Precision = Literal["fp32", "bf16", "fp16"]
Tensors = tuple[torch.Tensor, ...]
#: multiply-adds per image from which bfloat16 makes a network's training at least 1.6 times as fast on a CPU that
#: gains from it; docs/performance.md has the measurements
WORTH_BF16 = 5e6


@dataclass(frozen=True)
class Engine:
    """A device, a precision and how networks are put on them."""

    device: torch.device
    precision: Precision
    compile: bool = False
    auto: bool = False
    """Whether a network may be given another precision, by its size."""
    shard: bool = False
    """Whether each rank holds only its part of a network that runs."""

    @classmethod
    def open(cls, config: schema.Device) -> Engine:
        """Choose device and precision; raises `ConfigError` for a device that is not there.

        What it sets for torch and the C library holds for the whole process.
        """
        if config.shard:
            _check_shard(config)
        device = _device(config.name)
        if config.processes > 1:
            device = _own_device(device, config)
        precision = _precision(config.precision, device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if device.type == "cpu":
            keep_freed_memory()
        # float32 means float32: no TF32, and the same kernels in every run. Set both ways, for the next job's sake.
        exact = precision == "fp32"
        torch.backends.cudnn.allow_tf32 = not exact
        torch.backends.cuda.matmul.allow_tf32 = not exact
        torch.backends.cudnn.deterministic = exact
        torch.backends.cudnn.benchmark = not exact  # kernels chosen by trying, perhaps others in each run
        log.debug("device %s, precision %s", device, precision)
        auto = config.precision == "auto" and device.type == "cpu" and cpu_gains_from_bf16()
        return cls(device, precision, config.compile, auto, config.shard)

    def for_network(self, multiply_adds: Callable[[], float]) -> Engine:
        """This machine at the precision that suits a network of so many multiply-adds per image.

        A fixed rule and no race, so that a run that goes on, or is made again, has the precision that it had.
        """
        return replace(self, precision="bf16") if self.auto and multiply_adds() >= WORTH_BF16 else self

    @property
    def home(self) -> torch.device:
        """Where whole networks are: on the device, or, where they may be too large for it, on the CPU."""
        return torch.device("cpu") if self.shard else self.device

    def place(self, network: nn.Module) -> nn.Module:
        """Put a network at `home`, in the memory layout that convolutions are fastest in.

        One that will be sharded stays in the layout that can be. Raises `ModelError` where none can.
        """
        if self.shard:
            fsdp.check(network)
            return network
        network = to_channels_last(network, self.device)
        if self.compile:
            network.compile()
        return network

    def spread(self, network: nn.Module, *, trained: bool = False, keep: bool = False) -> nn.Module:
        """A network that was placed, ready to run: sharded where that is asked for, as `fsdp.shard` says."""
        if self.shard:
            fsdp.shard(network, self.device, trained=trained, keep=keep)
        return network

    @property
    def look_every(self) -> int:
        """Steps from one look at the loss to the next: before a GPU's numbers are read, it has to catch up."""
        return 1 if self.device.type == "cpu" else 50

    def fetched(self, results: Iterable[Tensors]) -> Iterator[Tensors]:
        """Bring results to the CPU, one behind: a GPU works on the next one while the process uses this one."""
        if self.device.type != "cuda" or self.shard:  # between sharded batches ranks agree, in one order
            for result in results:
                yield tuple(part.cpu() for part in result)
            return
        before: tuple[Tensors, torch.cuda.Event] | None = None
        for result in results:
            copies = tuple(part.to("cpu", non_blocking=True) for part in result)  # to pinned memory
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self.device))
            if before is not None:
                yield _arrived(*before)
            before = copies, done
        if before is not None:
            yield _arrived(*before)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling keeps float16 gradients from vanishing; other precisions need none."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Run with torch's generators seeded, and put their states back afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    def random_state(self) -> dict[str, torch.Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.device.type == "mps":
            state["mps"] = torch.mps.get_rng_state()
        return state

    def set_random_state(self, state: dict[str, torch.Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        if "mps" in state and self.device.type == "mps":
            torch.mps.set_rng_state(state["mps"])


def _arrived(copies: Tensors, done: torch.cuda.Event) -> Tensors:
    done.synchronize()
    return copies


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = name.partition(":")[0]
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[kind]:
        here = " or ".join(k for k, there in available.items() if there)
        raise ConfigError(f"device.name={name}: there is no {kind} device here. Use device={here}")
    device = torch.device(name)
    if kind == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(
            f"device.name={name}: there are {torch.cuda.device_count()} cuda devices, counted from 0"
        )
    return device


def cpu_gains_from_bf16() -> bool:
    """Whether bfloat16 makes large networks faster on this CPU: it has AMX, or AVX512-BF16 and is not Intel's.

    On Intel's, AVX512-BF16 alone is slower than float32, for networks of every size; without either, bfloat16 is only
    imitated, slowly. docs/performance.md has the measurements.
    """

    def has(name: str) -> bool:
        # torch has no public question for it that all of its versions know
        ask = getattr(torch.cpu, f"_is_{name}_supported", None)
        return ask is not None and bool(ask())

    return has("amx_tile") or (has("avx512_bf16") and "GenuineIntel" not in _about_cpu())


def _about_cpu() -> str:
    """What the system says of its CPU; the maker's name is in it."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return platform.processor()


def _own_device(device: torch.device, config: schema.Device) -> torch.device:
    """The device of this rank, of several; raises `ConfigError` where there is not one for each."""
    if device.type == "mps" or device.index is not None:
        raise ConfigError(
            f"device.name={config.name} is one device, and device.processes={config.processes} need one each;"
            " use device=cuda or device=cpu"
        )
    if device.type == "cpu":
        return device
    here, wanted = torch.cuda.device_count(), ranks.local_size(config.processes)
    if wanted > here:
        raise ConfigError(
            f"device.processes={config.processes} need {wanted} cuda devices on this machine, and there are {here}"
        )
    if ranks.size() > 1:
        torch.cuda.set_device(ranks.local_rank())
    return torch.device("cuda", ranks.local_rank())


def _check_shard(config: schema.Device) -> None:
    """Raise `ConfigError` for what sharded networks do not go with."""
    if config.processes == 1:
        raise ConfigError(
            "device.shard=true shares networks out among several processes: set device.processes=2 or more"
        )
    if config.compile:
        raise ConfigError("device.shard=true needs device.compile=false")
    if config.precision == "fp16":
        raise ConfigError("device.shard=true needs device.precision=bf16 or fp32, got fp16")


def _precision(name: str, device: torch.device) -> Precision:
    """`auto` is bfloat16 on a GPU that has it; on a CPU it is float32, and for large networks see `for_network`."""
    if name == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_bf16 else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("device.precision=fp16 needs a GPU; on a CPU use bf16 or fp32")
    return name  # type: ignore[return-value]
