"""What a model says of every sample of a split: the file, its writer and its reader."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from kdistill.files import write_bytes

FILE = "predictions.safetensors"


@dataclass(frozen=True)
class Predictions:
    """A model's answers.

    `logits`: float32 `[N, K]`; `labels`: int64 `[N]`, or float `[N, K]` for the other tasks; `ids`: the samples'
    names, as `kdistill.data.Split.ids`; `classes`: the names of the K columns.
    """

    logits: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    ids: list[str] = field(repr=False)
    classes: list[str]

    def save(self, path: Path) -> None:
        """Write tensors `logits` and `labels`, and JSON lists `ids` and `classes` as metadata."""
        tensors = {"logits": self.logits.contiguous(), "labels": self.labels.contiguous()}
        names = {"ids": json.dumps(self.ids), "classes": json.dumps(self.classes)}
        write_bytes(path, safetensors.torch.save(tensors, names))


def read_predictions(path: Path) -> Predictions:
    """Read what `Predictions.save` wrote."""
    with safe_open(path, framework="pt") as file:
        names = file.metadata()
        logits, labels = file.get_tensor("logits"), file.get_tensor("labels")
    return Predictions(logits, labels, json.loads(names["ids"]), json.loads(names["classes"]))
