"""Terms on features: what a feature method computes for its layer pairs, with the adapters that it trains.

A term's value is not weighted. Its parameters, if any, are to be trained with the student; its buffers (batch
norms' statistics, CRD's banks) belong to the state of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdistill.errors import ConfigError, did_you_mean
from kdistill.losses.adapters import ABF, ConvRegressor, GaussianRegressor, as_map, as_vector
from kdistill.losses.contrastive import Contrast
from kdistill.losses.maps import (
    attention_loss,
    hcl_loss,
    hint_loss,
    nst_loss,
    pool_to_smaller,
    vid_loss,
)
from kdistill.losses.relations import pkt_loss, rkd_angle_loss, rkd_distance_loss, sp_loss
from kdistill.losses.soft import wide
from kdistill.models.projector import Projector

#: the features of each layer pair, for a batch
Features = Sequence[Tensor]

Layers = Literal["middle", "all", "last", "embedding", "all+embedding"]
#: which layers a method compares by default: the maps of the middle stage, of all stages, of the last one, what
#: goes into the head, or all maps and then that
LAYERS: Mapping[str, Layers] = {
    "hint": "middle",
    "at": "all",
    "sp": "last",
    "rkd": "embedding",
    "pkt": "embedding",
    "vid": "all",
    "nst": "all",
    "crd": "embedding",
    "review_kd": "all+embedding",
    "simkd": "last",
}

#: widest that ReviewKD's fused maps get
REVIEW_CHANNELS = 512


class FeatureTerm(nn.Module):
    """What a method computes from the features of its layer pairs."""

    def forward(self, student: Features, teacher: Features, labels: Tensor, indices: Tensor) -> Tensor:
        """The unweighted term, a scalar.

        Args:
            student: per pair a map `[N, C, H, W]`, tokens `[N, L, D]` or a vector `[N, D]`.
            teacher: the same; no gradient flows into it.
            labels: int64 `[N]`, -1 for none.
            indices: int64 `[N]`, the samples' positions in the training split.

        Raises ConfigError where the method is undefined for such a batch.
        """
        return self.compare([wide(s) for s in student], [wide(t.detach()) for t in teacher], indices)

    def compare(self, student: list[Tensor], teacher: list[Tensor], indices: Tensor) -> Tensor:
        """The term from features in full precision."""
        raise NotImplementedError


class PlainTerm(FeatureTerm):
    """The sum over the pairs of `loss`, of the features in the shape that it takes; nothing to train."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], shape: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.loss, self.shape = loss, shape

    def compare(self, student: list[Tensor], teacher: list[Tensor], indices: Tensor) -> Tensor:
        pairs = zip(student, teacher, strict=True)
        return _total(self.loss(self.shape(s), self.shape(t)) for s, t in pairs)


class HintTerm(FeatureTerm):
    """The sum over the pairs of `hint_loss`, with a regressor for each."""

    def __init__(self, student: Features, teacher: Features) -> None:
        super().__init__()
        self.regressors = nn.ModuleList(
            ConvRegressor(as_map(s).shape, as_map(t).shape, _nonnegative(t))
            for s, t in zip(student, teacher, strict=True)
        )

    def compare(self, student: list[Tensor], teacher: list[Tensor], indices: Tensor) -> Tensor:
        targets = [as_map(t) for t in teacher]
        for target in targets:
            _need_statistics("hint", target)
        triples = zip(self.regressors, student, targets, strict=True)
        return _total(hint_loss(regressor(as_map(s)), target) for regressor, s, target in triples)


