"""Contrastive representation distillation: embeddings of the same sample match, those of others do not.

Shapes: N samples of a batch, n of the training split, M negatives, D the embedding's size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdistill.errors import ConfigError
from kdistill.losses.soft import wide


def nce_loss(log_odds: Tensor) -> Tensor:
    """-log D(positive) - sum over negatives of log(1 - D(negative)), mean over the samples; D = sigmoid.

    Args:
        log_odds: `[N, 1 + M]`, the positive first: log of p / (M / n), where p is what the model gives a
            sample among n, and M / n how much noise there is for one positive.
    """
    return (F.softplus(-log_odds[:, :1]).sum() + F.softplus(log_odds[:, 1:]).sum()) / len(log_odds)


class Contrast(nn.Module):
    """The CRD loss with what it owns: two linear embeddings and, for either, a bank of all samples.

    Both embeddings (L2 norm 1) are trained. A student's embedding is contrasted with the teacher's bank, a
    teacher's with the student's: p = exp(a . b / T) / Z. Z is estimated from the first batch and kept, as in
    the published code. After each batch, bank = momentum * bank + (1 - momentum) * embedding, at norm 1.

    Negatives are drawn with equal chance, with replacement, from the samples of other classes (the published
    mode 'exact', which is without replacement where there are enough); a sample without label counts as a class
    of its own, and so does each one where there are no classes: with several labels, or values. There are at
    most as many negatives as the largest class leaves.

    Args:
        labels: of the training split: int64 `[n]`, -1 for none; or float, several labels `[n, K]` or values
            `[n, D]`.

    Raises:
        ConfigError: all samples are of one class.

    Source: Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020,
    arXiv 1910.10699.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    log_z: Tensor
    by_class: Tensor
    start: Tensor
    size: Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        labels: Tensor,
        *,
        negatives: int,
        T: float,
        momentum: float,
        dim: int,
    ) -> None:
        super().__init__()
        self.student_embedding = nn.Linear(student_dim, dim)
        self.teacher_embedding = nn.Linear(teacher_dim, dim)
        self.T, self.momentum, self.samples = T, momentum, len(labels)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, (2 * torch.rand(self.samples, dim) - 1) * math.sqrt(3 / dim))
        self.register_buffer("log_z", torch.full((2,), math.nan))  # of student, teacher; nan: no batch yet
        classes = torch.full((self.samples,), -1) if labels.is_floating_point() else labels.cpu()
        self._sort_by_class(classes)
        self.negatives = min(negatives, self.samples - int(self.size.max()))
        if not self.negatives:
            raise ConfigError(
                "crd contrasts samples of different classes, but all training samples are of one"
            )

    def _sort_by_class(self, labels: Tensor) -> None:
        own = labels.max() + 1 + torch.arange(self.samples)
        groups = torch.where(labels < 0, own, labels)
        counts = groups.bincount()
        starts = counts.cumsum(0) - counts
        for name, values in (
            ("by_class", groups.argsort(stable=True)),
            ("start", starts[groups]),
            ("size", counts[groups]),
        ):
            self.register_buffer(name, values, persistent=False)

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor) -> Tensor:
        """Loss of vectors `[N, D_student]`, `[N, D_teacher]`; `indices`: int64 `[N]`, positions in the split."""
        student = F.normalize(wide(self.student_embedding(student)), dim=1)
        teacher = F.normalize(wide(self.teacher_embedding(teacher)), dim=1)
        with torch.autocast(student.device.type, enabled=False):
            chosen = torch.cat([indices[:, None], self.draw(indices)], dim=1)
            scores = torch.stack(
                [
                    self._scores(student, self.teacher_bank, chosen),
                    self._scores(teacher, self.student_bank, chosen),
                ]
            )
            if self.training:
                self._estimate_z(scores.detach())
                self.student_bank = self._updated(self.student_bank, indices, student.detach())
                self.teacher_bank = self._updated(self.teacher_bank, indices, teacher.detach())
            log_odds = scores - self.log_z.view(2, 1, 1) - math.log(self.negatives / self.samples)
            return nce_loss(log_odds[0]) + nce_loss(log_odds[1])

    def draw(self, indices: Tensor) -> Tensor:
        """Positions of negatives, int64 `[N, M]`, from torch's global generator of the device."""
        start, size = self.start[indices, None], self.size[indices, None]
        random = torch.randint(2**62, (len(indices), self.negatives), device=indices.device)
        place = random % (self.samples - size)  # counted with the own class left out
        return self.by_class[torch.where(place < start, place, place + size)]

    def _scores(self, embeddings: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
        # all products, then the chosen ones: far less to move than a bank entry for each of N * M negatives
        return (embeddings @ bank.T).gather(1, chosen) / self.T

    def _estimate_z(self, scores: Tensor) -> None:
        estimate = scores.flatten(1).logsumexp(1) - math.log(scores[0].numel()) + math.log(self.samples)
        self.log_z = torch.where(self.log_z.isnan(), estimate, self.log_z)

    def _updated(self, bank: Tensor, indices: Tensor, embeddings: Tensor) -> Tensor:
        # a new tensor: the old one is still needed for the gradient
        mixed = self.momentum * bank[indices] + (1 - self.momentum) * embeddings
        return bank.index_copy(0, indices, F.normalize(mixed, dim=1))
