"""What the student is trained on, from the `loss` section: losses on logits, feature terms, peers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdistill.config.losses import Feature, MutualLoss, OwnLoss
from kdistill.config.section import at, largest
from kdistill.errors import ConfigError, first_line
from kdistill.features import candidates, check_layer, observe, teacher_head
from kdistill.learners import Learner, Peers
from kdistill.loop import Goal
from kdistill.losses import FeaturePart, MutualObjective, Outputs, build_objective
from kdistill.losses.adapters import as_map
from kdistill.losses.formula import soft_loss
from kdistill.losses.maps import hint_loss, pool_to_smaller
from kdistill.losses.terms import LAYERS, PlainTerm, build_term
from kdistill.models import Classifier, ReusedHead
from kdistill.pairing import propose
from kdistill.stages.job import Job

#: samples in the dry batch that shows the features' shapes; fewer where the student sees fewer at once
DRY_SAMPLES = 4


@dataclass(frozen=True)
class Lesson:
    """A network that is ready to learn: what is trained, on what, and the part of it that ships."""

    network: nn.Module
    objective: Goal
    student: Classifier
    teacher_layers: tuple[str, ...] = ()
    apart: Mapping[str, nn.Module] = field(default_factory=dict)
    """What is trained with the student and saved beside it, by the name of its file."""


def prepare(job: Job, student: Classifier, teacher: Callable[[], Classifier]) -> Lesson:
    """The lesson that the `loss` section describes; raises `ConfigError` for terms that cannot work.

    `teacher` gives the network whose features are imitated, where some are. Adapters are drawn from torch's global
    generator, after the student itself.
    """
    loss, smoothing = job.config.loss, job.config.student.label_smoothing
    if isinstance(loss, MutualLoss):
        objective = MutualObjective(loss.alpha, loss.beta, loss.T, smoothing, job.task)
        peer = job.build("student")
        return Lesson(Peers(student, peer), objective, student, apart={"peer": peer.net})
    if not job.config.loss.weighs_features:
        return Lesson(student, build_objective(loss, smoothing, job.task), student)
    return _with_features(job, student, teacher())


def rehearse(job: Job) -> Lesson:
    """The lesson of an untrained student; raises now what `prepare` would raise after the teacher's training."""
    return prepare(job, job.build("student"), lambda: stand_in(job))


def stand_in(job: Job) -> Classifier:
    """The network that teaches; one that is not there yet with random weights: its layers are the same."""
    found = job.find_teacher()
    if found is not None:
        return job.load(found)
    return rehearse(job.previous).student if job.previous else job.build("teacher")


def try_own_loss(job: Job, loss: OwnLoss) -> None:
    """Raise `ConfigError` for a loss of the user's that nothing can be learnt from, tried on made-up logits."""
    labels = job.data.train.labels[:DRY_SAMPLES]
    random = torch.Generator().manual_seed(0)
    shape = (len(labels), len(job.data.classes))
    student, teacher = (torch.randn(shape, generator=random) for _ in range(2))
    student.requires_grad_()
    try:
        value = soft_loss(loss, job.task)(student, teacher, labels, at(loss.T, 1))
    except Exception as ex:  # whatever a user's own code may raise
        raise ConfigError(
            f"loss={loss.name} fails on a first batch: {type(ex).__name__}: {first_line(ex)}"
        ) from ex
    if not isinstance(value, Tensor) or value.shape != ():
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"loss={loss.name} must return a scalar tensor, such as a mean over the samples; on a first batch it"
            f" returned {got}"
        )
    if not value.isfinite():
        raise ConfigError(f"loss={loss.name} is {value.item():g} on a first batch; it must be finite")
    if not value.requires_grad or torch.autograd.grad(value, student, allow_unused=True) == (None,):
        raise ConfigError(
            f"loss={loss.name} has no gradient: compute it from student_logits with torch's functions, without"
            " item(), detach() or argmax()"
        )


def _features(job: Job) -> dict[str, Feature]:
    """The feature terms that are ever weighed."""
    # in one order, however they were given: adapters are drawn one after another
    return {name: term for name, term in sorted(job.config.loss.features.items()) if largest(term.weight)}


def _with_features(job: Job, student: Classifier, teacher: Classifier) -> Lesson:
    builder = _Builder(job, student, teacher)
    parts = tuple(builder.part(name, settings) for name, settings in _features(job).items())
    objective = build_objective(job.config.loss, job.config.student.label_smoothing, job.task, parts)
    learner = Learner(builder.student, [part.term for part in parts])
    job.engine.place(learner)
    for part in parts:
        _check_gradient(part, learner, teacher, builder.images, job)
    apart = {"adapters": learner.beside} if list(learner.beside.state_dict()) else {}
    return Lesson(learner, objective, learner.student, tuple(objective.teacher_layers), apart)


