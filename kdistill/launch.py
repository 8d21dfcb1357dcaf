"""`device.processes=N`: the command starts itself N times with torchrun's launcher, and answers for all of them.

Under `torchrun` itself (and here, in the processes that were started) the command is one of several ranks: only
the main one is heard. Imports nothing heavy.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kdistill.errors import Interrupted, PeerLost, RunError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

GO_ON = "Give the same command again: it goes on from the state that was saved last"
#: exit codes of a rank that ends because another one did
STOPPED = (-signal.SIGTERM, PeerLost.exit_code)
#: torch's text for a rank that left no message
NO_MESSAGE = "<NONE>"


def is_rank() -> bool:
    """Whether torchrun started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def is_heard() -> bool:
    """Whether this process speaks to the user: it is alone, or the main rank."""
    return not is_rank() or os.environ["RANK"] == "0"


@contextmanager
def own_place() -> Iterator[list[str]]:
    """Let a rank that is not heard write neither to the console nor into the run's folder; yields Hydra's overrides."""
    if is_rank():
        os.environ.setdefault(
            "TORCH_CPP_LOG_LEVEL", "ERROR"
        )  # of every rank the same advice to torch's users
    if is_heard():
        yield []
        return
    console = sys.stdout, sys.stderr
    with scratch() as folder, open(os.devnull, "w") as nowhere:  # noqa: PTH123
        sys.stdout = sys.stderr = nowhere
        try:
            yield [f"hydra.run.dir='{folder}'"]
        finally:
            sys.stdout, sys.stderr = console


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for what this rank alone needs; within its starter's, who clears up after one that is killed."""
    told = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return tempfile.TemporaryDirectory(dir=Path(told).parent if told else None)


def end(code: int) -> NoReturn:
    """End this process with `code`, now, as `multiprocessing` ends its own: without Python's clearing up.

    That is work for nothing, as the memory goes back anyway, and takes as long as some commands do. In a rank it is a
    danger, too: gloo's threads may still be about to let go of tensors, and one that does so while Python clears up
    aborts the process, whatever it has achieved (PyTorch, pull request 179291, 2026). Threads are waited for, and what
    is registered for the end is done.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader has left
            stream.flush()
    os._exit(code)


def start(argv: Sequence[str], processes: int) -> int:
    """Run the command line `argv` in several processes on this machine; returns the exit code.

    Raises `RunError` with one message when one of them ends: it cannot be done without.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable()  # the launcher reports in its own words what is said here in one line
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id="kdistill",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "kdistill", *argv)
        except ChildFailedError as ex:
            return _answer(ex.failures, processes)
        except SignalException:
            return Interrupted.exit_code  # the main rank has told it
        finally:
            logging.disable(logging.NOTSET)
    return 0


def _answer(failures: Mapping[int, ProcessFailure], processes: int) -> int:
    """The exit code of what the main rank has told already; raises `RunError` for what happened to another one."""
    # who has left a message may have been ended while it left
    causes = {rank: f for rank, f in failures.items() if f.exitcode not in STOPPED or _message(f)}
    rank, failure = min((causes or failures).items(), key=lambda item: item[0])
    which = f"process {rank} of {processes}, counted from 0,"
    if message := _message(failure):
        raise RunError(f"{which} failed: {message}. {GO_ON}")
    if failure.exitcode < 0:
        raise RunError(f"{which} was ended by {signal.Signals(-failure.exitcode).name}. {GO_ON}")
    if failure.exitcode == PeerLost.exit_code:
        raise RunError(f"{which} lost the others. {GO_ON}")
    return failure.exitcode


def _message(failure: ProcessFailure) -> str:
    """What a rank has left for its starter to tell; empty where that is nothing."""
    message = str(failure.error_file_data["message"])
    return "" if message == NO_MESSAGE else message
