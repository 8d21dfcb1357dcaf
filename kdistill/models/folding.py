"""A network that only answers needs no batch norm of its own: the convolution before it can do its work."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from kdistill.models.classifier import Classifier
from kdistill.models.rewriting import NEW, RELU, Graph, rewritten

#: what a batch norm can be folded into; subclasses may do other things with their weights
FOLDED_INTO: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: fuse_linear_bn_eval,
    nn.Conv1d: fuse_conv_bn_eval,
    nn.Conv2d: fuse_conv_bn_eval,
    nn.Conv3d: fuse_conv_bn_eval,
}


def fold_batch_norm(network: Classifier, images: Tensor) -> Classifier:
    """The same function, with each batch norm right behind a convolution or linear layer folded into its weights.

    In evaluation mode a batch norm is a scale and a shift of each channel, so this is one pass over the activations
    less; logits differ by rounding (about 1e-6). The ReLU behind it works in place. `images` `[N, C, H, W]` are what
    it is tried on: `network` itself, in evaluation mode, comes back where there is nothing to fold, torch.fx cannot
    follow its code, or the answers are not the same.
    B. Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only
    inference, 2017, arXiv 1712.05877, section 3.2.
    """
    return rewritten(network, _fold, images, "batch norm stays as it is")


def _fold(graph: Graph) -> bool:
    found = False
    for node in graph.nodes:
        norm, before = graph.layer(node), node.args[0] if node.args else None
        # one without running statistics takes the batch's own, also in evaluation
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            continue
        layer = graph.layer(before)
        if not isinstance(before, fx.Node) or layer is None or len(before.users) > 1:
            continue
        fold = FOLDED_INTO.get(type(layer))
        if fold is not None:
            graph.replace(before, fold(layer, norm))
            graph.remove(node, before)
            found = True
    _rectify_in_place(graph)
    return found


def _rectify_in_place(graph: Graph) -> None:
    """Let each ReLU write over its input where nobody else wants that: fewer bytes move, the same bits come out."""
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if graph.does(node) not in RELU or not isinstance(before, fx.Node):
            continue
        if graph.does(before) in NEW and len(before.users) == 1:
            with graph.traced.graph.inserting_before(node):
                in_place = graph.traced.graph.call_function(F.relu, (before,), {"inplace": True})
            graph.remove(node, in_place)
