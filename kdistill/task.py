"""What Hydra calls for every job. Importable, so that launchers can send it to worker processes."""

from __future__ import annotations

import errno
import logging
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdistill import jobfolder, logs
from kdistill.config.compose import validate
from kdistill.config.overrides import users_words
from kdistill.console import debug
from kdistill.errors import Interrupted, KdistillError, PeerLost, StorageError, UserError, first_line
from kdistill.stopping import stop_requests

if TYPE_CHECKING:
    from kdistill.records import Result

log = logging.getLogger("kdistill")


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `result.json` holds the same."""

    status: str
    """ok, failed or interrupted"""
    result: Result | None = None
    error: str = ""
    exit_code: int = 0


#: The last job of this process. A single run is reported from here: a full disk cannot hide why it failed.
last: Outcome | None = None


def task(cfg: DictConfig) -> float | None:
    """Run one stage; returns validation top-1 for a sweeper.

    Never raises an `Exception`, which Hydra would report in its own words and a sweep would end with:
    a failed job is told in `result.json` and by `last`. Raises `KeyboardInterrupt`, which ends a sweep.
    """
    global last
    last = None
    folder = Path(HydraConfig.get().runtime.output_dir)
    with jobfolder.at_work(folder):
        settings: dict[str, Any] = {}
        try:
            config = validate(cfg)
            settings = _settings(cfg)
            words = users_words(HydraConfig.get().overrides.task)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                # a worker's lines begin with the number, all of them
                number = "" if logs.prefix else f"job {HydraConfig.get().job.num}: "
                log.info("%s%s", number, " ".join(words))
            from kdistill.stages import run_stage

            last = Outcome("ok", run_stage(config, words, folder))
        except (KeyboardInterrupt, Interrupted) as ex:
            last = Outcome("interrupted", error=str(ex), exit_code=Interrupted.exit_code)
            raise KeyboardInterrupt(str(ex)) from ex
        except Exception as ex:
            with stop_requests():  # a process whose peer has died is told to stop while it says so
                last = _failed(ex, Path(str(cfg.runs)), folder)
        finally:
            # The disk may be full: what `last` says must not be lost to that, nor to a signal.
            with suppress(OSError), stop_requests() as stop:
                _record(folder, last, settings)
            if stop and HydraConfig.get().mode == RunMode.MULTIRUN:
                raise KeyboardInterrupt
    if last.result is None:
        return math.nan
    return last.result.objective


def _failed(ex: Exception, runs: Path, folder: Path) -> Outcome:
    """The outcome of a job that raised: the traceback goes to the log file, one message to the user."""
    log.error("the run failed", exc_info=ex, extra={"file_only": not debug()})
    log_line = f"log: {folder / 'kdistill.log'}"
    from kdistill import ranks

    known = ex if isinstance(ex, KdistillError) else storage_error(ex, runs)
    if ranks.is_lost(ex):
        known = PeerLost("another process of this run has ended")
    if known is None:
        message = f"{type(ex).__name__}: {first_line(ex)}\n{log_line}\nKDISTILL_DEBUG=1 shows the traceback"
        outcome = Outcome("failed", error=message, exit_code=1)
    elif isinstance(known, UserError):
        outcome = Outcome("failed", error=str(known), exit_code=known.exit_code)
    else:
        outcome = Outcome("failed", error=f"{known}\n{log_line}", exit_code=known.exit_code)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        log.error(outcome.error.partition("\n")[0])
    return outcome


def storage_error(ex: BaseException, runs: Path) -> StorageError | None:
    """The message for a full disk or a folder that cannot be written; None for any other error."""
    from kdistill.files import storage_problem

    if isinstance(ex, OSError):
        is_ours = ex.filename is None or Path(str(ex.filename)).resolve().is_relative_to(runs.resolve())
        is_full = ex.errno in (errno.ENOSPC, errno.EDQUOT)
        return storage_problem(ex, runs) if is_ours or is_full else None
    # Libraries that write in other languages wrap the operating system's text in errors of their own.
    if "No space left on device" in str(ex):
        return storage_problem(OSError(errno.ENOSPC, str(ex)), runs)
    return None


def _settings(cfg: DictConfig) -> dict[str, Any]:
    """What `kdistill results` filters and groups by."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    choices: Any = OmegaConf.to_container(HydraConfig.get().runtime.choices)
    return jobfolder.settings_of(plain, choices)


def _record(folder: Path, outcome: Outcome | None, settings: dict[str, Any]) -> None:
    if outcome is None:
        return
    hydra = HydraConfig.get()
    content: dict[str, Any] = {
        "status": outcome.status,
        "job": hydra.job.num if hydra.mode == RunMode.MULTIRUN else None,
        "overrides": users_words(hydra.overrides.task),
    }
    if outcome.result is not None:
        result = outcome.result
        content |= {"objective": result.objective, "row": result.row, "artifacts": result.artifacts}
    else:
        content |= {"error": " ".join(outcome.error.split()), "exit_code": outcome.exit_code}
    jobfolder.write_result(folder, content | {"settings": settings})
