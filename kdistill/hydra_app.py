"""Hydra's jobs, called from Python: errors are raised, and not printed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import configure_log, run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, read_write

from kdistill.config import folders, hydra_state
from kdistill.task import task


def run(cfg: DictConfig, folder: Path) -> None:
    """Run the one job of a checked config in `folder`, as `hydra.main` would, which composes it twice before."""
    with read_write(cfg.hydra):
        cfg.hydra.mode, cfg.hydra.run.dir = RunMode.RUN, str(folder)
    configure_log(cfg.hydra.hydra_logging, cfg.hydra.verbose)
    with hydra_state.composer():
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        job = run_job(task, cfg, "hydra.run.dir", None, context)
    _ = job.return_value  # raises what the job has raised


def call(argv: list[str], function: Callable[[DictConfig], float | None] = task) -> None:
    """Let Hydra's command line call a function for every job of a sweep, or show what it is asked for."""
    with _hydra_process(["kdistill", *argv]):
        hydra.main(
            version_base=hydra_state.VERSION_BASE,
            config_path=str(folders.shipped_dir()),
            config_name="config",
        )(function)()


@contextlib.contextmanager
def _hydra_process(argv: list[str]) -> Iterator[None]:
    """Give Hydra its command line, and make it raise errors instead of printing them and leaving."""
    saved = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = saved[0]
        if saved[1] is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved[1]
