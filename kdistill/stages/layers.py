"""What there is to compare: the layers of a config's student and teacher, without training either."""

from __future__ import annotations

from kdistill.config.schema import Config
from kdistill.errors import ConfigError
from kdistill.features import Layer, candidates
from kdistill.models import Classifier
from kdistill.pairing import layers_table, propose
from kdistill.records import Table
from kdistill.stages.job import Job


def layers_of(config: Config) -> tuple[Table, tuple[str, str] | None]:
    """Both networks' layers as a table, and a pair (student's, teacher's) that goes together; None without any.

    Networks that are not trained yet are built with random weights: their layers are the same. Raises
    `ConfigError` for a teacher that is no network, and what reading the data or building raises.
    """
    job = Job.open(config)
    teacher = config.teacher
    if job.previous is None and teacher.kind not in ("network", "folder"):
        raise ConfigError(f"teacher.name={teacher.name} is no network: it has no layers to look into")
    first = job.first_images(1)
    with job.engine.seeded(0):
        student, taught_by = (candidates(network, first) for network in (job.build("student"), _teacher(job)))
    return layers_table(student, taught_by), _pair(student, taught_by)


def _teacher(job: Job) -> Classifier:
    found = job.find_teacher()
    if found is not None:
        return job.load(found)
    return job.previous.build("student") if job.previous else job.build("teacher")


def _pair(student: list[Layer], teacher: list[Layer]) -> tuple[str, str] | None:
    for which in ("last", "embedding"):
        try:
            return propose(student, teacher, which)[0]
        except ConfigError:
            continue  # a network without such layers
    return None
