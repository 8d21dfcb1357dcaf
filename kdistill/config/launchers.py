"""Hydra's launchers, which run a sweep's jobs one after another or side by side, and what is asked of them in vain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdistill.errors import ConfigError

#: launcher -> the extra that it comes with
EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}


@dataclass(frozen=True)
class Launcher:
    """A launcher by its name, and its settings."""

    name: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, cfg: DictConfig) -> Launcher:
        """That of a composed config with its `hydra` section."""
        settings: Any = OmegaConf.to_container(cfg.hydra.launcher, resolve=False)
        return cls(str(cfg.hydra.runtime.choices["hydra/launcher"]), settings)

    @property
    def is_parallel(self) -> bool:
        """Whether jobs run in processes of their own, several at a time."""
        return self.name != "basic"

    def check(self, multirun: bool, force: bool) -> None:
        """Refuse what jobs side by side cannot do; raises `ConfigError`."""
        if not self.is_parallel:
            return
        if not multirun:
            raise ConfigError(f"hydra/launcher={self.name} runs the jobs of a sweep: add -m")
        if force:
            raise ConfigError(
                f"force=true does not go with hydra/launcher={self.name}: each of its processes would make anew what"
                " the jobs share. Remove that with `kdistill artifacts rm KEY`, and sweep without force"
            )
        if self.settings.get("n_jobs") == 0:
            raise ConfigError("hydra.launcher.n_jobs=0: must be a number of jobs, or -1 for one on each core")

    def check_gpu(self) -> None:
        """Refuse what a launcher would do with jobs on a GPU unless it is told more; raises `ConfigError`."""
        if self.name == "joblib" and self.settings["n_jobs"] == -1:
            raise ConfigError(
                "hydra/launcher=joblib would run a job on the GPU for each core: say how many fit there, with"
                " hydra.launcher.n_jobs=N"
            )
        if self.name.startswith("submitit") and not self.settings["gpus_per_node"]:
            raise ConfigError(
                f"hydra/launcher={self.name} hides the GPU from its jobs: add hydra.launcher.gpus_per_node=1, or"
                " device=cpu"
            )


def missing(name: str) -> str:
    """The text for a launcher whose package is not installed."""
    return f"hydra/launcher={name} needs the extra {EXTRAS[name]!r}: pip install 'kdistill[{EXTRAS[name]}]'"
