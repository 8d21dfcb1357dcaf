"""`tune.workers=N`: the command starts itself N - 1 times, and all of them run trials of one study."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from threading import Thread
from types import TracebackType

import torch

from kdistill.stages.job import Job

log = logging.getLogger("kdistill")
#: the environment variable that tells a worker the process which started it
LEADER = "KDISTILL_TUNE_LEADER"


def is_worker() -> bool:
    """Whether another process has started this one to help it."""
    return LEADER in os.environ


class Team:
    """The processes of one command. Leaving it waits for them; with an error, they save their state and end."""

    def __init__(self, job: Job) -> None:
        count = job.config.tune.workers
        self.threads = max(1, torch.get_num_threads() // count) if count > 1 else None
        """CPU threads of each; None where there is one."""
        self._helpers = {} if is_worker() else {n: _start(job, n) for n in range(1, count)}
        self._missed: set[int] = set()

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for helper in self._helpers.values():
            if kind is not None:
                helper.terminate()
            helper.wait()

    @property
    def is_over(self) -> bool:
        """Whether this is a worker, and who started it is gone."""
        return is_worker() and os.getppid() != int(os.environ[LEADER])

    def look(self) -> None:
        """Say so, once, where a worker has ended before its time; its trial is taken up by another one."""
        for number, helper in self._helpers.items():
            if helper.poll() and number not in self._missed:
                self._missed.add(number)
                log.warning("worker %d has ended with exit code %d: the others go on", number, helper.returncode)


def _start(job: Job, number: int) -> subprocess.Popen[str]:
    words = shlex.split(job.command("tune"))[1:]
    helper = subprocess.Popen(
        [sys.executable, "-m", "kdistill", *words],
        env=os.environ | {LEADER: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    Thread(target=_pass_on, args=(helper, number), daemon=True).start()
    return helper


def _pass_on(helper: subprocess.Popen[str], number: int) -> None:
    """Write a worker's lines into this process's log."""
    assert helper.stderr is not None
    for line in helper.stderr:
        log.info("worker %d: %s", number, line.rstrip())
