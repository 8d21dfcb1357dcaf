"""The `dataset` section: one class per kind of data set.

This module must not import torch: `kdistill --help` and `--cfg job` stay fast.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdistill.config.section import Section, Seed

TaskName = Literal["classification", "multilabel", "regression"]


class Augment(Section):
    crop: int = Field(ge=0, description="pixels of zero padding before a random crop; 0: no crop")
    flip: bool = Field(description="flip left and right with probability 1/2")


class _Dataset(Section):
    validation: float = Field(gt=0, lt=1, description="share of the training data kept for validation")
    split_seed: Seed = Field(description="seed of the cut between training and validation")
    train_samples: int | None = Field(ge=1, description="use only so many training samples, per class alike")
    augment: Augment


class _Images(_Dataset):
    unlabelled: str | None = Field(
        description="folder of images without labels, which students learn from as well; null: none"
    )


class Digits(_Images):
    name: Literal["digits"]


class Downloaded(_Images):
    name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100"]
    root: str | None = Field(description="folder of the data set's files; null: look in the usual places")
    download: bool = Field(description="download the files when they are not found")


class _ImageFiles(_Images):
    image_size: int = Field(ge=4, description="height and width in pixels that images are brought to")
    channels: Literal[1, 3] = Field(description="1: grey, 3: colour")
    on_error: Literal["raise", "skip"] = Field(description="a corrupt image: stop, or count it and go on")


class ImageFolder(_ImageFiles):
    name: Literal["image_folder"]
    root: str = Field(description="a folder per class, or train/, val/, test/ with a folder per class each")
    test: float = Field(gt=0, lt=1, description="share kept for the test split when there is no test/ folder")


class ImageTable(_ImageFiles):
    name: Literal["image_table"]
    root: str = Field(description="folder of the images")
    table: str = Field(description="CSV file, in root unless its path is absolute: a line for each image")
    task: TaskName | None = Field(description="what is learnt; null: what the table's columns say")
    targets: list[str] | None = Field(
        min_length=1, description="columns of numbers to predict (regression); null: the column `value`"
    )
    test: float = Field(gt=0, lt=1, description="share kept for the test split when the table names none")

    @model_validator(mode="after")
    def _targets_are_for_regression(self) -> ImageTable:
        if self.targets is None:
            return self
        if self.task not in (None, "regression"):
            raise ValueError(f"targets are the numbers of a regression, but task={self.task}")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets names a column twice: {', '.join(self.targets)}")
        return self


class Synthetic(_Images):
    name: Literal["synthetic"]
    classes: int = Field(ge=2, description="number of classes")
    channels: int = Field(ge=1, description="image channels")
    image_size: int = Field(ge=2, description="height and width in pixels")
    samples: int = Field(ge=8, description="training samples, before validation is cut off")
    test_samples: int = Field(ge=1, description="test samples")
    noise: float = Field(ge=0, description="standard deviation of the noise, where class patterns have 1")
    max_labels: int | None = Field(
        ge=1, description="classes in one image, at most (multi-label); null: one each (classification)"
    )
    seed: Seed = Field(description="seed of the images")

    @model_validator(mode="after")
    def _labels_are_classes(self) -> Synthetic:
        if self.max_labels is not None and self.max_labels > self.classes:
            raise ValueError(f"max_labels={self.max_labels} is more than classes={self.classes}")
        return self


class Diabetes(_Dataset):
    name: Literal["diabetes"]

    @model_validator(mode="after")
    def _nothing_to_augment(self) -> Diabetes:
        if self.augment.crop or self.augment.flip:
            raise ValueError("diabetes has no images to augment: set augment.crop=0 augment.flip=false")
        return self


Dataset = Annotated[
    Digits | Downloaded | ImageTable | ImageFolder | Synthetic | Diabetes, Field(discriminator="name")
]