class VIDTerm(FeatureTerm):
    """The sum over the pairs of `vid_loss`, with a regressor for each; the larger map is pooled to the smaller."""

    def __init__(self, student: Features, teacher: Features, initial_variance: float) -> None:
        super().__init__()
        self.regressors = nn.ModuleList(
            GaussianRegressor(as_map(s).shape[1], as_map(t).shape[1], initial_variance)
            for s, t in zip(student, teacher, strict=True)
        )

    def compare(self, student: list[Tensor], teacher: list[Tensor], indices: Tensor) -> Tensor:
        losses = []
        for regressor, s, t in zip(self.regressors, student, teacher, strict=True):
            source, target = pool_to_smaller(as_map(s), as_map(t))
            mean, variance = regressor(source)
            losses.append(vid_loss(mean, target, variance))
        return _total(losses)


class ReviewKDTerm(FeatureTerm):
    """The sum over levels of `hcl_loss`: the teacher's map of a level, and the student's fused with all deeper ones.

    Pairs go from the first stage to the deepest level. Fused maps have as many channels as the student's deepest
    level, at most 512; each is brought to the teacher's size (nearest pixel) and number of channels.

    Source: P. Chen, S. Liu, H. Zhao, J. Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021,
    arXiv 2104.09044.
    """

    def __init__(self, student: Features, teacher: Features) -> None:
        super().__init__()
        c_student, c_teacher = ([as_map(f).shape[1] for f in features] for features in (student, teacher))
        c_mid, deepest = min(REVIEW_CHANNELS, c_student[-1]), len(student) - 1
        self.levels = nn.ModuleList(
            ABF(c_in, c_mid, c_out, fuse=level < deepest)
            for level, (c_in, c_out) in enumerate(zip(c_student, c_teacher, strict=True))
        )

    def compare(self, student: list[Tensor], teacher: list[Tensor], indices: Tensor) -> Tensor:
        losses: list[Tensor] = []
        deeper: Tensor | None = None
        for level, s, t in reversed(list(zip(self.levels, student, teacher, strict=True))):
            source, target = as_map(s), as_map(t)
            _need_statistics("review_kd", source)
            output, deeper = level(source, deeper, target.shape[2:])
            losses.append(hcl_loss(output, target))
        return _total(losses)


class SimKDTerm(FeatureTerm):
    """`hint_loss` between the projected map of the student and the teacher's, pooled to its size.

    `projector` ships with the student, in front of the teacher's head; published without any other term.
    """

    def __init__(self, student: Features, teacher: Features, factor: int) -> None:
        super().__init__()
        _need_one_pair("simkd", student)
        source, target = as_map(student[0]), as_map(teacher[0])
        channels, (height, width) = target.shape[1], target.shape[2:]
        if factor > channels:
            raise ConfigError(
                f"simkd: factor={factor} is more than the {channels} channels of the teacher's map"
            )
        self.projector = Projector(
            source.shape[1], channels, (height, width), factor, nonnegative=_nonnegative(target)
        )

    def compare(self, student: list[Tensor], teacher: list[Tensor], indices: Tensor) -> Tensor:
        source = as_map(student[0])
        _, target = pool_to_smaller(source, as_map(teacher[0]))
        _need_statistics("simkd", target)
        return hint_loss(self.projector(source), target)


class CRDTerm(FeatureTerm):
    """`Contrast` of a pair of embeddings."""

    def __init__(self, student: Features, teacher: Features, labels: Tensor, **settings: Any) -> None:
        super().__init__()
        _need_one_pair("crd", student)
        student_dim, teacher_dim = as_vector(student[0]).shape[1], as_vector(teacher[0]).shape[1]
        self.contrast = Contrast(student_dim, teacher_dim, labels, **settings)

    def compare(self, student: list[Tensor], teacher: list[Tensor], indices: Tensor) -> Tensor:
        loss: Tensor = self.contrast(as_vector(student[0]), as_vector(teacher[0]), indices)
        return loss


def rkd_loss(student: Tensor, teacher: Tensor, distance_weight: float, angle_weight: float) -> Tensor:
    """distance_weight * rkd_distance_loss + angle_weight * rkd_angle_loss."""
    return distance_weight * rkd_distance_loss(student, teacher) + angle_weight * rkd_angle_loss(
        student, teacher
    )


