"""Features of any network: tapping layers by name, and finding those that are worth tapping.

A layer is named as in the plain network `network.net` (`stages.1`); `head@in` is what goes into the module
`head`. Maps are `[N, C, H, W]`, tokens `[N, L, D]`, vectors `[N, D]`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdistill.errors import ConfigError, did_you_mean
from kdistill.losses.outputs import Outputs

#: ends the name of a layer whose input is meant, not its output
INPUT = "@in"
#: how many blocks of a network of tokens are proposed
BLOCKS = 4


@dataclass(frozen=True)
class Layer:
    """What can be tapped: its name, and its shape without the batch axis."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Event:
    """A module has run: what it took and gave, without the batch axis."""

    name: str
    module: nn.Module
    took: tuple[int, ...]
    gave: tuple[int, ...]

    @property
    def resolution(self) -> tuple[int, ...]:
        return self.gave[1:]

    @property
    def is_leaf(self) -> bool:
        return next(self.module.children(), None) is None

    @property
    def changes_resolution(self) -> bool:
        return len(self.took) == len(self.gave) == 3 and self.took[1:] != self.gave[1:]


@dataclass(frozen=True)
class _Pass:
    """What a dry pass shows: what ran, in order; the shape of what `net` took; the module that makes the logits."""

    events: list[_Event]
    took: tuple[int, ...]
    head: str
    """Its name; empty if no linear layer or convolution does."""


# --- tapping ---


def observe(network: nn.Module, images: Tensor, layers: Sequence[str]) -> Outputs:
    """Run `network` once on images `[N, C, H, W]`, and collect what the named layers of `network.net` give.

    Gradients flow through the features. A module that runs several times gives its last output, one with
    several outputs the first tensor. A tensor that the network goes on to change in place (by an in-place
    ReLU right behind the layer) is seen as changed. Raises `ConfigError` for a layer that is not there,
    gives no tensor or does not run, and for a compiled network, where hooks are ignored.
    """
    if not layers:
        return Outputs(network(images))
    if _is_compiled(network):
        raise ConfigError(
            "feature losses need device.compile=false: a compiled network does not show its layers"
        )
    modules = dict(_net(network).named_modules())
    features: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        # a hook on the output gets (args, kwargs, output), one on the input (args, kwargs)
        value = _first_tensor([args, rest[0]]) if name.endswith(INPUT) else _first_tensor(rest[1])
        if value is None:
            raise ConfigError(f"layer {name!r} gives no tensor and cannot be tapped")
        features[name] = value

    handles = []
    try:
        for name in layers:
            check_layer(name, modules, "network")
            module, hook = modules[_module_of(name)], partial(keep, name)
            if name.endswith(INPUT):
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
        logits: Tensor = network(images)
    finally:
        for handle in handles:
            handle.remove()
    for name in layers:
        if name not in features:
            raise ConfigError(
                f"layer {name!r} does not run: the network uses it otherwise, and it cannot be tapped"
            )
    return Outputs(logits, features)


def check_layer(name: str, known: Sequence[str] | Mapping[str, object], role: str) -> None:
    """Raise `ConfigError` with near matches for a layer that is not among `known`; `X@in` needs X."""
    if not name or not (name in known or _module_of(name) in known):
        raise ConfigError(
            f"{role} has no layer {name!r}.{did_you_mean(_module_of(name), filter(None, known))}"
            " `kdistill list layers` shows them"
        )


# --- what there is to tap ---


def all_layers(network: nn.Module, images: Tensor) -> list[Layer]:
    """Every module of `network.net` that gives a tensor, in the order of running; `network` stays as it is."""
    return [Layer(event.name, event.gave) for event in _dry_pass(network, images).events]


def candidates(network: nn.Module, images: Tensor) -> list[Layer]:
    """The layers that are worth tapping, in the order of running; `network` stays as it is.

    Those are the last map of each resolution; for a network of tokens, up to four evenly spaced blocks;
    for one of vectors, what each hidden linear layer gives after its activation. The embedding `X@in`
    comes last, where a linear layer or convolution X makes the logits.
    """
    seen = _dry_pass(network, images)
    found = _stages(seen.events, seen.took[1:])
    if len(found) < 2 and (blocks := _blocks(seen.events)):
        found = blocks
    found = found or _hidden(seen.events, seen.head)
    embedding = [Layer(e.name + INPUT, e.took) for e in seen.events if e.name == seen.head]
    return [*(Layer(event.name, event.gave) for event in found), *embedding]


def _stages(events: Sequence[_Event], size: tuple[int, ...]) -> list[_Event]:
    """The last map of each resolution, as the whole stage gives it, not a part of the block that comes next."""
    blocks = [e.name for e in events if e.changes_resolution and not isinstance(e.module, nn.Sequential)]
    # trunks run through several resolutions, and global pools leave the trunk
    maps = [
        event
        for event in events
        if _is_map(event.gave, size) and not _is_adaptive(event.module) and not _is_trunk(event, events)
        if not any(event.name.startswith(block + ".") for block in blocks)
    ]
    if not _shrinks_to_a_point(maps):
        maps = [event for event in maps if event.resolution != (1, 1)]  # squeeze and excitation
    if not maps:
        return []
    composed = {event.resolution: event for event in maps if not event.is_leaf}
    last = {event.resolution: event for event in maps}
    chosen = {**last, **composed} if len(composed) < 2 else composed
    chosen[maps[-1].resolution] = maps[-1]  # what is pooled, be it a leaf
    return sorted(chosen.values(), key=events.index)


