"""What each artifact of a run will take: the chain of `pipeline.run`, tried for a few steps and not made."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdistill.config import schema
from kdistill.config.schema import Config
from kdistill.data import Batch
from kdistill.losses import Outputs
from kdistill.resources import peak_memory, reset_peak_memory
from kdistill.stages import distill, finetune, train_teacher
from kdistill.stages.answers import answers
from kdistill.stages.job import Job
from kdistill.stages.objectives import rehearse, stand_in
from kdistill.stages.parts import Kind, Part, parts_of
from kdistill.stages.signals import asked, class_map_of, combined, count_outputs, live_teacher, mapped
from kdistill.stages.soft_targets import layout_for, read_file
from kdistill.stages.training import Course
from kdistill.stored import room_on
from kdistill.teachers import Live, TeacherSignal
from kdistill.trial import Cost, pace, try_fit

#: settings whose values make a step neither longer nor shorter
FREE = ("seed", "lr", "weight_decay", "alpha", "beta", "T")
#: rows of the made-up logits that stand for stored soft targets
MADE_UP_ROWS = 1024


@dataclass(frozen=True)
class Estimate:
    """What each of `count` artifacts takes; nothing where they are there already."""

    part: Part
    count: int
    cost: Cost

    @property
    def is_done(self) -> bool:
        return self.part.found is not None


def estimates(configs: Iterable[Config]) -> list[Estimate]:
    """What the runs of all configs take together: an artifact that they share is made once.

    Measures each kind of work once; random numbers of the caller's are not touched. Nothing is written.
    """
    parts = {(part.kind, part.key): part for config in configs for part in parts_of(Job.open(config))}
    alike: dict[str, list[Part]] = {}
    for part in parts.values():
        alike.setdefault(_like(part), []).append(part)
    return [Estimate(group[0], len(group), _cost(group[0])) for group in alike.values()]


def _like(part: Part) -> str:
    """Equal for parts that take the same: all that differs are settings that cost nothing."""
    steps = [_costly(step.config.model_dump(mode="json")) for step in part.job.chain]
    return json.dumps([part.kind, part.found is None, part.job.identity.needs_teacher, steps])


def _costly(node: Any) -> Any:
    """Settings, nested, without those that neither time nor memory depend on."""
    if isinstance(node, dict):
        return {key: _costly(value) for key, value in node.items() if key not in FREE}
    return node


# --- measuring ---


def _cost(part: Part) -> Cost:
    if part.found is not None:
        return Cost(seconds=0.0)
    try:
        with part.job.engine.seeded(0):
            return MEASURES[part.kind](part.job)
    except torch.OutOfMemoryError:
        return Cost(out_of_memory=True)


def _teacher(job: Job) -> Cost:
    if job.config.teacher.kind == "estimator":
        return Cost(judged=predictions_bytes(job))  # how long scikit-learn fits is known when it has
    return _tried(job, train_teacher.course(job))


def _student(job: Job) -> Cost:
    cost = _tried(job, distill.course(job, lambda: stand_in(job), lambda layers: _signal(job, layers)))
    if not job.identity.needs_teacher:
        return cost
    teachers = list(job.teachers.values())
    if not job.identity.stored:
        return replace(cost, asking_seconds=_asking_seconds(teachers, job.first_images(cost.batch_size)))
    held = [size for size in map(soft_targets_bytes, teachers) if size <= room_on(job.engine.device)]
    return replace(cost, memory=cost.memory + sum(held))


def _asking_seconds(teachers: Sequence[Job], images: Tensor) -> float:
    live = [teacher for teacher in map(_live_teacher, teachers) if teacher is not None]
    if not live:
        return 0.0
    asked = ([teacher.logits(images) for teacher in live] for _ in itertools.count())
    return pace(asked, images.device)[1]


def _finetuned(job: Job) -> Cost:
    found = job.find_student()
    return _tried(job, finetune.course(job, lambda: job.load(found) if found else rehearse(job).student))


def _tried(job: Job, course: Course) -> Cost:
    lesson = course.begin(job)
    cost = try_fit(
        lesson.network,
        course.data,
        job.data.validation.to(job.engine.device),
        lesson.objective,
        course.settings,
        job.engine_for(course.role),
        signal=course.signal(lesson.teacher_layers),
        judge_start=course.judges_start(job),
    )
    kept = sum(map(_bytes, [lesson.student.net, *lesson.apart.values()]))
    return _shared(job, replace(cost, kept=kept, judged=predictions_bytes(job)))


def _shared(job: Job, cost: Cost) -> Cost:
    """The cost where processes share the work, as it would be if they sent each other nothing."""
    if cost.seconds is None or job.config.device.processes == 1:
        return cost
    faster = speed_up(job.config.device, job.engine.device)
    return replace(cost, seconds=cost.seconds / faster, step_seconds=cost.step_seconds / faster)


def speed_up(settings: schema.Device, device: torch.device) -> float:
    """How many times the device of a trial the processes of a run have: GPUs, or threads of this machine."""
    if device.type != "cpu":
        return settings.processes
    cores = os.cpu_count() or 1
    usual = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // settings.processes))
    threads = settings.processes * (settings.threads or usual)
    return min(threads, max(cores, torch.get_num_threads())) / torch.get_num_threads()


def _bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def _soft_targets(job: Job) -> Cost:
    kept = soft_targets_bytes(job)
    if job.identity.is_file:
        started = time.perf_counter()
        read_file(job)
        return Cost(seconds=time.perf_counter() - started, kept=kept)
    teacher = _live_teacher(job)
    if teacher is None:
        return Cost(kept=kept)
    reset_peak_memory(job.engine.device)
    samples, size = len(job.transfer_set), job.config.soft_targets.batch_size
    images = round(samples * job.teacher_views.different(job.identity.teacher_views))
    again = (step for _ in itertools.count() for step in answers(job, teacher, torch.arange(samples)))
    first, step = pace(again, job.engine.device)
    steps = -(-images // size)
    memory = peak_memory(job.engine.device)
    return _shared(job, Cost(first + (steps - 1) * step, steps, step, min(size, images), memory, kept))


#: how the cost of each kind of artifact is found
MEASURES: dict[Kind, Callable[[Job], Cost]] = {
    "teacher": _teacher,
    "soft-targets": _soft_targets,
    "student": _student,
    "finetuned": _finetuned,
}


def soft_targets_bytes(job: Job) -> int:
    """Size of a teacher's stored logits: views x samples x bytes of a row."""
    return layout_for(job, count_outputs(job, job.find_teacher())).bytes