def _rkd(settings: Any, *_: Any) -> FeatureTerm:
    weights = {"distance_weight": settings.distance_weight, "angle_weight": settings.angle_weight}
    return PlainTerm(partial(rkd_loss, **weights), as_vector)


def _crd(settings: Any, student: Features, teacher: Features, samples: int, labels: Tensor) -> FeatureTerm:
    assert samples == len(labels)
    own = {name: getattr(settings, name) for name in ("negatives", "T", "momentum", "dim")}
    return CRDTerm(student, teacher, labels, **own)


def _on_pixels(
    method: str,
    loss: Callable[[Tensor, Tensor], Tensor],
    student: Features,
    teacher: Features,
    *_: Any,
) -> FeatureTerm:
    pairs = [pool_to_smaller(as_map(s), as_map(t)) for s, t in zip(student, teacher, strict=True)]
    if all(source.shape[2:].numel() == 1 for source, _ in pairs):
        raise ConfigError(
            f"{method} compares the pixels of a map with each other, but these layers have one pixel:"
            " choose layers with larger maps, or a method on vectors (rkd, pkt, crd)"
        )
    return PlainTerm(loss, as_map)


#: kind -> (settings, student, teacher, samples, labels) -> term
TERMS: Mapping[str, Callable[..., FeatureTerm]] = {
    "hint": lambda settings, student, teacher, *_: HintTerm(student, teacher),
    "at": lambda settings, *features: _on_pixels("at", partial(attention_loss, p=settings.p), *features),
    "sp": lambda *_: PlainTerm(sp_loss, partial(torch.flatten, start_dim=1)),
    "rkd": _rkd,
    "pkt": lambda *_: PlainTerm(pkt_loss, as_vector),
    "vid": lambda settings, student, teacher, *_: VIDTerm(student, teacher, settings.initial_variance),
    "nst": lambda settings, *features: _on_pixels("nst", nst_loss, *features),
    "crd": _crd,
    "review_kd": lambda settings, student, teacher, *_: ReviewKDTerm(student, teacher),
    "simkd": lambda settings, student, teacher, *_: SimKDTerm(student, teacher, settings.factor),
}


def build_term(
    settings: Any, student: Features, teacher: Features, samples: int, labels: Tensor
) -> FeatureTerm:
    """The term of a checked `feature` section, with new adapters from torch's global generator of the CPU.

    Args:
        settings: has `kind` and the method's own settings.
        student: the student's features of any batch, one per layer pair: their shapes count.
        teacher: the teacher's. Where these have no negative value, a hint's regressor and SimKD's projector end
            in a ReLU.
        samples: number of training samples.
        labels: int64 `[samples]`, of the training split; -1 for none.

    Raises:
        ConfigError: an unknown kind, or features that the method cannot compare.
    """
    if settings.kind not in TERMS:
        raise ConfigError(
            f"unknown feature method {settings.kind!r}: expected one of {', '.join(TERMS)}."
            f"{did_you_mean(settings.kind, TERMS)}"
        )
    term = TERMS[settings.kind](settings, student, teacher, samples, labels)
    return term.to(student[0].device)


def _total(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()


def _nonnegative(features: Tensor) -> bool:
    return bool((features >= 0).all())


def _need_one_pair(method: str, student: Features) -> None:
    if len(student) != 1:
        raise ConfigError(f"{method} compares one pair of layers, got {len(student)}: choose one in layers")


def _need_statistics(method: str, maps: Tensor) -> None:
    """Batch norm has nothing to learn its statistics from when there is one value per channel."""
    if maps.numel() == maps.shape[1]:
        raise ConfigError(
            f"{method} has a batch norm, which needs more than one value per channel: expected at least 2 samples"
            " where a map is 1 x 1, got 1; raise student.batch_size or lower student.optim.accumulate"
        )
