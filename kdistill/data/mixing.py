"""Mixup and CutMix as pure functions of `(seed, epoch, step)`: what was mixed once can be mixed again.

N images of a batch, K classes. Each image gets one partner, the same `lam` for the whole batch: the image
has the share lam, its partner 1 - lam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdistill.averaging import log_mixture
from kdistill.data.views import random_bits

#: first part of the keys; data.views has 1 to 3
MIX = 4


class Mixed(NamedTuple):
    """A mixed batch. `images`: as given; `labels`: float32; `partner`: int64 `[N]`; `lam`: in [0, 1]."""

    images: Tensor
    labels: Tensor
    partner: Tensor
    lam: float


@dataclass(frozen=True)
class Mixing:
    """Mixes each image of a batch with another one of it, and their labels in the same proportion.

    `mixup`: x = lam x_i + (1 - lam) x_j, y = lam y_i + (1 - lam) y_j, lam ~ Beta(concentration, concentration).
    H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018,
    arXiv 1710.09412.

    `cutmix`: a box of the partner, of sides W sqrt(1 - lam) and H sqrt(1 - lam) around a uniform centre, cut
    at the border, is put in the image's place; lam is then 1 minus the box's share of the area. S. Yun, D. Han,
    S. J. Oh, S. Chun, J. Choe, Y. Yoo, "CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features", 2019, arXiv 1905.04899.

    Both as the authors' code has it: one lam, and one box, for the whole batch.
    """

    kind: Literal["mixup", "cutmix"]
    concentration: float
    seed: int

    def draw(self, epoch: int, step: int) -> float:
        """Return lam in [0, 1] as drawn: before CutMix corrects it to the area of the box."""
        return self._lam(self._generator(epoch, step))

    def mix(self, images: Tensor, labels: Tensor, epoch: int, step: int, classes: int) -> Mixed:
        """Mix a batch.

        `images`: `[N, C, H, W]`, uint8 (mixup rounds) or floating. `labels`: int64 `[N]`, classes, of which -1
        (unlabelled) becomes a row of zeros; or targets of several labels `[N, K]` or of regression, which are
        mixed as numbers: nan (unknown) on either side gives nan. Returns labels `[N, classes]`, or in the shape
        of the targets.
        """
        partner = self.partner(len(images), epoch, step, images.device)
        if self.kind == "mixup":
            lam = self.draw(epoch, step)
            mixed = _blend(images.float(), partner, lam)
            mixed = mixed.round().to(torch.uint8) if images.dtype == torch.uint8 else mixed.to(images.dtype)
        else:
            (top, left, bottom, right), lam = self.box(images.shape[2], images.shape[3], epoch, step)
            mixed = images.clone()
            mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
        is_class = labels.ndim == 1 and not labels.is_floating_point()
        targets = _one_hot(labels, classes) if is_class else labels.float()
        return Mixed(mixed, _blend(targets, partner, lam), partner, lam)

    def partner(self, n: int, epoch: int, step: int, device: torch.device | None = None) -> Tensor:
        """Return a permutation of `0..n-1`, int64 `[n]`: image i is mixed with image partner[i]."""
        positions = torch.arange(n, device=device)
        return random_bits(positions, MIX, self.seed, epoch, step).argsort(stable=True)

    def box(self, height: int, width: int, epoch: int, step: int) -> tuple[tuple[int, int, int, int], float]:
        """Return CutMix's box (top, left, bottom, right; the last two excluded) and the lam of its area."""
        generator = self._generator(epoch, step)
        side = (1 - self._lam(generator)) ** 0.5
        top, bottom = _span(height, int(height * side), generator)
        left, right = _span(width, int(width * side), generator)
        return (top, left, bottom, right), 1 - (bottom - top) * (right - left) / (height * width)

    def _generator(self, epoch: int, step: int) -> np.random.Generator:
        return np.random.default_rng([MIX, self.seed, epoch, step])

    def _lam(self, generator: np.random.Generator) -> float:
        return float(generator.beta(self.concentration, self.concentration))


def mixed_targets(logits: Tensor, partner: Tensor, lam: float, T: float) -> Tensor:
    """Return T * log(lam softmax(z / T) + (1 - lam) softmax(z[partner] / T)), `[N, K]`, of logits `[N, K]`.

    An approximation, for soft targets that were stored for the images as they are: the teacher's answers are
    mixed as labels are, where a live teacher would be asked about the mixed images.
    """
    return log_mixture([logits, logits[partner]], [lam, 1 - lam], T)


def _span(length: int, side: int, generator: np.random.Generator) -> tuple[int, int]:
    centre = int(generator.integers(length))
    start = centre - side // 2
    return max(start, 0), min(start + side, length)


def _blend(values: Tensor, partner: Tensor, lam: float) -> Tensor:
    # two products and a sum, each rounded by itself: a fused operation would differ between devices
    return values * lam + values[partner] * (1 - lam)


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    rows = F.one_hot(labels.clamp(min=0), classes).float()
    return rows * (labels >= 0).unsqueeze(1)