class _Builder:
    """Builds the feature terms of one student and teacher from a dry batch."""

    def __init__(self, job: Job, student: Classifier, teacher: Classifier) -> None:
        self.job, self.student, self.teacher = job, student, teacher
        settings = job.config.student
        count = min(DRY_SAMPLES, settings.batch_size // settings.optim.accumulate, len(job.data.train))
        self.images = job.first_images(count)
        self.prefix = ""

    def part(self, name: str, settings: Feature) -> FeaturePart:
        pairs = self._pairs(settings)
        own, theirs = self._features(pairs)
        samples = self.job.transfer_set
        term: nn.Module = build_term(settings, own, theirs, len(samples), samples.labels)
        if settings.kind == "simkd":
            pairs = self._reuse_head(pairs, term.projector)  # type: ignore[arg-type]
            term = PlainTerm(_imitation, as_map)
        return FeaturePart(name, settings.weight, term, tuple(pairs))

    def _pairs(self, settings: Feature) -> list[tuple[str, str]]:
        if settings.layers is None:
            own, theirs = (candidates(net, self.images) for net in (self._plain_student, self.teacher))
            return [(self.prefix + s, t) for s, t in propose(own, theirs, LAYERS[settings.kind])]
        for pair in settings.layers:
            for role, network, name in (
                ("student", self._plain_student, pair.student),
                ("teacher", self.teacher, pair.teacher),
            ):
                check_layer(name, [layer for layer, _ in network.net.named_modules() if layer], role)
        return [(self.prefix + pair.student, pair.teacher) for pair in settings.layers]

    @property
    def _plain_student(self) -> Classifier:
        """The student as the user knows it, with its layers' own names."""
        net = self.student.net
        return self.student.with_net(net.net) if isinstance(net, ReusedHead) else self.student

    def _features(self, pairs: list[tuple[str, str]]) -> tuple[list[Tensor], list[Tensor]]:
        own, theirs = (
            _dry(network, self.images, list(names))
            for network, names in zip((self.student, self.teacher), zip(*pairs, strict=True), strict=True)
        )
        return [own.features[s] for s, _ in pairs], [theirs.features[t] for _, t in pairs]

    def _reuse_head(self, pairs: list[tuple[str, str]], projector: nn.Module) -> list[tuple[str, str]]:
        """SimKD: the student becomes its net, the projector and the teacher's head."""
        if self.prefix:
            raise ConfigError("one simkd term is enough: the student has one head")
        (own, theirs), *_ = pairs
        head = teacher_head(self.teacher, self.images, theirs)
        self.student = self.student.with_net(ReusedHead(self.student.net, own, projector, head))
        self.prefix = "net."
        return [("projector", theirs)]


def _imitation(student: Tensor, teacher: Tensor) -> Tensor:
    """SimKD's loss: the student's projected map against the teacher's, the larger pooled to the smaller."""
    return hint_loss(*pool_to_smaller(student, teacher))


@torch.no_grad()
def _dry(network: nn.Module, images: Tensor, layers: list[str]) -> Outputs:
    was_training = network.training
    network.eval()
    found = observe(network, images, layers)
    network.train(was_training)
    return found


def _check_gradient(
    part: FeaturePart, learner: Learner, teacher: Classifier, images: Tensor, job: Job
) -> None:
    """Raise `ConfigError` for a term that does not reach the student."""
    theirs = _dry(teacher, images, [name for _, name in part.pairs])
    was_training = learner.training
    before = copy.deepcopy(part.term.state_dict())  # CRD's memory must not start with these samples
    learner.eval()
    part.term.train()
    own = observe(learner, images, [name for name, _ in part.pairs])
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    batch = _DryBatch(labels, torch.arange(len(images), device=images.device))
    weights = [p for p in learner.student.parameters() if p.requires_grad]
    value = part(own, theirs, batch)
    grads = torch.autograd.grad(value, weights, allow_unused=True) if value.requires_grad else ()
    learner.train(was_training)
    part.term.load_state_dict(before)
    if not any(grad is not None and grad.abs().max() > 0 for grad in grads):
        pairs = ", ".join(f"{s} - {t}" for s, t in part.pairs)
        raise ConfigError(
            f"loss.features.{part.name} does not reach the student: its gradient is zero on a first batch"
            f" (layers {pairs}). Choose other layers: `kdistill list layers` shows them"
        )


@dataclass(frozen=True)
class _DryBatch:
    labels: Tensor
    indices: Tensor
