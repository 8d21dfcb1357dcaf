"""One config at work: what the stages share."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from kdistill import fsdp, plugins, ranks
from kdistill.artifacts import Artifact, ArtifactStore
from kdistill.config import folders
from kdistill.config.data import Dataset
from kdistill.config.models import kind_of
from kdistill.config.schema import Config, Model
from kdistill.data import Data, InputView, Split, Views, augmented, load_data, transfer
from kdistill.engine import Engine
from kdistill.errors import ConfigError, MissingArtifact
from kdistill.identity import Identity, key_of
from kdistill.models import Classifier
from kdistill.stages.given import Role, content_of, existing
from kdistill.stages.networks import interface_of, new_network, size_of, stored_network, view_for
from kdistill.tasks import Task, task_of

log = logging.getLogger("kdistill")
Watch = Callable[[str, dict[str, Any]], None]
ROLES: tuple[Role, ...] = ("teacher", "student")
#: overrides that the teacher does not depend on, left out of the command that makes it
_STUDENTS = ("student", "assistant", "generations", "loss", "feature", "mixing", "finetune")
_NOT_THE_TEACHERS = (*_STUDENTS, "soft_targets", "force", "eval", "model", "export", "predict", "compare")


class Job:
    """A checked config with the machine, the data and the artifacts that belong to it.

    `overrides` are the user's words on the command line, for the commands that messages suggest. `previous` is
    the step before in a chain, whose student is this one's teacher. `watch` is told each epoch that is trained: of
    what ("teacher", in an ensemble "teacher NAME"; in a chain "step N"; "student", "fine-tuning"), and its row of
    metrics.
    """

    def __init__(
        self,
        config: Config,
        overrides: Sequence[str] = (),
        previous: Job | None = None,
        watch: Watch = lambda what, row: None,
    ) -> None:
        self.config = config
        self.overrides = list(overrides)
        self.previous = previous
        self.watch = watch
        self.engine = Engine.open(config.device)
        self.store = ArtifactStore(Path(config.runs) / "artifacts")

    @classmethod
    def open(
        cls, config: Config, overrides: Sequence[str] = (), watch: Watch = lambda what, row: None
    ) -> Job:
        """The job of the last step of a config's chain; the steps before are its `previous` ones."""
        *before, last = _of_all_ranks(config).steps
        job = None
        for number, step in enumerate(before, 1):
            job = cls(step, overrides, job, _renamed(watch, student=f"step {number}"))
        return cls(last, overrides, job, watch)

    @property
    def chain(self) -> list[Job]:
        """The steps before this one, in their order, and this one."""
        return [*(self.previous.chain if self.previous else []), self]

    @cached_property
    def teachers(self) -> dict[str, Job]:
        """By name, a job for each teacher: the members of an ensemble, or this one under the name ""."""
        members = {} if self.previous else self.config.teacher.members
        watches = {name: _renamed(self.watch, teacher=role_of("teacher", name)) for name in members}
        alone = {"": self}
        return {
            name: Job(self.config.model_copy(update={"teacher": member}), self.overrides, watch=watches[name])
            for name, member in members.items()
        } or alone

    @cached_property
    def data(self) -> Data:
        device = self.config.device
        dataset = self.config.dataset.model_dump_json()
        index = str(Path(self.config.runs) / "shards")
        return _load_data(dataset, device.workers, device.memory_gb, device.cache, index)

    @cached_property
    def task(self) -> Task:
        return task_of(self.data.task, self.data.target_std, self.data.unlabelled is None)

    @cached_property
    def transfer_set(self) -> Split:
        """What the student is distilled on: the training split, and unlabelled images where there are some."""
        return transfer(self.data)

    @cached_property
    def identity(self) -> Identity:
        members = {} if "" in self.teachers else {n: job.identity for n, job in self.teachers.items()}
        return Identity(
            self.config,
            self.data.fingerprint,
            {role: self.engine_for(role).precision for role in ROLES},
            {
                role: content
                for role in ROLES
                if (content := content_of(self.section(role), role)) is not None
            },
            unlabelled=self.data.unlabelled_fingerprint,
            previous=self.previous.identity if self.previous else None,
            members=members,
        )

    @cached_property
    def student_views(self) -> Views:
        """The views that students see."""
        augment = self.config.student.input.augment
        return self.views(self.config.soft_targets.seed) if augment else Views(seed=0, crop=0, flip=False)

    @cached_property
    def teacher_views(self) -> Views:
        """The views that the teacher sees while the student learns."""
        augment = self.config.teacher.input.augment
        return self.views(self.config.soft_targets.seed) if augment else Views(seed=0, crop=0, flip=False)

    def views(self, seed: int) -> Views:
        """The augmented views of one seed; raises `ConfigError` for what the images do not allow."""
        return augmented(self.config.dataset.augment, seed, self.data.channels, self.data.image_size)

    def first_images(self, count: int) -> Tensor:
        """Up to `count` training images to try whole networks on, the first that can be read."""
        split = self.data.train.to(self.engine.home)
        parts = (torch.arange(n, min(n + count, len(split))) for n in range(0, len(split), count))
        return next(batch.images for part in parts for batch in split.batches(part, count))

    def forced(self, stage: str) -> bool:
        """`force=true` makes the artifact of the asked-for stage anew; `run` asks for all of them."""
        return self.config.force and self.config.stage in (stage, "run")

    # --- networks ---

    def build(self, role: Role) -> Classifier:
        """A new network with random, published or the user's weights, by the config."""
        section = self.section(role)
        network = new_network(role, section, self.data, self.shown(role))
        if section.weights not in (None, "DEFAULT") and section.mean is None:
            log.info(
                "%s: images are normalised as measured on the data; %s.mean and .std set what the weights expect",
                role,
                role,
            )
        self.engine.place(network)
        return network

    def engine_for(self, role: Role) -> Engine:
        """The machine at the precision of a role's network; who teaches may be the student of the step before."""
        if role == "teacher" and self.previous is not None:
            return self.previous.engine_for("student")
        section = self.section(role)
        if kind_of(section.name) != "network":
            return self.engine
        return self.engine.for_network(partial(size_of, section, self.data, self.shown(role)))

    def try_network(self, role: Role) -> None:
        """Raise now what `build` would raise later."""
        with self.engine.seeded(0):
            network = new_network(role, self.section(role), self.data, self.shown(role))
        if self.engine.shard:
            fsdp.check(network)

    def network_settings(self, role: Role) -> str:
        """All that decides whether a network can be built, as text."""
        section = self.section(role).model_dump_json(include={"name", "params", "weights", "input"})
        return section + self.config.dataset.model_dump_json()

    def load(self, artifact: Artifact) -> Classifier:
        """The network of a finished artifact, its weights verified against their checksum, placed.

        Raises `ModelError` where there is none, or it cannot be shown this data.
        """
        network = self.read(artifact)
        self.engine.place(network)
        return network

    def read(self, artifact: Artifact) -> Classifier:
        """What `load` gives, on the CPU."""
        with self.engine.seeded(0):  # building draws random numbers; the caller's are not touched
            network = stored_network(artifact)
        takes = interface_of(artifact)
        network.view = view_for(takes.channels, takes.image_size, self.data, self.config.dataset.name)
        return network

    def section(self, role: Role) -> Model:
        return self.config.teacher if role == "teacher" else self.config.student

    def shown(self, role: Role) -> InputView:
        """What a network is shown of the data set's images."""
        settings = self.section(role).input
        return InputView(size=settings.size, grey=settings.grey)

    # --- artifacts ---

    def find_teacher(self) -> Artifact | None:
        """The artifact that teaches; None where it is not made yet, and for outputs in a file."""
        if self.previous is not None:
            return self.previous.find_student()
        kind, weights = self.config.teacher.kind, self.config.teacher.weights
        if kind == "folder":
            return Artifact(Path(weights or "").expanduser().resolve())
        if kind in ("file", "ensemble"):
            return None
        return self.store.find("teacher", key_of(self.identity.teacher))

    def require_teacher(self) -> Artifact:
        found = self.find_teacher()
        if found is not None:
            return found
        if self.previous is not None:
            name = self.previous.config.student.name
            raise MissingArtifact(
                f"{name}, which is to teach, is not distilled yet. Make it, and all that comes after, with:\n"
                f"  {self.command('run')}"
            )
        name = self.config.teacher.name
        raise MissingArtifact(
            f"the teacher {name} is not trained yet. Make it with:\n  {self.command('train-teacher')}"
        )

    def is_trained(self, role: Role) -> bool:
        found = self.find_teacher() if role == "teacher" else self.find_student()
        return found is not None

    def find_student(self) -> Artifact | None:
        return self.store.find("student", key_of(self.identity.student), self.student_parents())

    def require_student(self) -> Artifact:
        found = self.find_student()
        if found is None:
            if self.previous is not None and self.identity.needs_teacher:
                self.require_teacher()  # distill would stop there, too
            name = self.config.student.name
            raise MissingArtifact(
                f"the student {name} is not distilled yet. Make it with:\n  {self.command('distill')}"
            )
        return found

    def find_finetuned(self) -> Artifact | None:
        student = self.find_student()
        parents = {"student": student} if student else {}
        return self.store.find("finetuned", key_of(self.identity.finetuned), parents)

    def chosen_network(self) -> Artifact:
        """What `model` names; else the fine-tuned student, or where it is not fine-tuned the distilled one.

        Raises `ModelError` for a folder that is not there, and `MissingArtifact` for a student that is not made yet.
        """
        if self.config.model is not None:
            return Artifact(existing(self.config.model, "folder", "model").resolve())
        student = self.require_student()
        return (self.find_finetuned() if self.config.finetune.epochs else None) or student

    def find_soft_targets(self, parents: dict[str, Artifact]) -> Artifact | None:
        return self.store.find("soft-targets", key_of(self.identity.soft_targets), parents)

    def student_parents(self) -> dict[str, Artifact]:
        """Those of the student's parents that are there: teachers, and soft targets where they are stored."""
        if not self.identity.needs_teacher:
            return {}
        parents: dict[str, Artifact] = {}
        for name, job in self.teachers.items():
            teacher = job.find_teacher()
            found = {"teacher": teacher} if teacher else {}
            if job.identity.stored and (soft := job.find_soft_targets(found)) is not None:
                found["soft-targets"] = soft
            parents |= {role_of(kind, name): artifact for kind, artifact in found.items()}
        return parents

    def command(self, stage: str, words: Sequence[str] | None = None) -> str:
        """The command line of another stage of this job, or of one with other `words`."""
        words = self.overrides if words is None else words
        if stage == "train-teacher":
            words = [word for word in words if not word.lstrip("+~").startswith(_NOT_THE_TEACHERS)]
        return command_line(stage, words)

    def label(self, role: Role) -> str:
        return self.section(role).name.replace("/", "-")


