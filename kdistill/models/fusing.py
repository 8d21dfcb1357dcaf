"""A network that only answers, on a CPU: sums and ReLUs are done while the convolution before them writes."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from kdistill.models.classifier import Classifier
from kdistill.models.rewriting import NEW, RELU, Graph, rewritten

SUMS = (operator.add, operator.iadd, torch.add)


def fuse_relu(
    network: Classifier,
    images: Tensor,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Classifier:
    """The same function, with each sum and ReLU right behind a convolution done as its output is written.

    The activations are in the processor's registers then, so that this saves a pass over memory for each of them;
    logits differ by rounding. It takes PyTorch's oneDNN operators, those that its own compiler calls on CPUs.
    `images` `[N, C, H, W]` are what it is tried on, in float32 and under `autocast`: `network` itself, in evaluation
    mode, comes back where there is nothing to fuse, this PyTorch or processor has no such operator, or the answers are
    not the same. The network that comes back can only be asked, without gradients.
    """
    fused = rewritten(network, _fuse, images, "sums and ReLUs stay as they are")
    if fused is network:
        return network
    try:
        with torch.no_grad(), autocast():
            fused(images)
    except RuntimeError:  # no such operator for the lower precision on this processor
        return network
    return fused


class FusedConv2d(nn.Module):
    """`conv(x)`, and `conv(x) + other` written over `other`, rectified where that is asked for; without gradients."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        self.conv = conv
        self.relu = relu

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        conv, relu = self.conv, "relu" if self.relu else None
        # autocast does not know these operators
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        bias = None if conv.bias is None else conv.bias.to(dtype)
        about = conv.weight.to(dtype), bias, conv.padding, conv.stride, conv.dilation, conv.groups
        if other is None:
            result: Tensor = torch.ops.mkldnn._convolution_pointwise(x.to(dtype), *about, relu, [], None)
        else:
            result = torch.ops.mkldnn._convolution_pointwise_.binary(
                other.to(dtype), x.to(dtype), *about, "add", 1.0, relu, [], None
            )
        return result


def _fuse(graph: Graph) -> bool:
    found = False
    position = {node: number for number, node in enumerate(graph.nodes)}
    for node in position:
        conv = graph.layer(node)
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        last, added = node, None
        if _is_alone(last) and (added := _added(graph, last, last.next, position)) is not None:
            last = last.next
        relu = _is_alone(last) and graph.does(last.next) in RELU and last.next.args[0] is last
        if relu:
            last = last.next
        if last is node:
            continue
        graph.replace(node, FusedConv2d(conv, relu=relu))
        if added is not None:
            node.args = (*node.args, added)
        after = last.next
        while node.next is not after:
            graph.remove(node.next, node)
        found = True
    return found


def _is_alone(node: fx.Node) -> bool:
    """Whether its result is wanted by the call right behind it and nobody else."""
    return list(node.users) == [node.next]


def _added(graph: Graph, node: fx.Node, total: fx.Node, position: dict[fx.Node, int]) -> fx.Node | None:
    """What `total` adds to the result of `node` and what may be written over; None where there is no such thing.

    It may where it has memory of its own, all others that want it had it before, and made something new of it; and
    where the convolution does not read it: it would find what it has written itself.
    """
    if graph.does(total) not in SUMS or len(total.args) != 2 or total.kwargs:
        return None
    others = [one for one in total.args if one not in (node, node.args[0])]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    other = others[0]
    earlier = [user for user in other.users if user is not total]
    may = all(position[user] < position[total] and _is_new(graph, user) for user in earlier)
    return other if may and _is_new(graph, other) else None


def _is_new(graph: Graph, node: fx.Node) -> bool:
    """Whether a call's result is in memory that nobody else looks at."""
    if graph.does(node) in RELU:
        before = node.args[0]
        return isinstance(before, fx.Node) and len(before.users) == 1 and _is_new(graph, before)
    return graph.does(node) in (*NEW, FusedConv2d)
