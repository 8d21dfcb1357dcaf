"""Hydra's command line, called from Python: its errors are raised, and not printed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import hydra
from omegaconf import DictConfig

from kdistill.config import folders, hydra_state
from kdistill.task import task


def call(argv: list[str], function: Callable[[DictConfig], float | None] = task) -> None:
    """Let Hydra call a function for every job of a command line, or show what that asks for."""
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
