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
        self._helpers = [] if is_worker() else [_Helper(job, number) for number in range(1, count)]

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for helper in self._helpers:
            if kind is not None:
                helper.process.terminate()
            helper.wait()

    @property
    def is_over(self) -> bool:
        """Whether this is a worker, and who started it is gone."""
        return is_worker() and os.getppid() != int(os.environ[LEADER])

    def look(self) -> None:
        """Say so where a worker has ended before its time; its trial is taken up by another one."""
        for helper in self._helpers:
            helper.look()


class _Helper:
    """The same command in a process of its own, whose lines go into this one's log."""

    def __init__(self, job: Job, number: int) -> None:
        self._number, self._is_missed = number, False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdistill", *shlex.split(job.command("tune"))[1:]],
            env=os.environ | {LEADER: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def look(self) -> None:
        if self.process.poll() and not self._is_missed:
            self._is_missed = True
            code = self.process.returncode
            log.warning("worker %d has ended with exit code %d: the others go on", self._number, code)

    def wait(self) -> None:
        self._reader.join()
        self.process.wait()

    def _pass_on(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                log.info("worker %d: %s", self._number, line.rstrip())
