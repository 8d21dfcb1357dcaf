"""Commands that take turns on the machine: one runs for some seconds while the others are stopped, on Linux.

What is compared so meets the same machine. Commands that ran one after the other, minutes apart, met different ones.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from memory import memory

#: how often a command's memory is looked at; more often would slow it
LOOK_SECONDS = 1.0
CLOCK = Path(__file__).with_name("clock")


@dataclass(frozen=True)
class Process:
    number: int
    popen: subprocess.Popen[bytes]
    out: IO[str]
    err: IO[str]


class Command:
    """Processes that are started, stopped and let run together, and what they used.

    A command line of several is a process of its own with all that it starts; in those that are Python's,
    `time.perf_counter` stands still while they are stopped. `weight` is how long it takes, roughly, in the unit of
    those that it takes turns with.
    """

    def __init__(
        self,
        *lines: Sequence[str],
        weight: float = 1,
        variables: Mapping[str, str] = {},
        folder: Path | None = None,
    ) -> None:
        self.weight = weight
        self.spans: list[tuple[float, float]] = []
        self.usages: list[resource.struct_rusage] = []
        self.peak_mb = 0.0
        self.said = [""] * len(lines)
        self._stopped = tempfile.NamedTemporaryFile()  # noqa: SIM115  for how long, which the processes look up
        self._lines, self._folder = lines, folder
        self._variables = {**variables, "PYTHONPATH": str(CLOCK), "TURNS_STOPPED": self._stopped.name}
        self._running: dict[int, Process] = {}  # by a descriptor that is readable when it has ended

    @property
    def seconds(self) -> float:
        return sum(end - start for start, end in self.spans)

    @property
    def cpu_seconds(self) -> float:
        return sum(usage.ru_utime + usage.ru_stime for usage in self.usages)

    def turn(self, seconds: float) -> bool:
        """Let it run until `seconds` are over or it has ended; returns whether it has.

        Raises `SystemExit` with what a process wrote to stderr if that failed.
        """
        started = time.perf_counter()
        stopped = started - self.spans[0][0] - self.seconds if self.spans else 0.0
        os.pwrite(self._stopped.fileno(), struct.pack("d", stopped), 0)
        self._signal(signal.SIGCONT)
        if not self.spans:
            self._start()
        while self._running and (left := started + seconds - time.perf_counter()) > 0:
            self._wait(min(left, LOOK_SECONDS))
        self._signal(signal.SIGSTOP)
        self.spans.append((started, time.perf_counter()))
        if self._running:
            return False
        self._stopped.close()
        return True

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        for descriptor in list(self._running):
            self._end(descriptor)
        self._stopped.close()

    def _start(self) -> None:
        for number, line in enumerate(self._lines):
            out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
            variables = os.environ | self._variables
            process = subprocess.Popen(
                line, stdout=out, stderr=err, cwd=self._folder, env=variables, start_new_session=True
            )
            self._running[os.pidfd_open(process.pid)] = Process(number, process, out, err)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.popen.pid, number)

    def _wait(self, seconds: float) -> None:
        """For an end, no longer than `seconds`."""
        ended, _, _ = select.select(list(self._running), [], [], seconds)
        for descriptor in ended:
            if error := self._end(descriptor):
                raise SystemExit(error)
        self.peak_mb = max(self.peak_mb, sum(memory(p.popen.pid) for p in self._running.values()))

    def _end(self, descriptor: int) -> str:
        """Note what a process used and said; returns its complaint, if it failed."""
        process = self._running.pop(descriptor)
        os.close(descriptor)
        _, status, usage = os.wait4(process.popen.pid, 0)
        process.popen.returncode = os.waitstatus_to_exitcode(status)
        self.usages.append(usage)
        with process.out as out, process.err as err:
            out.seek(0)
            err.seek(0)
            self.said[process.number] = out.read()
            return err.read() or f"exit code {process.popen.returncode}" if status else ""


def in_turns(commands: Sequence[Command], seconds: float) -> Iterator[int]:
    """Run all of them, `seconds` at a time; yields the place of each that has ended.

    The next is the one that has least of its work behind it, so that all last until the end, roughly.
    """
    left = dict(enumerate(commands))
    try:
        while left:
            place = min(left, key=lambda place: left[place].seconds / left[place].weight)
            if left[place].turn(seconds):
                del left[place]
                yield place
    finally:
        for command in left.values():
            command.kill()
