"""Weights in and out of networks: safetensors, and `torch.save` files of tensors. No object is unpickled."""

from __future__ import annotations

import difflib
import logging
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdistill.errors import ModelError, did_you_mean
from kdistill.files import storage_errors, write_bytes
from kdistill.fsdp import whole

__all__ = ["Match", "fit_state", "load_state", "load_weights", "save_weights", "strip_prefix"]

log = logging.getLogger("kdistill")

#: entries of a training checkpoint that may hold the network's state, the likeliest first
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "params", "model_ema", "ema")
#: what data-parallel and compiled networks and training wrappers put before every key
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
#: rows that a message lists of each kind
ROWS = 5


@dataclass(frozen=True)
class Match:
    """One row of the table of weights: what a tensor is called in the file and in the network."""

    file_key: str
    key: str
    shape: tuple[int, ...]


def load_weights(
    network: nn.Module,
    path: str | Path,
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict,
) -> list[Match]:
    """Fill a network from a user's file and log what went where; raises what `load_state` and `fit_state` do.

    `rename` brings the names of a known other version of the network up to date.
    """
    table = fit_state(network, rename(load_state(path)), str(path))
    log.info(
        "weights: %d of %d keys from %s\n%s", len(table), len(network.state_dict()), path, _as_text(table)
    )
    return table


def _as_text(table: list[Match]) -> str:
    """The table of matched keys, the middle of a long one left out."""
    width = max((len(match.file_key) for match in table), default=0)
    lines = [f"  {m.file_key:<{width}}  ->  {m.key}  {list(m.shape)}" for m in table]
    return "\n".join(lines if len(lines) <= 3 * ROWS else [*lines[:ROWS], "  ...", *lines[-ROWS:]])


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` file or of a `torch.save` file, on the CPU.

    A training checkpoint is unwrapped (`state_dict`, `model`, ...). Raises `ModelError` for a missing file,
    for one that cannot be read, and for one that holds pickled objects, which are never loaded.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelError(_missing_file(path))
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(action="ignore"):  # torch warns of what is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
        return _tensors(content, path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, ValueError, KeyError, EOFError) as ex:
        raise ModelError(_unreadable(path, ex)) from ex
    except OSError as ex:
        raise ModelError(f"cannot read {path}: {ex.strerror}") from ex


def fit_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> list[Match]:
    """Copy `state` into `network` and return the table of what went where.

    Every tensor must fit by name and shape, after a prefix on all names of the file (`module.`) is taken
    off; only batch norm's `num_batches_tracked` may be absent, as in old files. Otherwise `ModelError`, and
    the network is as before. The tensors are copied by name, and not with `load_state_dict`, because
    some networks refuse a state without the version numbers that safetensors does not keep.
    """
    own = network.state_dict()
    given = dict(state) if own.keys() == state.keys() else strip_prefix(state)
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    if (
        own.keys() - optional - given.keys()
        or given.keys() - own.keys()
        or any(tensor.shape != own[key].shape for key, tensor in given.items())
    ):
        raise ModelError(_misfit(own, given, optional, source))
    with torch.no_grad():
        for key, tensor in given.items():
            own[key].copy_(tensor)
    return [
        Match(file_key, key, tuple(tensor.shape))
        for file_key, (key, tensor) in zip(state, given.items(), strict=True)
    ]


def strip_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take `module.`, `model.`, ... off the names, as long as all names start with it."""
    stripped = dict(state)
    while stripped:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in stripped)), None)
        if prefix is None:
            break
        stripped = {key.removeprefix(prefix): tensor for key, tensor in stripped.items()}
    return stripped


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's state as safetensors; a shared tensor is written under each of its names.

    The state of a sharded network is written by all ranks together, each to its own path.
    """
    tensors = {
        key: whole(tensor).detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in network.state_dict().items()
    }
    with storage_errors(path.parent):
        write_bytes(path, safetensors.torch.save(tensors))


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the network's state in what a file holds."""
    found = content
    while isinstance(found, Mapping) and not _all_tensors(found):
        inner = next((found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)), None)
        if inner is None:
            break
        found = inner
    if isinstance(found, Mapping) and _all_tensors(found):
        return dict(found)
    holds = f"a {type(found).__name__}"
    if isinstance(found, Mapping):
        holds = f"a dict of {', '.join(map(repr, list(found)[:ROWS]))}"
    raise ModelError(
        f"{path} holds {holds}; expected the tensors of a state dict, alone or under"
        f" {' / '.join(WRAPPERS[:3])}. Write it with torch.save(network.state_dict(), PATH)"
    )


def _all_tensors(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _missing_file(path: Path) -> str:
    if path.is_dir():
        return f"weights: {path} is a folder; expected a file such as {path / 'model.safetensors'}"
    if not path.parent.is_dir():
        return f"weights: no file {path}: no folder {path.parent}. Expected null, DEFAULT or a file's path"
    hint = did_you_mean(path.name, [other.name for other in path.parent.iterdir()])
    return f"weights: no file {path}.{hint} Expected null, DEFAULT or a file's path"


def _unreadable(path: Path, ex: Exception) -> str:
    text = str(ex).lower()
    if any(
        sign in text
        for sign in ("unsupported global", "unsupported class", "unsupported operand", "torchscript")
    ):
        return (
            f"{path} holds pickled Python objects, and loading those can run any code: they are never loaded."
            " Save the tensors alone, torch.save(network.state_dict(), PATH), or as safetensors"
        )
    return f"{path} is no file of weights, or is cut off; expected safetensors or torch.save of a state dict"


def _misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor], optional: set[str], source: str) -> str:
    """A compact table of what does not fit; one line if it is only the number of classes."""
    other_shape = [key for key in own if key in given and own[key].shape != given[key].shape]
    missing = [key for key in own if key not in given and key not in optional]
    unexpected = [key for key in given if key not in own]
    if other_shape and not missing and not unexpected and _only_head(own, given, other_shape):
        key = other_shape[0]
        return (
            f"weights {source} do not fit: {key}: file has {len(given[key])} classes,"
            f" the data has {len(own[key])}. Train a network for these classes, or choose the data set"
            " that the file was trained on"
        )
    matched = len(own.keys() & given.keys()) - len(other_shape)
    lines = [f"weights {source} do not fit: {matched} of {len(own)} keys match by name and shape"]
    lines += _rows("missing in the file", [key + _nearest(key, own, given, unexpected) for key in missing])
    lines += _rows("not in the network", unexpected)
    lines += _rows(
        "other shape",
        [f"{key}: file {list(given[key].shape)}, network {list(own[key].shape)}" for key in other_shape],
    )
    return "\n".join(lines)


def _only_head(own: Mapping[str, Tensor], given: Mapping[str, Tensor], keys: list[str]) -> bool:
    """Whether only the last layer differs, and only in its number of outputs."""
    head = list(own)[-1].rpartition(".")[0]
    return all(key.rpartition(".")[0] == head and own[key].shape[1:] == given[key].shape[1:] for key in keys)


def _nearest(key: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor], names: list[str]) -> str:
    """Return ` (file has X)` for the nearest name with the same shape, or an empty string."""
    alike = [name for name in names if given[name].shape == own[key].shape]
    near = difflib.get_close_matches(key, alike, n=1, cutoff=0.6)
    return f" (file has {near[0]})" if near else ""


def _rows(title: str, rows: list[str]) -> list[str]:
    if not rows:
        return []
    shown = [f"    {row}" for row in rows[:ROWS]]
    if len(rows) > ROWS:
        shown.append(f"    and {len(rows) - ROWS} more")
    return [f"  {title} ({len(rows)}):", *shown]
