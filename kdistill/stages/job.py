"""One config at work: what the stages share."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from kdistill.artifacts import Artifact, ArtifactStore
from kdistill.config import folders
from kdistill.config.schema import Config, Dataset, Model
from kdistill.data import Data, Views, load_data
from kdistill.engine import Engine
from kdistill.errors import ConfigError, MissingArtifact, ModelError, did_you_mean
from kdistill.files import sha256_of
from kdistill.identity import Identity, key_of
from kdistill.models import Classifier, build_classifier, fit_state, load_state

log = logging.getLogger("kdistill")
Role = Literal["teacher", "student"]
ROLES: tuple[Role, ...] = ("teacher", "student")
#: overrides that the teacher does not depend on, left out of the command that makes it
_NOT_THE_TEACHERS = ("student", "loss", "finetune", "soft_targets", "force")


class Job:
    """A checked config with the machine, the data and the artifacts that belong to it.

    `overrides` are the user's words on the command line, for the commands that messages suggest.
    """

    def __init__(self, config: Config, overrides: Sequence[str] = ()) -> None:
        self.config = config
        self.overrides = list(overrides)
        self.engine = Engine.open(config.device)
        self.store = ArtifactStore(Path(config.runs) / "artifacts")

    @cached_property
    def data(self) -> Data:
        device = self.config.device
        return _load_data(self.config.dataset.model_dump_json(), device.workers, device.memory_gb)

    @cached_property
    def identity(self) -> Identity:
        weights: dict[str, str] = {
            role: sha256_of(path)
            for role in ROLES
            if (path := _weights_file(role, self._section(role))) is not None
        }
        return Identity(self.config, self.data.fingerprint, self.engine.precision, weights)

    @cached_property
    def student_views(self) -> Views:
        """The views that students, and the teacher on their behalf, see."""
        return self.views(self.config.soft_targets.seed)

    def views(self, seed: int) -> Views:
        augment = self.config.dataset.augment
        return Views(seed=seed, crop=augment.crop, flip=augment.flip)

    def forced(self, stage: str) -> bool:
        """`force=true` makes the artifact of the asked-for stage anew; `run` asks for all of them."""
        return self.config.force and self.config.stage in (stage, "run")

    # --- networks ---

    def build(self, role: Role) -> Classifier:
        """A new network with random, published or the user's weights, by the config."""
        section = self._section(role)
        network = self._network(role, load=True)
        if section.weights not in (None, "DEFAULT") and section.mean is None:
            log.info(
                "%s: images are normalised as measured on the data; %s.mean and .std set what the weights expect",
                role,
                role,
            )
        self.engine.place(network)
        return network

    def try_network(self, role: Role) -> None:
        """Raise now what `build` would raise later."""
        with self.engine.seeded(0):
            self._network(role, load=True)

    def network_settings(self, role: Role) -> str:
        """All that decides whether a network can be built, as text."""
        section = self._section(role).model_dump_json(include={"name", "params", "weights"})
        return section + self.config.dataset.model_dump_json()

    def load(self, role: Role, artifact: Artifact) -> Classifier:
        """The network of a finished artifact, its weights verified against their checksum."""
        with self.engine.seeded(0):  # building draws random numbers; the caller's are not touched
            network = self._network(role, load=False)
        path = artifact.file("model.safetensors")
        fit_state(network.net, load_state(path), str(path))
        self.engine.place(network)
        return network

    # --- artifacts ---

    def find_teacher(self) -> Artifact | None:
        return self.store.find("teacher", key_of(self.identity.teacher))

    def require_teacher(self) -> Artifact:
        found = self.find_teacher()
        if found is None:
            name = self.config.teacher.name
            raise MissingArtifact(
                f"the teacher {name} is not trained yet. Make it with:\n  {self.command('train-teacher')}"
            )
        return found

    def is_trained(self, role: Role) -> bool:
        found = self.find_teacher() if role == "teacher" else self.find_student()
        return found is not None

    def find_student(self) -> Artifact | None:
        return self.store.find("student", key_of(self.identity.student), self.student_parents())

    def require_student(self) -> Artifact:
        found = self.find_student()
        if found is None:
            name = self.config.student.name
            raise MissingArtifact(
                f"the student {name} is not distilled yet. Make it with:\n  {self.command('distill')}"
            )
        return found

    def find_finetuned(self) -> Artifact | None:
        student = self.find_student()
        parents = {"student": student} if student else {}
        return self.store.find("finetuned", key_of(self.identity.finetuned), parents)

    def student_parents(self) -> dict[str, Artifact]:
        """Those of the student's parents that are there: teacher, and soft targets where they are stored."""
        if not self.identity.needs_teacher:
            return {}
        teacher = self.find_teacher()
        parents = {"teacher": teacher} if teacher else {}
        if self.identity.stored:
            soft = self.store.find("soft-targets", key_of(self.identity.soft_targets), parents)
            parents |= {"soft-targets": soft} if soft else {}
        return parents

    def command(self, stage: str, words: Sequence[str] | None = None) -> str:
        """The command line of another stage of this job, or of one with other `words`."""
        words = [
            word for word in (self.overrides if words is None else words) if not word.startswith("stage=")
        ]
        if stage == "train-teacher":
            words = [word for word in words if not word.lstrip("+~").startswith(_NOT_THE_TEACHERS)]
        dirs = [part for folder in folders.on_command_line() for part in ("--config-dir", folder)]
        return shlex.join(["kdistill", stage, *dirs, *words])

    def label(self, role: Role) -> str:
        return self._section(role).name.replace("/", "-")

    def _network(self, role: Role, *, load: bool) -> Classifier:
        section, data = self._section(role), self.data
        network = build_classifier(
            section.name,
            section.params,
            classes=len(data.classes),
            channels=data.channels,
            image_size=data.image_size,
            mean=data.mean,
            std=data.std,
            weights=section.weights,
            load=load,
        )
        if section.mean is None or section.std is None:
            return network
        if len(section.mean) != len(network.mean):
            raise ConfigError(
                f"{role}.mean has {len(section.mean)} channels, {section.name} takes {len(network.mean)} here"
            )
        return Classifier(network.net, section.mean, section.std)

    def _section(self, role: Role) -> Model:
        return self.config.teacher if role == "teacher" else self.config.student


@lru_cache(maxsize=2)
def _load_data(config: str, workers: int, memory_gb: float) -> Data:
    """Jobs of a sweep share the data that they have in common."""
    dataset: Dataset = TypeAdapter(Dataset).validate_json(config)
    return load_data(dataset, workers=workers, memory_gb=memory_gb)


def _weights_file(role: Role, section: Model) -> Path | None:
    if section.weights is None or section.weights == "DEFAULT":
        return None
    path = Path(section.weights).expanduser()
    if not path.is_file():
        hint = (
            did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        )
        raise ModelError(
            f"{role}.weights={section.weights}: there is no such file.{hint}"
            " Expected a file of weights (safetensors, or a state dict), DEFAULT or null"
        )
    return path
