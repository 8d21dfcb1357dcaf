"""What is trained, where that is more than the student: with adapters beside it, or with peers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdistill.models import Classifier


class Learner(nn.Module):
    """A student and the modules that are trained with it and not shipped: the feature terms' adapters.

    Images `[N, C, H, W]` -> the student's logits `[N, K]`.
    """

    def __init__(self, student: Classifier, beside: Iterable[nn.Module]) -> None:
        super().__init__()
        self.student = student
        self.beside = nn.ModuleList(beside)

    @property
    def parts(self) -> list[nn.Module]:
        """What runs one after another in training: the student, and each term with its adapters."""
        return [self.student, *self.beside]

    @property
    def net(self) -> nn.Module:
        return self.student.net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.student(images)
        return logits


class Peers(nn.Module):
    """Networks that are trained side by side. The first is the student: it alone is validated and kept.

    In training mode images `[N, C, H, W]` give all their logits `[P, N, K]`, otherwise the first's `[N, K]`.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return torch.stack([network(images) for network in self.networks])
        logits: Tensor = self.networks[0](images)
        return logits
