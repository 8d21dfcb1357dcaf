"""Losses between the relations of samples within a batch: the widths of student and teacher may differ.

Shapes: N samples, D features. Every function takes vectors `[N, D_student]` and `[N, D_teacher]` in any floating
type, works in float32 (float64 stays float64), gives the teacher no gradient and returns a scalar. With one
sample there are no relations: ConfigError.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.errors import ConfigError
from kdistill.losses.precision import full_precision

#: Vectors shorter than this share of their mean length are not stretched to length 1: see `_unit`.
SHORT = 1e-3


@full_precision
def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """|G_s - G_t|_F^2 / N^2, where G = x x^T with rows at L2 norm 1.

    Source: F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682.
    """
    _need_pairs("sp", student)
    difference = _unit(student @ student.T) - _unit(teacher @ teacher.T)
    return difference.square().mean()


@full_precision
def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """smooth_l1 between distances of samples, each divided by their mean; mean over N^2, diagonal included.

    The mean distance is over pairs that are apart. Embeddings are not normalised (some implementations do).

    Source: W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.
    """
    _need_pairs("rkd", student)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def _relative_distances(vectors: Tensor) -> Tensor:
    # differences, not products: the distance of a vector to itself is then exactly 0, with gradient 0
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / distances.count_nonzero().clamp(min=1)
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)


@full_precision
def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """smooth_l1 between the cosines of the angle at sample i from j to k; mean over N^3, i = j included.

    Where j and i are (almost) the same point there is no angle; the cosine is then near 0 and its gradient
    small: see `_unit`. Memory: N^2 * D and N^3 numbers.

    Source: W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.
    """
    _need_pairs("rkd", student)
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _cosines(vectors: Tensor) -> Tensor:
    directions = _unit(vectors[None] - vectors[:, None])
    return directions @ directions.transpose(1, 2)


@full_precision
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """p_t * log((p_t + eps) / (p_s + eps)), mean over N^2; p = (cosine + 1) / 2 with rows of sum 1, eps 1e-7.

    p[i, j] is the probability of sample j given i, i itself included. The published weight 30000 belongs to the
    mean over N^2: a row's divergence divided by N.

    Source: N. Passalis, A. Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV
    2018, arXiv 1803.10837.
    """
    _need_pairs("pkt", student)
    p_student, p_teacher = _conditional(student), _conditional(teacher)
    return (p_teacher * ((p_teacher + 1e-7) / (p_student + 1e-7)).log()).mean()


def _conditional(vectors: Tensor) -> Tensor:
    directions = _unit(vectors)
    kernel = ((directions @ directions.T + 1) / 2).clamp(min=0)  # rounding may say a cosine below -1
    return kernel / kernel.sum(1, keepdim=True)


def _unit(vectors: Tensor) -> Tensor:
    """x / max(|x|, floor) along the last axis; floor is `SHORT` of the mean length of all the vectors.

    A vector of length 0 has no direction, and near 0 the gradient of the direction grows as 1 / |x|. The floor
    keeps it below 1000 / mean length, leaves all others as they are, and does not mind the unit of length.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    floor = (SHORT * lengths.detach().mean()).clamp(min=torch.finfo(lengths.dtype).tiny)
    return vectors / torch.maximum(lengths, floor)


def _need_pairs(method: str, vectors: Tensor) -> None:
    if len(vectors) < 2:
        raise ConfigError(
            f"{method} compares the samples of a batch with each other: it needs at least 2, got {len(vectors)};"
            " raise student.batch_size or lower student.optim.accumulate"
        )
