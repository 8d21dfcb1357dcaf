"""SimKD's projector. This file needs torch and nothing else: a copy goes with every such student."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """The student's last map -> a map that the teacher's head takes.

    A bottleneck of 1 x 1, 3 x 3 and 1 x 1 convolutions with batch norms and ReLUs, `factor` times narrower than
    the teacher. A student's map larger than the teacher's is averaged down to it first.

    Args:
        student_channels: channels of the student's map.
        teacher_channels: channels of the teacher's map; at least `factor`.
        teacher_size: height and width of the teacher's map.
        factor: how many times narrower the middle is.
        nonnegative: end in a ReLU, as published: right where the teacher's map comes from one.

    `arguments` holds these as JSON has them: `Projector(**arguments)` builds the same network.

    Source: D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, "Knowledge Distillation with the Reused
    Teacher Classifier", CVPR 2022, arXiv 2203.14001.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        teacher_size: tuple[int, int],
        factor: int,
        nonnegative: bool = True,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "student_channels": student_channels,
            "teacher_channels": teacher_channels,
            "teacher_size": list(teacher_size),
            "factor": factor,
            "nonnegative": nonnegative,
        }
        self.teacher_size = tuple(teacher_size)
        middle = teacher_channels // factor
        self.layers = nn.Sequential(
            nn.Conv2d(student_channels, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, teacher_channels, 1, bias=False),
            nn.BatchNorm2d(teacher_channels),
        )
        if nonnegative:
            self.layers.append(nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        """`[N, C_s, H, W]` -> `[N, C_t, min(H, H_t), min(W, W_t)]`."""
        height, width = (
            min(own, teacher) for own, teacher in zip(maps.shape[2:], self.teacher_size, strict=True)
        )
        projected: Tensor = self.layers(F.adaptive_avg_pool2d(maps, (height, width)))
        return projected
