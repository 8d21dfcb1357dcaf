"""Losses between feature maps of one layer pair.

Shapes: N samples, C channels, H x W pixels. Every function takes student and teacher maps `[N, C, H, W]` in any
floating type, works in float32 (float64 stays float64), gives the teacher no gradient and returns a scalar.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.losses.precision import full_precision


def pool_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average the larger of two maps down to the smaller's height and width; channels stay."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return pool_to(student, size), pool_to(teacher, size)


def pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)


@full_precision
def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """(student - teacher)^2, mean over everything; both `[N, C, H, W]`, adapted before.

    The paper has half the sum of squares; the published weight 100 belongs to this mean.

    Source: A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep
    Nets", ICLR 2015, arXiv 1412.6550.
    """
    return F.mse_loss(student, teacher)


@full_precision
def attention_loss(student: Tensor, teacher: Tensor, p: float) -> Tensor:
    """(Q_s / |Q_s| - Q_t / |Q_t|)^2, mean over samples and pixels; Q = mean over channels of |map|^p.

    |Q| is the L2 norm over a sample's pixels. Channels may differ; the larger map is pooled to the smaller.
    The paper has the norm of the difference, not squared; the published weight 1000 belongs to this mean.

    Args:
        p: power, >= 1 (below 1 the gradient at an activation of 0 is not finite).

    Source: S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving the Performance of
    Convolutional Neural Networks via Attention Transfer", ICLR 2017, arXiv 1612.03928.
    """
    student, teacher = pool_to_smaller(student, teacher)
    return (_attention(student, p) - _attention(teacher, p)).square().mean()


def _attention(maps: Tensor, p: float) -> Tensor:
    return F.normalize(maps.abs().pow(p).mean(1).flatten(1), dim=1)


@full_precision
def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between channels, kernel k(a, b) = (a . b)^2, mean over the samples.

    A channel is its H * W pixels at L2 norm 1; per sample mean k(s, s') + mean k(t, t') - 2 mean k(s, t), each a
    mean over all pairs of channels. Channels may differ; the larger map is pooled to the smaller.

    Source: Z. Huang, N. Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
    arXiv 1707.01219.
    """
    student, teacher = (F.normalize(m.flatten(2), dim=2) for m in pool_to_smaller(student, teacher))
    return _kernel(student, student) + _kernel(teacher, teacher) - 2 * _kernel(student, teacher)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.transpose(1, 2)).square().mean()


@full_precision
def vid_loss(student: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """((student - teacher)^2 / variance + log variance) / 2, mean over everything; it may be negative.

    That is the negative log-likelihood of the teacher's map under a Gaussian around what a regressor made
    of the student's, up to a constant.

    Args:
        student: `[N, C, H, W]`, the regressor's output.
        variance: `[C]`, > 0.

    Source: S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai, "Variational Information Distillation for
    Knowledge Transfer", CVPR 2019, arXiv 1904.05835.
    """
    variance = variance.view(-1, 1, 1)
    return 0.5 * ((student - teacher).square() / variance + variance.log()).mean()


@full_precision
def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss: mean squared errors of maps pooled to 4, 2 and 1, and not pooled; their mean.

    Weights are 1 for the whole map, then 1/2, 1/4, 1/8 in turn; the sum is divided by the sum of weights. Pool
    sizes that are not below the map's height and width are left out, and take no weight. Both `[N, C, H, W]`.

    Source: P. Chen, S. Liu, H. Zhao, J. Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021,
    arXiv 2104.09044.
    """
    sizes = [size for size in (4, 2, 1) if size < min(student.shape[2:])]
    errors = [F.mse_loss(student, teacher)]
    errors += [F.mse_loss(pool_to(student, (s, s)), pool_to(teacher, (s, s))) for s in sizes]
    weights = [0.5**level for level in range(len(errors))]
    weighted = [weight * error for weight, error in zip(weights, errors, strict=True)]
    return torch.stack(weighted).sum() / sum(weights)
