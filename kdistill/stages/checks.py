"""What cannot work together, refused before any training."""

from __future__ import annotations

import inspect
import logging
import math

from kdistill.config.losses import LogitLoss, MutualLoss, OwnLoss
from kdistill.config.section import largest
from kdistill.errors import ConfigError
from kdistill.losses.formula import OTHER_TASKS, soft_loss
from kdistill.stages.job import Job
from kdistill.stages.objectives import try_own_loss
from kdistill.stages.signals import class_map_of
from kdistill.stages.soft_targets import check_soft_targets

log = logging.getLogger("kdistill")
#: methods that compare the samples of a batch with each other, and how many that takes
COMPARED_SAMPLES = {"dist": 2, "mlkd": 2, "sp": 2, "rkd": 3, "pkt": 2}


def check_method(job: Job) -> None:
    """Raise `ConfigError` for a loss that this data, this teacher or these settings do not allow."""
    _check_inputs(job)
    if job.previous is not None and not job.identity.needs_teacher:
        raise ConfigError(
            f"loss={job.config.loss.kind} has no teacher, so nothing is handed on: take out assistant and generations"
        )
    _check_task(job)
    _check_labels(job)
    _check_batch(job)
    if isinstance(job.config.loss, OwnLoss):
        try_own_loss(job, job.config.loss)
    if job.identity.needs_teacher:
        _check_classes(job)
        _check_stored(job)
    if job.config.loss.features:
        _check_features(job)
    if any(t.identity.is_file for t in job.teachers.values()) and job.config.soft_targets.mode == "live":
        raise ConfigError(
            "soft_targets=live needs a teacher that can be asked; teacher=file has only its outputs"
        )
    if job.config.mixing.kind != "none" and job.identity.needs_teacher and job.identity.stored:
        log.warning(
            "mixing=%s with stored soft targets is an approximation: the stored answers are mixed, where"
            " soft_targets=live asks the teacher about the mixed images",
            job.config.mixing.kind,
        )


def check_shares(job: Job) -> None:
    """Raise `ConfigError` for batches that `device.processes` cannot share."""
    config, count = job.config, job.config.device.processes
    sections = {"teacher": config.teacher, "student": config.student, "finetune": config.finetune}
    for name, section in sections.items() if count > 1 else ():
        size, parts = section.batch_size, section.optim.accumulate
        if size < count:
            raise ConfigError(
                f"{name}.batch_size={size} is too small to be shared by device.processes={count}"
            )
        if parts > 1 and size % (count * parts):
            raise ConfigError(
                f"{name}.batch_size={size} cannot be split into {name}.optim.accumulate={parts} equal parts for each"
                f" of device.processes={count}; a multiple of {count * parts} can"
            )


def _check_inputs(job: Job) -> None:
    for role in ("teacher", "student"):
        shown = getattr(job.config, role).input
        if (shown.size is None and not shown.grey) or (job.previous and role == "teacher"):
            continue
        if not job.data.is_images:
            raise ConfigError(
                f"{role}.input.size and .grey are for images; {job.config.dataset.name} has none"
            )
        if role == "teacher" and job.config.teacher.kind == "folder":
            raise ConfigError(
                "teacher=folder is shown images as it was trained on them; take out teacher.input.size and .grey"
            )


def _check_task(job: Job) -> None:
    loss, task = job.config.loss, job.task.name
    defined = ["ce", *sorted(OTHER_TASKS.get(task, {}))]
    if task != "classification" and loss.kind not in (*defined, "features", "own"):
        raise ConfigError(
            f"loss={loss.kind} is for classification, but {job.config.dataset.name} is for {task};"
            f" choose from: {', '.join(defined)}, a loss on features, or one of your own"
        )
    if task == "regression":
        for role in ("student", "teacher", "finetune"):
            if smoothing := getattr(job.config, role).label_smoothing:
                raise ConfigError(
                    f"{role}.label_smoothing={smoothing:g}: there is nothing to smooth in regression"
                )
    if isinstance(loss, MutualLoss) and job.config.student.weights is not None:
        raise ConfigError(
            "loss=dml needs two students that start differently: with student.weights both would start equal"
        )
    if isinstance(loss, MutualLoss) and loss.features:
        raise ConfigError("loss=dml has no teacher whose features could be imitated; take out feature=...")


def needs_labels(job: Job) -> bool:
    """Whether the loss on logits asks for each sample's class."""
    loss = job.config.loss
    if not isinstance(loss, LogitLoss) or isinstance(loss, MutualLoss) or not largest(loss.soft_weight):
        return False
    return "labels" in inspect.signature(soft_loss(loss, job.task).function).parameters


