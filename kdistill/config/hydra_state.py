"""Hydra's state in this process: set up to compose, and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

from kdistill import plugins
from kdistill.config import folders

VERSION_BASE = "1.3"


class UserConfigs(SearchPathPlugin):
    """Puts the user's folders first, so that they add options and replace shipped ones."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(folders.user_dirs()):
            search_path.prepend("user", f"file://{folder}", anchor=None)


Plugins.instance().register(UserConfigs)


@contextmanager
def composer() -> Iterator[None]:
    """Hydra with the shipped configs and the user's: what composes needs it."""
    for name, loss in plugins.losses().items():
        ConfigStore.instance().store(group="loss", name=name, node=loss.section, package="loss")
    # A job of Hydra's may compose others, as a search does; it gets its own Hydra back.
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(
            str(folders.shipped_dir()), job_name="kdistill", version_base=VERSION_BASE
        ):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


@contextmanager
def as_current(cfg: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` in Hydra's own section resolve."""
    outer = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = outer
