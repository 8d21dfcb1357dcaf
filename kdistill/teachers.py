"""Where teacher logits come from. The loss and the loop see only a `TeacherSignal`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdistill.data import Batch
from kdistill.engine import Engine

#: (augmented batch, its view) -> teacher logits [N, K], float32, on the batch's device, without gradient
TeacherSignal = Callable[[Batch, int], Tensor]

#: stored logits up to this size are read into memory at once
IN_MEMORY_BYTES = 2**30


class LiveTeacher:
    """Runs the teacher. Its weights and batch-norm statistics stay as they are.

    The network always sees batches of exactly `batch_size` samples, the last one padded: the rounding of
    a sample's logits depends on the size of the batch (by about 1e-7), but neither on its place in it nor
    on its company. So a sample's logits are the same bits whichever batch it comes in, stored or live.
    """

    def __init__(self, network: nn.Module, batch_size: int, engine: Engine) -> None:
        self._network = network.eval().requires_grad_(False)
        self._batch_size = batch_size
        self._engine = engine

    def __call__(self, batch: Batch, view: int) -> Tensor:
        return self.logits(batch.images)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of uint8 images `[N, C, H, W]`."""
        parts = [self._padded(part) for part in images.split(self._batch_size)]
        return torch.cat(parts).float()

    def _padded(self, images: Tensor) -> Tensor:
        missing = self._batch_size - len(images)
        if missing:
            images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        with self._engine.autocast():
            logits: Tensor = self._network(images)
        return logits[: self._batch_size - missing]


class StoredTeacher:
    """Reads teacher logits from disk: `[views, samples, classes]`, float16 or float32.

    Small files are held on the device; larger ones stay memory-mapped and are read a batch at a time.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._device = device
        self._mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        self._held: Tensor | None = None
        if self._mapped.nbytes <= IN_MEMORY_BYTES:
            self._held = torch.from_numpy(np.array(self._mapped)).to(device)

    def __call__(self, batch: Batch, view: int) -> Tensor:
        if self._held is not None:
            return self._held[view, batch.indices].float()
        rows = self._mapped[view, batch.indices.cpu().numpy()]
        return torch.from_numpy(rows).to(self._device).float()