def _check_labels(job: Job) -> None:
    loss, mixing = job.config.loss, job.config.mixing.kind
    unlabelled = job.data.unlabelled is not None
    if unlabelled and mixing != "none":
        raise ConfigError(
            f"mixing={mixing} mixes labels, and unlabelled images have none: use one of the two"
        )
    if unlabelled and (cause := _parts_of_batches(job)[1]):
        log.warning(
            "the hard term is a mean over the labelled images of each part of a batch:"
            " %s with dataset.unlabelled changes what is learnt",
            cause,
        )
    if unlabelled and loss.kind in ("ce", "label_smoothing"):
        raise ConfigError(
            f"loss={loss.kind} learns from labels alone and has no use for dataset.unlabelled: take it out"
        )
    if not needs_labels(job):
        return
    if unlabelled:
        raise ConfigError(
            f"loss={loss.kind} needs the label of every image, and dataset.unlabelled brings images without;"
            " use loss=kd, or take dataset.unlabelled out"
        )
    if mixing != "none":
        raise ConfigError(
            f"loss={loss.kind} needs one label for each image, and mixing={mixing} gives two;"
            " use loss=kd or mixing=none"
        )


def _check_classes(job: Job) -> None:
    """A teacher that is brought along may have other classes; what is trained here has the student's own."""
    simkd = any(term.kind == "simkd" for term in job.config.loss.features.values())
    for member in job.teachers.values():
        classes = class_map_of(member, member.find_teacher())
        if simkd and not classes.is_identity:
            raise ConfigError(
                "simkd takes over the teacher's head: its classes must be the student's, in the same order"
            )
        if classes.is_full:
            continue
        if "" not in job.teachers:
            raise ConfigError("the members of an ensemble must all know every class of the student")
        if needs_labels(job):
            raise ConfigError(
                f"loss={job.config.loss.kind} needs a teacher that knows the class of every image, and this one"
                f" knows {len(classes.shared)} of {classes.student_classes}; use loss=kd"
            )


def _check_stored(job: Job) -> None:
    stored = [teacher for teacher in job.teachers.values() if teacher.identity.stored]
    check_soft_targets(stored)
    if job.config.soft_targets.top_k is not None and not stored:
        log.warning(
            "soft_targets.top_k=%d has no effect: the teacher runs in every step, and nothing is stored",
            job.config.soft_targets.top_k,
        )


def _check_batch(job: Job) -> None:
    student, loss = job.config.student, job.config.loss
    parts, cause = _parts_of_batches(job)
    size = student.batch_size // parts
    kinds = [loss.kind, *(term.kind for term in loss.features.values() if largest(term.weight))]
    compared = [kind for kind in kinds if kind in COMPARED_SAMPLES]
    named = max(compared, key=lambda kind: COMPARED_SAMPLES[kind], default=None)
    if named and size < COMPARED_SAMPLES[named]:
        raise ConfigError(
            f"{named} compares the samples of a batch: it needs at least {COMPARED_SAMPLES[named]} of them at once,"
            f" got student.batch_size={student.batch_size}{f' in {parts} parts ({cause})' if cause else ''}"
        )
    if named and cause:
        log.warning(
            "%s compares the samples of each part of a batch: %s changes what is learnt", named, cause
        )
    if "crd" in kinds and job.config.device.processes > 1:
        raise ConfigError(
            "crd remembers every image, and processes would each remember their own; use device.processes=1"
        )


def _parts_of_batches(job: Job) -> tuple[int, str]:
    """In how many parts a student's batch is learnt from, and the settings that say so; none for the whole."""
    settings = {
        "optim.accumulate": job.config.student.optim.accumulate,
        "device.processes": job.config.device.processes,
    }
    said = [f"{name}={count}" for name, count in settings.items() if count > 1]
    return math.prod(settings.values()), " and ".join(said)


def _check_features(job: Job) -> None:
    config = job.config
    names = ", ".join(config.loss.features)
    if config.soft_targets.mode == "stored":
        raise ConfigError(
            f"features ({names}) are not stored: they need the live teacher. Use soft_targets=auto or live"
        )
    if not job.previous and config.teacher.kind not in ("network", "folder"):
        raise ConfigError(
            f"features ({names}) need one network as teacher; {config.teacher.name} has none to look into"
        )
    if config.device.compile:
        raise ConfigError(
            f"features ({names}) need device.compile=false: a compiled network hides its layers"
        )
    kinds = {term.kind for term in config.loss.features.values()}
    if "crd" in kinds and config.mixing.kind != "none":
        raise ConfigError("crd remembers each image by itself, which mixing blurs; use mixing=none")
    if "simkd" in kinds and len(kinds) > 1:
        others = ", ".join(sorted(kinds - {"simkd"}))
        raise ConfigError(
            f"simkd replaces the student's head and goes with no other feature term (got {others})"
        )
