"""Metrics of several classes at once: labels float `[N, K]` in {0, 1}."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.metrics.calibration import calibration_gap, scaled_scores


def average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Area under precision over recall, as a sum of steps, in [0, 1]; samples of equal score are one step.

    `scores`: `[N]`; `relevant`: bool `[N]`, at least one of them true.
    """
    order = scores.argsort(descending=True)
    ranked, hits = scores[order], relevant[order].double().cumsum(0)
    step_ends = torch.cat([ranked[1:] != ranked[:-1], ranked.new_ones(1, dtype=torch.bool)])
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device)
    recall = hits[step_ends] / hits[-1]
    return (precision[step_ends] * recall.diff(prepend=recall.new_zeros(1))).sum().item()


def by_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Average precision of each class, float64 `[K]`; nan for a class that no sample has."""
    relevant = labels > 0.5
    values = torch.full((logits.shape[1],), torch.nan, dtype=torch.float64)
    for k in relevant.any(dim=0).nonzero().flatten().tolist():
        values[k] = average_precision(logits[:, k], relevant[:, k])
    return values


def mean_average_precision(logits: Tensor, labels: Tensor) -> float:
    """Mean of the average precision over the classes that some sample has; 0 when there is none."""
    return by_class(logits, labels).nanmean().nan_to_num().item()


def by_sample(logits: Tensor, labels: Tensor) -> Tensor:
    """What each sample brings to `mean_average_precision`, float64 `[N]`; the mean over the samples is that score.

    Average precision is no mean over samples. So this is the score and how much more of it there is with the sample
    than without, times N - 1: the jackknife's pseudo-values, centred (D. D. Dorfman, K. S. Berbaum, C. E. Metz,
    "Receiver operating characteristic rating analysis", 1992, use them to compare readers on the same cases).
    """
    relevant = labels > 0.5
    known = relevant.any(dim=0).nonzero().flatten().tolist()
    gains = [_gains(logits[:, k], relevant[:, k]) for k in known]
    mean = torch.stack(gains).mean(dim=0) if gains else torch.zeros(len(logits), dtype=torch.float64)
    return mean_average_precision(logits, labels) + mean - mean.mean()


def _gains(scores: Tensor, relevant: Tensor) -> Tensor:
    """N - 1 times what average precision loses without each sample, float64 `[N]`; 0 for the only relevant one.

    Average precision is the mean, over the relevant samples, of the precision among all that score as high or higher.
    Without a sample, that changes for those that score as high as it or lower.
    """
    order = scores.argsort(descending=True)
    ranked, hit = scores[order], relevant[order].double()
    _, step, sizes = ranked.unique_consecutive(return_inverse=True, return_counts=True)
    ends = sizes.cumsum(0)
    found, rank = hit.cumsum(0)[ends - 1][step], ends[step].double()
    others = (rank - 1).clamp(min=1)

    def above(terms: Tensor) -> Tensor:
        """Sum of the terms of the samples that score higher than each."""
        return torch.cat([terms.new_zeros(1), terms.cumsum(0)])[(ends - sizes)[step]]

    whole, missed, taken = hit * found / rank, hit * found / others, hit * (found - 1) / others
    without_other = above(whole) + missed.sum() - above(missed)
    without_hit = above(whole) + taken.sum() - above(taken) - taken
    total = hit.sum()
    without = torch.where(hit > 0, without_hit / (total - 1).clamp(min=1), without_other / total)
    gains = (len(scores) - 1) * (whole.sum() / total - without)
    return torch.empty_like(gains).index_copy_(0, order, gains.where((hit == 0) | (total > 1), 0))


def micro_f1(logits: Tensor, labels: Tensor) -> float:
    """F1 of all decisions together, at probability 1/2, in [0, 1]; 0 when nothing is there or found."""
    found, relevant = logits > 0, labels > 0.5
    hits = (found & relevant).sum().item()
    return 2 * hits / max(1, (found.sum() + relevant.sum()).item())


def exact_match(logits: Tensor, labels: Tensor) -> float:
    """Share of the samples with all classes right, at probability 1/2, in [0, 1]."""
    return ((logits > 0) == (labels > 0.5)).all(dim=1).double().mean().item()


def nll(logits: Tensor, labels: Tensor) -> float:
    """Binary cross entropy, mean over samples and classes, in nats."""
    return F.binary_cross_entropy_with_logits(logits.double(), labels.double()).item()


def brier(logits: Tensor, labels: Tensor) -> float:
    """Squared distance of the probabilities from the labels, mean over samples and classes, in [0, 1]."""
    return (logits.double().sigmoid() - labels).square().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error of all probabilities of samples and classes, in [0, 1]; see `calibration_gap`."""
    return calibration_gap(logits.double().sigmoid().flatten(), labels.flatten() > 0.5, bins)


def divergence(logits: Tensor, teacher_logits: Tensor) -> float:
    """KL(teacher || student) of each class's yes or no, mean over samples and classes, in nats."""
    student, teacher = logits.double(), teacher_logits.double()
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (yes + no).mean().item()


def confusion_matrices(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts for each class at probability 1/2, int64 `[K, 2, 2]`: row whether it is there, column whether found."""
    cell = 2 * (labels > 0.5).long() + (logits > 0).long()
    return F.one_hot(cell, 4).sum(dim=0).view(-1, 2, 2)


def summarise(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """`map`, `f1`, `exact`, `nll`, and `agreement` where there is a teacher.

    `agreement`: share of the samples with the same set of classes.
    """
    values = {
        "map": mean_average_precision(logits, labels),
        "f1": micro_f1(logits, labels),
        "exact": exact_match(logits, labels),
        "nll": nll(logits, labels),
    }
    if teacher_logits is not None:
        values["agreement"] = exact_match(logits, (teacher_logits > 0).double())
    return values


def judge(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, T: float | None = None
) -> dict[str, float]:
    """`summarise`, and `brier`, `ece`, `kl` to the teacher; with a temperature `nll_scaled` and `ece_scaled`."""
    values = summarise(logits, labels, teacher_logits)
    values |= {"brier": brier(logits, labels), "ece": calibration_error(logits, labels)}
    values |= scaled_scores(logits, labels, T, nll, calibration_error)
    if teacher_logits is not None:
        values["kl"] = divergence(logits, teacher_logits)
    return values
