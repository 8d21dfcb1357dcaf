"""A network that only answers, with its graph of calls rewritten to answer sooner, or as it was."""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kdistill.models.classifier import Classifier

log = logging.getLogger("kdistill")
#: the largest difference of logits, as a part of the largest logit, that counts as rounding
ROUNDING = 1e-4
RELU = (nn.ReLU, F.relu, torch.relu)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
#: what gives memory of its own, not a view of its input
NEW = (nn.Linear, *CONVOLUTIONS, *BATCH_NORMS, nn.MaxPool2d, nn.AvgPool2d, operator.add)


def rewritten(network: Classifier, rewrite: Callable[[Graph], bool], images: Tensor, what: str) -> Classifier:
    """`network`, in evaluation mode, with its graph changed by `rewrite`; the layers of `network` stay its own.

    `rewrite` says whether it found anything to change. `images` `[N, C, H, W]` are what the new network is tried on:
    `network` itself comes back where there was nothing, torch.fx cannot follow its code, or the answers are not the
    same up to rounding. `what` is said of it then, in the log.
    """
    network.eval()
    try:
        graph = Graph(network.net)
        if not rewrite(graph):
            return network
        new = network.with_net(graph.compiled()).eval()
        with torch.no_grad():
            expected, got = network(images), new(images)
    except Exception as error:  # whatever the code of anybody's network does with the stand-ins of torch.fx
        log.debug("%s: %s", what, error)
        return network
    if not torch.allclose(expected, got, rtol=0, atol=ROUNDING * float(expected.abs().max())):
        log.debug("%s: rewritten, the network answers otherwise", what)
        return network
    return new


class Graph:
    """What a network calls, in its order, and the layers that it calls."""

    def __init__(self, net: nn.Module) -> None:
        self.traced = fx.symbolic_trace(net)
        self.calls = Counter(str(node.target) for node in self.nodes if node.op == "call_module")
        for node in self.nodes:
            if self.does(node) is nn.Identity and node.args and isinstance(node.args[0], fx.Node):
                self.remove(node, node.args[0])  # it would stand between two calls that may become one

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.traced.graph.nodes)

    def layer(self, node: object) -> nn.Module | None:
        """The layer that a node calls, None where it calls something else, or that layer is called elsewhere, too."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or self.calls[str(node.target)] > 1:
            return None
        return self.traced.get_submodule(str(node.target))

    def does(self, node: fx.Node) -> object:
        """The kind of layer, or the function or method, that a node calls."""
        return type(self.traced.get_submodule(str(node.target))) if node.op == "call_module" else node.target

    def replace(self, node: fx.Node, layer: nn.Module) -> None:
        """Let a node call another layer than before."""
        self.traced.set_submodule(str(node.target), layer)

    def remove(self, node: fx.Node, result: fx.Node) -> None:
        """Take a node out, whose result is now that of another one."""
        node.replace_all_uses_with(result)
        self.traced.graph.erase_node(node)

    def compiled(self) -> fx.GraphModule:
        self.traced.delete_all_unused_submodules()
        self.traced.recompile()
        return self.traced
