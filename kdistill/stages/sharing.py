"""What several jobs of a sweep use, made before they start side by side: by one process, with all cores."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from kdistill.config.schema import Config
from kdistill.console import debug
from kdistill.errors import Interrupted, first_line
from kdistill.logs import before_jobs, early_warnings
from kdistill.records import Result
from kdistill.stages.job import Job, Watch, command_line
from kdistill.stages.parts import Part, parts_of, teaching
from kdistill.stages.tracking import tracked

log = logging.getLogger("kdistill")
#: the folder of a sweep that a tracker is told of this work by
SHARED = "shared"


def make_shared(configs: Sequence[Config], overrides: Sequence[Sequence[str]], folder: Path) -> None:
    """Make the teachers, soft targets and students that at least two of the jobs use and that are not there yet.

    Else one job would make them with its share of the cores, while the others wait. `overrides` are the user's words
    for each job, `folder` is the sweep's. What cannot be made is left to the jobs, which say why. Raises
    `Interrupted`.
    """
    jobs = list(zip(configs, overrides, strict=True))
    missing = _missing([list(_parts(Job.open(*job))) for job in jobs])
    with before_jobs(folder / "kdistill.log"):
        for number, parts in missing.items():
            log.info("made first, for several jobs: %s", ", ".join(f"{p.kind} {p.model}" for p in parts))
            _make(*jobs[number], {part.key for part in parts}, folder / SHARED)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the jobs need it


def _missing(jobs: Sequence[list[Part]]) -> dict[int, list[Part]]:
    """What is to be made, of the parts of each job, by the number of the first job that uses it."""
    users = Counter(key for parts in jobs for key in {part.key for part in parts})
    missing, known = {}, set()
    with early_warnings():
        for number, parts in enumerate(jobs):
            new = [part for part in parts if users[part.key] > 1 and part.key not in known]
            known |= {part.key for part in new}
            if unmade := [part for part in new if part.found is None]:
                missing[number] = unmade
    return missing


def _parts(job: Job) -> Iterator[Part]:
    """What a job makes on its way to what it alone is for."""
    if job.config.stage == "run":
        yield from parts_of(job)
    elif job.config.stage == "distill":
        own = job.teachers.values()
        yield from (part for part in teaching(job) if part.kind == "soft-targets" and part.job in own)


def _make(config: Config, words: Sequence[str], keys: set[str], folder: Path) -> None:
    def work(watch: Watch) -> Result:
        for part in _parts(Job.open(config, words, watch)):
            if part.key in keys:
                part.make()
        return Result(objective=None, row={})

    try:
        tracked(work, config, command_line(config.stage, words), folder)
    except Interrupted:
        raise
    except Exception as ex:
        log.error("what several jobs use was not made", exc_info=ex, extra={"file_only": not debug()})
        log.error("%s. The jobs that need it try again", first_line(ex))
