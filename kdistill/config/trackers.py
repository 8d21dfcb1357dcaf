"""The `tracker` section: where a run is told of besides its own files. It is part of no artifact's key.

This module must not import torch: `kdistill --help` and `--cfg job` stay fast.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdistill.config.section import Section


class NoTracker(Section):
    kind: Literal["none"]


class TensorBoard(Section):
    kind: Literal["tensorboard"]
    folder: str | None = Field(
        min_length=1,
        description="folder of the event files, with one for each run; null: the run's own folder",
    )


class MLflow(Section):
    kind: Literal["mlflow"]
    uri: str | None = Field(
        pattern="^([a-z+]+://|databricks)",
        description="a tracking server or database, such as http://localhost:5000; null: mlflow.db in the runs folder",
    )
    experiment: str = Field(min_length=1, description="name that runs are filed under")


class Wandb(Section):
    kind: Literal["wandb"]
    project: str = Field(min_length=1, description="name that runs are filed under")
    entity: str | None = Field(
        min_length=1, description="user or team of the project; null: the user's default"
    )
    mode: Literal["offline", "online"] = Field(
        description="offline: into the run's folder, for `wandb sync`; online: to the server"
    )


Tracker = Annotated[NoTracker | TensorBoard | MLflow | Wandb, Field(discriminator="kind")]
