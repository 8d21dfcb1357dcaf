"""What determines each artifact, and the key that follows from it. Pure functions.

A key is the hash of exactly the settings that the result depends on, chained to the keys of what it
was made from. A group is wholly in or wholly out: device, folders and logging are out; the resolved
precision, the number of processes and the fingerprint of the data are in. Values are typed before they are hashed, so
`loss.T=4` and `loss.T=4.0` are the same student; `None` is dropped, so a new optional setting changes
no key. Code is not hashed: `FORMAT` is raised when results change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from kdistill import plugins
from kdistill.config.losses import OwnLoss
from kdistill.config.models import EnsembleParams, check_params
from kdistill.config.schema import Config, Export, Section
from kdistill.config.section import Ramp, largest

FORMAT = 1
#: losses that have a weight for another term than the labels', but ask no teacher
TEACHERLESS = ("dml", "teacher_free")
#: settings of a data set that say where things are, which does not matter; what is there does
_PLACES = {
    *("root", "table", "download", "unlabelled"),
    *("train_shards", "validation_shards", "test_shards", "label", "class_names"),
}


@dataclass(frozen=True)
class Identity:
    """The keys of one config's artifacts, and what each was computed from.

    `previous` is the identity of the step before in a chain: its student is the teacher of this one.
    `members` are those of an ensemble's members.
    """

    config: Config
    fingerprint: str  # of the training and validation data
    precisions: Mapping[str, str]  # of the teacher's and of the student's network
    weights: dict[str, str]  # "teacher" / "student" -> sha256 of the user's own weights, where given
    unlabelled: str | None = None  # fingerprint of the unlabelled images of the transfer set
    previous: Identity | None = None
    members: Mapping[str, Identity] = field(default_factory=dict)

    @property
    def teacher(self) -> dict[str, Any]:
        """What the teacher is made from. An ensemble has no artifact of its own; its members have."""
        if self.previous is not None:
            return self.previous.student
        teacher = self.config.teacher
        match teacher.kind:
            case "estimator":
                made_by = {"scikit-learn": metadata.version("scikit-learn")}  # its defaults change
                given = {"params": teacher.params}  # null is a value of its own for an estimator
                return {"data": self._data, "estimator": self._source("name", "seed") | given, **made_by}
            case "folder" | "file":
                return {"source": self._source("name", "params"), "content": self.weights["teacher"]}
            case "ensemble":
                members = {name: key_of(member.teacher) for name, member in self.members.items()}
                return {"members": members, **_ensemble(teacher.params)}
        return {
            "data": self._data,
            "model": self._model("teacher"),
            "precision": self.precisions["teacher"],
            **self._processes,
        }

    @property
    def soft_targets(self) -> dict[str, Any]:
        """A view's pixels depend on the seed and the data; its logits also on batch size and precision."""
        soft = self.config.soft_targets
        parts = {
            "teacher": key_of(self.teacher),
            "precision": self.precisions["teacher"],
            "views": self.teacher_views,
            **_plain(soft, exclude={"mode", "views"}),
        }
        if self.previous is not None or self.config.teacher.kind in ("folder", "file"):
            parts["data"] = self._data  # the teacher may come from other data
        if self.unlabelled is not None:
            parts["unlabelled"] = self.unlabelled
        if self.shows_clean:
            parts["clean"] = True
        return parts

    @property
    def student(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "data": self._data,
            "model": self._model("student"),
            "precision": self.precisions["student"],
            "views": {"count": self.views, "seed": self.config.soft_targets.seed},
            "loss": self._loss,
            "signal": self._signal,
            **self._processes,
        }
        if self.unlabelled is not None:
            parts["unlabelled"] = self.unlabelled
        if self.config.mixing.kind != "none":
            parts["mixing"] = _plain(self.config.mixing)
        if not self.config.student.input.augment:
            parts["clean"] = True
        return parts

    @property
    def finetuned(self) -> dict[str, Any]:
        return {"student": key_of(self.student), "training": _plain(self.config.finetune)}

    def predictions(self, made_from: dict[str, Any], role: str, test: str) -> dict[str, Any]:
        """What a model says of the test split of fingerprint `test`: of the `role` whose precision it has."""
        parts = {
            "model": key_of(made_from),
            "data": self._data,
            "test": test,
            "precision": self.precisions[role],
            **self._processes,
        }
        if role == "teacher":  # as it is asked
            parts["batch_size"] = self.config.soft_targets.batch_size
            if self.config.teacher.class_map is not None:
                parts["class_map"] = self.config.teacher.class_map
        return parts

    @property
    def views(self) -> int:
        """Distinct augmented views of each sample that the student sees: one per epoch unless set."""
        if not self._augments:
            return 1  # all views are the same pixels
        return self.config.soft_targets.views or max(1, self.config.student.epochs)

    @property
    def teacher_views(self) -> int:
        """Views that the teacher is asked about: one where it sees clean images, or is a file."""
        return 1 if self.shows_clean or self.is_file else self.views

    @property
    def shows_clean(self) -> bool:
        """Whether the teacher is shown clean images where there are augmented ones."""
        return self._augments and not self.config.teacher.input.augment

    @property
    def _augments(self) -> bool:
        return bool(self.config.dataset.augment.chosen)

    @property
    def stored(self) -> bool:
        """Whether the student reads stored teacher logits (`auto` does, where the loss allows it)."""
        if self.config.soft_targets.mode != "auto":
            return self.config.soft_targets.mode == "stored"
        return (self.config.mixing.kind == "none" and not self.config.loss.weighs_features) or self.is_file

    @property
    def is_file(self) -> bool:
        """Whether the teacher is only known by its outputs."""
        return self.previous is None and self.config.teacher.kind == "file"

    @property
    def needs_teacher(self) -> bool:
        loss = self.config.loss
        asks = (
            plugins.find(loss.name).asks_teacher
            if isinstance(loss, OwnLoss)
            else loss.kind not in TEACHERLESS
        )
        on_logits = asks and largest(loss.soft_weight) > 0
        return on_logits or any(largest(term.weight) > 0 for term in loss.features.values())

    @property
    def _processes(self) -> dict[str, int]:
        """Batch norm, dropout and losses that compare samples see each process's share of a batch."""
        count = self.config.device.processes
        return {"processes": count} if count > 1 else {}

    @property
    def _data(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, **_plain(self.config.dataset, exclude=_PLACES)}

    @property
    def _loss(self) -> dict[str, Any]:
        """Without a teacher's term, T and the method have no influence: one control for all temperatures."""
        loss = self.config.loss
        if not self.needs_teacher and loss.kind in ("kd", "ce"):
            return {"alpha": _plain_value(loss.alpha)}
        parts = {**_plain(loss), "beta": _plain_value(loss.soft_weight)}
        parts["features"] = {
            name: _plain(term) for name, term in loss.features.items() if largest(term.weight)
        }
        if not parts["features"]:
            del parts["features"]
        if not parts.get("standardise"):
            parts.pop("standardise", None)
        if isinstance(loss, OwnLoss):
            parts["file"] = plugins.find(loss.name).sha256
        return parts

    @property
    def _signal(self) -> dict[str, Any] | None:
        if not self.needs_teacher:
            return None
        parts: dict[str, Any] = {}
        if self.config.teacher.class_map is not None and self.previous is None:
            parts["class_map"] = self.config.teacher.class_map
        if self.members:
            members = {name: member._signal for name, member in self.members.items()}
            return {"members": members, **_ensemble(self.config.teacher.params), **parts}
        if self.stored:
            return {"soft_targets": key_of(self.soft_targets), **parts}
        if self.shows_clean:
            parts["clean"] = True
        if self.precisions["teacher"] != self.precisions["student"]:
            parts["precision"] = self.precisions["teacher"]
        return {
            "teacher": key_of(self.teacher),
            "batch_size": self.config.soft_targets.batch_size,
            **parts,
        }

    def _model(self, role: str) -> dict[str, Any]:
        section = self.config.teacher if role == "teacher" else self.config.student
        settings = _plain(section, exclude={"input", "class_map"})
        params = check_params(section.name, section.params)
        settings["params"] = params.model_dump(mode="json", exclude_none=True)
        if role in self.weights:
            settings["weights"] = self.weights[role]  # the content of the file, not its place
        if section.input.size is not None or section.input.grey:
            settings["input"] = _plain(section.input, exclude={"augment"})
        return settings

    def _source(self, *names: str) -> dict[str, Any]:
        return {name: value for name, value in self._model("teacher").items() if name in (*names, "input")}


def export_parts(network: str, settings: Export, test: str) -> dict[str, Any]:
    """Of the network with this key; its file is judged on the test split of this fingerprint."""
    return {"network": network, "test": test, **_plain(settings)}


def _ensemble(params: dict[str, Any]) -> dict[str, Any]:
    about = EnsembleParams.model_validate(params)
    return about.model_dump(mode="json", exclude={"members"}, exclude_none=True)


def key_of(parts: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the canonical JSON of `parts`."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain_value(value: float | Ramp) -> Any:
    return _plain(value) if isinstance(value, Ramp) else value


def _plain(section: Section, exclude: set[str] | None = None) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_none=True, exclude=exclude)
