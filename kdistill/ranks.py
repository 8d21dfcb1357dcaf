"""Several processes that train one network: which one this is, its share of the work, what all of them agree on.

A process is a rank, counted from 0; rank 0 is the main one: it speaks, and writes the files (of stored soft targets
each rank writes its part). In a process that is alone nothing here costs anything. Every function that talks to the
other ranks must be called by all of them, in the same order.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdistill.errors import DataError, PeerLost

#: ranks may wait this long, as for an estimator that the main one fits; a rank that died is noticed at once
PATIENCE = timedelta(days=7)
#: how long another rank waits for the main one to say what went wrong, before it says so itself
HEARING_SECONDS = 5
#: what ranks tell each other outside of the work
_store: dist.Store | None = None


class Rows(Protocol):
    """What can be shared: a tensor, a tuple, a `kdistill.data.Batch`."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Any: ...


Shared = TypeVar("Shared", bound=Rows)
Item = TypeVar("Item")


def join() -> None:
    """Become one of the ranks that torchrun started (`RANK`, `WORLD_SIZE`); raises torch's own errors.

    The process then ends by `launch.end`.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    global _store
    _store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(
        backend, store=dist.PrefixStore("work", _store), rank=rank, world_size=size, timeout=PATIENCE
    )


def leave(message: str, code: int) -> int:
    """End with an error; returns the exit code. The main rank has said it, and the others hear so and say nothing.

    What the main one does not say, as it happened to another rank alone, is kept for who started that.
    """
    if _store is None or (is_main() and code == PeerLost.exit_code):
        return code
    if is_main():
        _store.set("told", str(code))
        return code
    try:
        _store.wait(["told"], timedelta(seconds=HEARING_SECONDS))
        return int(_store.get("told"))
    except (dist.DistError, RuntimeError):
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if file and code != PeerLost.exit_code:
            Path(file).write_text(json.dumps({"message": message.partition("\n")[0]}))
        return code


def size() -> int:
    """Number of ranks; 1 where this process is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def local_rank() -> int:
    """This rank's number on its machine: the GPU that is its own."""
    return int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0


def local_size(processes: int) -> int:
    """How many of `processes` run on this machine; all of them where they are still to be started."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if dist.is_initialized() else processes


def is_lost(error: BaseException) -> bool:
    """Whether another rank has ended, and this error is only what this one notices of it."""
    return size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


# --- work ---


def part(count: int) -> slice:
    """This rank's consecutive part of `count` items; parts differ by one item at most."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


def share(items: Shared) -> Shared:
    """This rank's part of the items; raises `DataError` for fewer items than ranks."""
    if size() == 1:
        return items
    count = len(items)
    if count < size():
        raise DataError(f"{count} samples or batches cannot be shared among {size()} processes; use fewer")
    mine: Shared = items[part(count)]
    return mine


def weight(count: int) -> float:
    """What the mean over this rank's share of `count` samples weighs in the mean over all ranks; 1 for equal shares."""
    return len(share(torch.arange(count))) * size() / count if size() > 1 else 1.0


def wrap(module: nn.Module) -> nn.Module:
    """Have gradients averaged over the ranks in `backward`; on GPUs batch norm sees the samples of all ranks.

    What `forward` returns must hold all that is learnt from. Buffers are the main rank's at every `forward`.
    """
    if size() == 1:
        return module
    device = next(module.parameters()).device
    if device.type != "cuda":
        return DistributedDataParallel(module, find_unused_parameters=True)
    nn.SyncBatchNorm.convert_sync_batchnorm(module)  # replaces layers within the module
    return DistributedDataParallel(module, device_ids=[device], find_unused_parameters=True)


def only_adding(module: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Around a part of a batch: gradients are only added up, and averaged over the ranks with the `last` part."""
    wrapped = isinstance(module, DistributedDataParallel)
    return module.no_sync() if wrapped and not last else contextlib.nullcontext()  # type: ignore[operator]


def own_randomness() -> None:
    """Draw other random numbers (dropout) than the main rank from here on."""
    if rank():
        torch.manual_seed(torch.initial_seed() + rank())


# --- what all agree on ---


def gather(rows: Tensor) -> Tensor:
    """The rows `[n, ...]` of all ranks, on the CPU, in the order of the ranks; each may have another n."""
    if size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    longest = max(int(count) for count in counts)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    received = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(received, padded)
    return torch.cat([part[: int(count)] for part, count in zip(received, counts, strict=True)])


def means(scalars: list[Tensor]) -> list[Tensor]:
    """Each scalar's mean over the ranks, in float32."""
    if size() == 1:
        return scalars
    total = torch.stack(scalars).float()
    dist.all_reduce(total)
    return list(total / size())


def most(count: int) -> int:
    """The largest that any rank says."""
    if size() == 1:
        return count
    said = torch.tensor([count], dtype=torch.int32)
    dist.all_reduce(said, dist.ReduceOp.MAX)
    return int(said)


def agree(flag: bool) -> bool:
    """Whether any rank says so."""
    return bool(most(int(flag)))


def decided(flag: bool) -> bool:
    """What the main rank says."""
    return agree(flag and is_main())


def in_step(items: Iterator[Item], stop: object = False) -> Iterator[Item | None]:
    """Yield this rank's items, then None, as long as any rank has an item left; end once any rank is to `stop`."""
    while True:
        item = next(items, None)
        if most(2 if stop else int(item is not None)) != 1:
            return
        yield item


def align(network: nn.Module) -> None:
    """Give every rank the main one's buffers, such as the statistics of batch norm."""
    for buffer in network.buffers():
        broadcast(buffer)


def broadcast(values: Tensor) -> Tensor:
    """`values`, overwritten by the main rank's, which have the same shape and type."""
    if size() > 1:
        dist.broadcast(values, 0)
    return values


def barrier() -> None:
    """Wait until every rank is here."""
    agree(False)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let the main rank do it alone first, such as a download, and then the others."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def refuse_idle() -> None:
    """Raise `DataError` where this rank has no readable image for a step, and the others would wait for it."""
    if size() > 1:
        raise DataError(
            f"none of the images that process {rank()} has of a batch can be decoded: mend or remove the corrupt"
            " files, or use device.processes=1"
        )
