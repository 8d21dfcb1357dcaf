"""What determines each artifact, and the key that follows from it. Pure functions.

A key is the hash of exactly the settings that the result depends on, chained to the keys of what it
was made from. A group is wholly in or wholly out: device, folders and logging are out; the resolved
precision and the fingerprint of the data are in. Values are typed before they are hashed, so
`loss.T=4` and `loss.T=4.0` are the same student; `None` is dropped, so a new optional setting changes
no key. Code is not hashed: `FORMAT` is raised when results change.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from kdistill.config.models import check_params
from kdistill.config.schema import Config, Section

FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """The keys of one config's artifacts, and what each was computed from."""

    config: Config
    fingerprint: str  # of the training and validation data
    precision: str
    weights: dict[str, str]  # "teacher" / "student" -> sha256 of the user's own weights file, where given

    @property
    def teacher(self) -> dict[str, Any]:
        return {
            "data": self._data,
            "model": self._model("teacher"),
            "precision": self.precision,
        }

    @property
    def soft_targets(self) -> dict[str, Any]:
        """A view's pixels depend on the seed and the data; its logits also on batch size and precision."""
        soft = self.config.soft_targets
        return {
            "teacher": key_of(self.teacher),
            "precision": self.precision,
            "views": self.views,
            **_plain(soft, exclude={"mode", "views"}),
        }

    @property
    def student(self) -> dict[str, Any]:
        return {
            "data": self._data,
            "model": self._model("student"),
            "precision": self.precision,
            "views": {"count": self.views, "seed": self.config.soft_targets.seed},
            "loss": self._loss,
            "signal": self._signal,
        }

    @property
    def finetuned(self) -> dict[str, Any]:
        return {"student": key_of(self.student), "training": _plain(self.config.finetune)}

    @property
    def views(self) -> int:
        """Distinct augmented views of each sample that the student sees: one per epoch unless set."""
        augment = self.config.dataset.augment
        if not (augment.crop or augment.flip):
            return 1  # all views are the same pixels
        return self.config.soft_targets.views or max(1, self.config.student.epochs)

    @property
    def stored(self) -> bool:
        """Whether the student reads stored teacher logits (`auto` does, where the loss allows it)."""
        return self.config.soft_targets.mode != "live"

    @property
    def needs_teacher(self) -> bool:
        return self.config.loss.soft_weight > 0

    @property
    def _data(self) -> dict[str, Any]:
        # where the files lie does not matter; what they hold does
        settings = _plain(self.config.dataset, exclude={"root", "download"})
        return {"fingerprint": self.fingerprint, **settings}

    @property
    def _loss(self) -> dict[str, Any]:
        """Without a soft term, T and the soft loss have no influence: one control for all temperatures."""
        loss = self.config.loss
        if not self.needs_teacher:
            return {"alpha": loss.alpha}
        return {**_plain(loss), "beta": loss.soft_weight}

    @property
    def _signal(self) -> dict[str, Any] | None:
        if not self.needs_teacher:
            return None
        if self.stored:
            return {"soft_targets": key_of(self.soft_targets)}
        return {"teacher": key_of(self.teacher), "batch_size": self.config.soft_targets.batch_size}

    def _model(self, role: str) -> dict[str, Any]:
        section = self.config.teacher if role == "teacher" else self.config.student
        settings = _plain(section)
        params = check_params(section.name, section.params)
        settings["params"] = params.model_dump(mode="json", exclude_none=True)
        if role in self.weights:
            settings["weights"] = self.weights[role]  # the content of the file, not its place
        return settings


def key_of(parts: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the canonical JSON of `parts`."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(section: Section, exclude: set[str] | None = None) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_none=True, exclude=exclude)
