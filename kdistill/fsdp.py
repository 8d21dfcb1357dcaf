"""Networks that are too large for one device: each rank holds a part of every parameter (FSDP2).

The parameters of a network, and with them gradients and optimizer state, are cut along their first axis. What a unit of
the network needs is gathered just before it runs and let go right after it, forwards and backwards, so that a rank
holds its part and a unit or two. All ranks must run a sharded network equally often, in the same order.

Source: S. Rajbhandari, J. Rasley, O. Ruwase, Y. He, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020, arXiv 1910.02054; Y. Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data
Parallel", VLDB 2023, arXiv 2304.11277.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdistill import ranks
from kdistill.errors import ModelError

if TYPE_CHECKING:  # importing torch's sharding takes a second: only those wait for it who use it
    from torch.distributed.device_mesh import DeviceMesh

#: parameters from which a block is gathered by itself; smaller ones are gathered together with what is around them
UNIT = 1_000_000


def check(network: nn.Module) -> None:
    """Raise `ModelError` for a network that cannot be sharded."""
    names: dict[nn.Parameter, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if not parameter.ndim:
            raise ModelError(
                f"device.shard=true cannot cut the parameter {name}, a single number; use device.shard=false"
            )
        if parameter in names:
            raise ModelError(
                f"device.shard=true cannot cut the parameter {name}, which is also {names[parameter]};"
                " use device.shard=false"
            )
        names[parameter] = name


def units(network: nn.Module) -> Iterator[nn.Module]:
    """The blocks of the network's chains (`nn.Sequential`, also within each other) with at least `UNIT` parameters.

    A block of a chain is certain to be run as a module, which is when its parameters are gathered; a layer within
    it may only be asked for its weight.
    """
    for child in network.children():
        if not isinstance(network, nn.Sequential) or isinstance(child, nn.Sequential):
            yield from units(child)
        elif sum(parameter.numel() for parameter in child.parameters()) >= UNIT:
            yield child


def shard(network: nn.Module, device: torch.device, *, trained: bool = False, keep: bool = False) -> None:
    """Move a network to `device`, unit by unit, and leave each rank its part; all ranks have the same network before.

    Of one that is not `trained`, only answers can be had. With `keep`, what was gathered for the forward pass is kept
    for the backward pass: needed where a loss looks into the network.
    """
    from torch.distributed.fsdp import fully_shard

    if trained and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # replaces layers within the network
    for unit in [*units(network), network]:
        fully_shard(unit, mesh=_mesh(device.type), reshard_after_forward=not keep)
    forget = getattr(network, "reset_iter_state", None)  # not in older versions of torch
    if (
        forget is not None and not trained
    ):  # what is noted of each forward for its backward, which never comes
        network.register_forward_hook(lambda *_: forget())


def lead(step: nn.Module, device: torch.device) -> nn.Module:
    """Have `step` lead the sharded networks that it runs.

    When backward through what it returns is over, the gradients of all are complete, whichever of their outputs
    that depends on.
    """
    from torch.distributed.fsdp import fully_shard

    leader = fully_shard(step, mesh=_mesh(device.type))
    leader._get_fsdp_state()._lazy_init()  # else what runs first would lead: a network in validation
    return step


@cache
def _mesh(device_type: str) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (ranks.size(),))


# --- tensors of sharded networks ---


def is_sharded(tensor: Any) -> bool:
    """Whether this is a `DTensor`, told without importing it."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, sharded or not; all ranks call this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What this rank holds of each tensor: a view of its part of a sharded one."""
    return [t.to_local() if is_sharded(t) else t for t in tensors]  # type: ignore[attr-defined]


def gathered(state: Any) -> Any:
    """A state with all of each sharded tensor in it, on the CPU of the main rank; the others get None for it."""
    if is_sharded(state):
        tensor = whole(state)
        return tensor.cpu() if ranks.is_main() else None
    if isinstance(state, Mapping):
        return {name: gathered(value) for name, value in state.items()}
    return [gathered(value) for value in state] if isinstance(state, list) else state


def cut_like(like: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of whole tensors, each cut as the one of the same name in `like`."""
    return {name: cut(tensor, like[name]) for name, tensor in state.items()}


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that all ranks have whole, cut as `like`; as it is where that is not sharded or has another shape."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