def _is_map(shape: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether height and width are in the images' proportion, up to rounding; [H, W, C] would not be."""
    if len(shape) != 3:
        return False
    height, width = size
    return abs(shape[1] / height - shape[2] / width) <= 1 / height + 1 / width


def _is_adaptive(module: nn.Module) -> bool:
    """Whether this is a pool to a fixed size, torch's or timm's."""
    return "Adaptive" in type(module).__name__


def _is_trunk(event: _Event, events: Sequence[_Event]) -> bool:
    """Whether the module's own parts give maps of several resolutions one after another."""
    if not isinstance(event.module, nn.Sequential):
        return False
    parts = {f"{event.name}.{part}" for part, _ in event.module.named_children()}
    return len({part.resolution for part in events if part.name in parts and len(part.gave) == 3}) > 1


def _shrinks_to_a_point(maps: Sequence[_Event]) -> bool:
    """Whether the images are so small that the network itself reaches 1 x 1, not only a global pool."""
    return any(e.changes_resolution and e.resolution == (1, 1) for e in maps)


def _blocks(events: Sequence[_Event]) -> list[_Event]:
    """Evenly spaced blocks of tokens: of the siblings of one class and one shape, the largest family."""
    families: dict[tuple[str, type, tuple[int, ...]], list[_Event]] = defaultdict(list)
    for event in events:
        if len(event.gave) == 2 and not event.is_leaf:
            families[event.name.rpartition(".")[0], type(event.module), event.gave].append(event)
    family = max(families.values(), key=len, default=[])
    count = min(BLOCKS, len(family))
    return [family[round((i + 1) * len(family) / count) - 1] for i in range(count)]


def _hidden(events: Sequence[_Event], head: str) -> list[_Event]:
    """After each hidden linear layer, the last vector before the next linear layer starts."""
    found: list[_Event] = []
    for event in events:
        linears = sum(isinstance(module, nn.Linear) for module in event.module.modules())
        if event.name == head:
            break
        if len(event.gave) != 1 or linears > 1:
            continue
        if isinstance(event.module, nn.Linear):
            found.append(event)
        elif found and event.gave == found[-1].gave:
            found[-1] = event
    return found


@torch.no_grad()
def _dry_pass(network: nn.Module, images: Tensor) -> _Pass:
    """Run one image."""
    events: dict[str, _Event] = {}
    linear: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        given, taken = _first_tensor(output), _first_tensor([args, kwargs])
        if given is not None:
            events.pop(name, None)  # a module that runs again moves to the end
            took = () if taken is None else tuple(taken.shape[1:])
            events[name] = _Event(name, module, took, tuple(given.shape[1:]))
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                linear[name] = given

    hooks = [
        module.register_forward_hook(partial(keep, name), with_kwargs=True)
        for name, module in _net(network).named_modules()
    ]
    try:
        with _undisturbed(network, images):
            logits = network.forward(images[:1])  # not called: hooks are ignored where it is compiled
    finally:
        for hook in hooks:
            hook.remove()
    whole = events.pop("")
    makers = [name for name, given in linear.items() if torch.equal(given.flatten(1), logits.flatten(1))]
    return _Pass(list(events.values()), whole.took, max(makers, key=list(events).index, default=""))


@contextmanager
def _undisturbed(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Evaluation mode, and afterwards every module's mode and the random generators as before."""
    modes = {module: module.training for module in network.modules()}
    devices = [images.device] if images.device.type == "cuda" else []
    network.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


# --- SimKD's classifier ---


def teacher_head(network: nn.Module, images: Tensor, last_map: str) -> nn.Linear:
    """A frozen copy of the teacher's last linear layer, for a student that reuses it (SimKD).

    Raises `ConfigError` unless the teacher ends in global average pooling of `last_map` and one linear layer:
    on these images, that must be what the layer is given.
    """
    name = _dry_pass(network, images).head
    embedding = name + INPUT
    linear = _net(network).get_submodule(name)
    with torch.no_grad(), _undisturbed(network, images):
        seen = observe(network, images, [last_map, embedding] if name else [last_map]).features
    if not isinstance(linear, nn.Linear) or not _is_pooled(seen[embedding], seen[last_map]):
        shapes = ", ".join(f"{layer} is {list(found.shape[1:])}" for layer, found in seen.items())
        raise ConfigError(
            "SimKD reuses the teacher's classifier: the teacher must end in global average pooling of the layer"
            f" {last_map!r} and one linear layer. It does not ({shapes})"
        )
    head = nn.Linear(linear.in_features, linear.out_features).to(linear.weight)
    with torch.no_grad():
        head.weight.copy_(linear.weight)
        head.bias.zero_() if linear.bias is None else head.bias.copy_(linear.bias)
    return head.requires_grad_(False)


def _is_pooled(vectors: Tensor, maps: Tensor) -> bool:
    if maps.ndim != 4:
        return False
    pooled = F.adaptive_avg_pool2d(maps, 1).flatten(1)
    return pooled.shape == vectors.shape and torch.allclose(pooled, vectors, rtol=1e-3, atol=1e-5)


# --- small parts ---


def _net(network: nn.Module) -> nn.Module:
    net: nn.Module = network.net  # type: ignore[assignment]
    return net


def _module_of(name: str) -> str:
    return name.removesuffix(INPUT)


def _is_compiled(network: nn.Module) -> bool:
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in network.modules()
    )


def _first_tensor(value: Any) -> Tensor | None:
    """The first tensor in a value of tensors, tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)
