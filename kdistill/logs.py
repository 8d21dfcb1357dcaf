"""Log lines on the console. `configs/hydra/*_logging/kdistill.yaml` name the handler."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.text import Text

from kdistill.console import complain, err

#: what a line of this process begins with, where several write to one console
prefix = ""


class ConsoleHandler(logging.Handler):
    """Writes through rich above the bar on a terminal, and as plain lines in a pipe.

    Other libraries, Hydra among them, are heard from WARNING on. A record with `extra={"file_only": True}` goes to the
    log file alone: it holds a traceback that the console shows as one line.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "file_only", False) or record.getMessage() in _shown:
            return False
        heard = record.levelno >= logging.WARNING or record.name.split(".")[0] == "kdistill"
        return heard and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).lstrip("\t")
            if record.levelno >= logging.WARNING:
                line = f"{record.levelname.lower()}: {line}"
            line = prefix + line
            if err.is_terminal:
                err.print(Text(line), soft_wrap=True)
            else:
                complain(line)
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """The run's log. A full disk ends the log and not the message that tells the user of it."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


#: warnings that the console showed before the run, which comes upon them again
_shown: set[str] = set()


@contextmanager
def before_jobs(file: Path) -> Iterator[None]:
    """Log as a job does, on the console and in a file, before Hydra has set that up for the first job."""
    logger = logging.getLogger("kdistill")
    before = logger.level, logger.propagate
    in_file = LogFile(file, delay=True)
    in_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers = ConsoleHandler(), in_file
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # what Hydra has set up for a command before, in the same process, would repeat each line
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


class _EarlyHandler(ConsoleHandler):
    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        _shown.add(record.getMessage())


@contextmanager
def early_warnings() -> Iterator[None]:
    """Show warnings before Hydra has set up the logging of the run, each once; the run's log has them again."""
    _shown.clear()
    logger, handler = logging.getLogger("kdistill"), _EarlyHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