def predictions_bytes(job: Job) -> int:
    """Size of what a network says of the test split: logits, labels, and the names of samples and classes."""
    test, classes = job.data.test, list(job.data.classes)
    return (
        4 * len(test) * len(classes)
        + test.labels.nbytes
        + len(json.dumps(list(test.ids)) + json.dumps(classes))
    )


# --- teachers that are not there yet ---


def _live_teacher(job: Job, layers: Sequence[str] = ()) -> Live | None:
    """The teacher, or an untrained one in its place; None for an estimator, which cannot answer untrained."""
    found = job.find_teacher()
    if found is not None:
        return live_teacher(job, found, layers)
    if job.previous is None and job.config.teacher.kind == "estimator":
        return None
    return asked(job, stand_in(job), layers)


def _signal(job: Job, layers: Sequence[str]) -> TeacherSignal | None:
    """What `signals.teacher_signal` will be, with made-up logits for those that are to be stored."""
    if not job.identity.needs_teacher:
        return None

    def one(name: str, member: Job) -> TeacherSignal:
        classes = class_map_of(member, member.find_teacher())
        teacher = None if member.identity.stored else _live_teacher(member, layers)
        return mapped(teacher or _made_up(member, classes.teacher_classes), classes)

    return combined(job, one)


def _made_up(job: Job, classes: int) -> TeacherSignal:
    rows = torch.randn(MADE_UP_ROWS, classes).to(job.engine.device)

    def signal(batch: Batch, view: int, T: float) -> Outputs:
        return Outputs(rows[batch.indices % MADE_UP_ROWS])

    return signal
