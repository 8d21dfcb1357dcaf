"""A network that only answers needs no batch norm of its own: the convolution before it can do its work."""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from kdistill.models.classifier import Classifier

log = logging.getLogger("kdistill")
#: the largest difference of logits, as a part of the largest logit, that counts as rounding
ROUNDING = 1e-4
#: what a batch norm can be folded into; subclasses may do other things with their weights
FOLDED_INTO: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: fuse_linear_bn_eval,
    nn.Conv1d: fuse_conv_bn_eval,
    nn.Conv2d: fuse_conv_bn_eval,
    nn.Conv3d: fuse_conv_bn_eval,
}
RELU = (nn.ReLU, F.relu, torch.relu)
#: what gives memory of its own, not a view of its input
NEW = (*FOLDED_INTO, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, operator.add)


def fold_batch_norm(network: Classifier, images: Tensor) -> Classifier:
    """The same function, with each batch norm right behind a convolution or linear layer folded into its weights.

    In evaluation mode a batch norm is a scale and a shift of each channel, so this is one pass over the activations
    less; logits differ by rounding (about 1e-6). The ReLU behind it works in place. `images` `[N, C, H, W]` are what
    it is tried on: `network` itself, in evaluation mode, comes back where there is nothing to fold, torch.fx cannot
    follow its code, or the answers are not the same.
    B. Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
    inference, 2017, arXiv 1712.05877, section 3.2.
    """
    network.eval()
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return network
    try:
        folded = network.with_net(_folded(network.net)).eval()
        with torch.no_grad():
            expected, got = network(images), folded(images)
    except Exception as error:  # whatever the code of anybody's network does with the stand-ins of torch.fx
        log.debug("batch norm stays as it is: torch.fx cannot follow the network: %s", error)
        return network
    if not torch.allclose(expected, got, rtol=0, atol=ROUNDING * float(expected.abs().max())):
        log.debug("batch norm stays as it is: folded, the network answers otherwise")
        return network
    return folded


def _folded(net: nn.Module) -> fx.GraphModule:
    """`net`, which keeps its own modules, as a graph of calls without the batch norms that can be folded."""
    traced = fx.symbolic_trace(net)
    modules = dict(traced.named_modules())
    nodes = [node for node in traced.graph.nodes if node.op == "call_module"]
    calls = Counter(str(node.target) for node in nodes)
    for node in nodes:
        norm, before = modules[str(node.target)], node.args[0]
        # one without running statistics takes the batch's own, also in evaluation
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            continue
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        name = str(before.target)
        fold = FOLDED_INTO.get(type(modules[name]))
        if fold is None or calls[name] > 1:
            continue
        traced.set_submodule(name, fold(modules[name], norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    _rectify_in_place(traced)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _rectify_in_place(traced: fx.GraphModule) -> None:
    """Let each ReLU write over its input where nobody else wants that: fewer bytes move, the same bits come out."""
    modules = dict(traced.named_modules())

    def does(node: fx.Node) -> object:
        return type(modules[str(node.target)]) if node.op == "call_module" else node.target

    for node in traced.graph.nodes:
        before = node.args[0] if node.args else None
        if does(node) not in RELU or not isinstance(before, fx.Node):
            continue
        if does(before) in NEW and len(before.users) == 1:
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(traced.graph.call_function(F.relu, (before,), {"inplace": True}))
            traced.graph.erase_node(node)