def command_line(stage: str, words: Sequence[str]) -> str:
    """The command of a stage with the user's words and folders of configs, to be given again."""
    options = [part for folder in folders.on_command_line() for part in ("--config-dir", folder)]
    options += [part for file in plugins.on_command_line() for part in ("--trust", file)]
    return shlex.join(["kdistill", stage, *options, *(w for w in words if not w.startswith("stage="))])


def _renamed(watch: Watch, **names: str) -> Watch:
    """Watch by other names: of the networks of one run, each has its own."""
    return lambda what, row: watch(names.get(what, what), row)


def _of_all_ranks(config: Config) -> Config:
    """The config with the number of processes that torchrun started; raises `ConfigError` where it says another."""
    device, started = config.device, ranks.size()
    if started == 1 or device.processes == started:
        return config
    if device.processes > 1:
        raise ConfigError(
            f"device.processes={device.processes}, but torchrun started {started}; leave device.processes out"
        )
    return config.model_copy(update={"device": device.model_copy(update={"processes": started})})


def role_of(kind: str, member: str) -> str:
    """The role of a parent: its kind, and the ensemble's member that it belongs to."""
    return f"{kind} {member}".strip()


@lru_cache(maxsize=2)
def _load_data(config: str, workers: int, memory_gb: float, cache: str | None, index: str) -> Data:
    """Jobs of a sweep share the data that they have in common."""
    dataset: Dataset = TypeAdapter(Dataset).validate_json(config)
    return load_data(dataset, workers=workers, memory_gb=memory_gb, cache=cache, index=index)
