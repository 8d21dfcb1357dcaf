"""The `dataset` section: one class per kind of data set.

This module must not import torch: `kdistill --help` and `--cfg job` stay fast.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kdistill.config.section import Section, Seed

TaskName = Literal["classification", "multilabel", "regression"]


#: smallest and largest
Range = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]


class Augment(Section):
    """Random changes of the images, in this order; `docs/augmentation.md` has the definitions."""

    crop: int = Field(ge=0, description="pixels of zero padding before a random crop; 0: no crop")
    flip: bool = Field(description="flip left and right with probability 1/2")
    resized_crop: Range | None = Field(
        description="share of the area, smallest and largest, of a window that is enlarged; null: none"
    )
    resized_crop_ratio: Range | None = Field(
        description="width / height of that window, smallest and largest; null: as the image"
    )
    randaugment: int | None = Field(ge=1, description="operations of RandAugment on each image; null: none")
    randaugment_magnitude: int | None = Field(ge=0, le=30, description="their strength, 0 to 30")
    brightness: float | None = Field(gt=0, le=1, description="times 1 - x to 1 + x; null: as it is")
    contrast: float | None = Field(gt=0, le=1, description="times 1 - x to 1 + x; null: as it is")
    saturation: float | None = Field(gt=0, le=1, description="times 1 - x to 1 + x; null: as it is")
    hue: float | None = Field(gt=0, le=0.5, description="turned by up to so much of the circle; null: not")
    erase: int | None = Field(ge=1, description="pixels of the side of a black square (Cutout); null: none")

    @field_validator("resized_crop", "resized_crop_ratio")
    @classmethod
    def _smallest_first(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"[{value[0]:g},{value[1]:g}] is upside down: write [{value[1]:g},{value[0]:g}]")
        return value

    @field_validator("resized_crop")
    @classmethod
    def _within_the_image(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and value[1] > 1:
            raise ValueError(f"{value[1]:g} is more than the whole image, whose area is 1")
        return value

    @model_validator(mode="after")
    def _belong_together(self) -> Augment:
        if self.resized_crop_ratio is not None and self.resized_crop is None:
            raise ValueError("resized_crop_ratio needs resized_crop, for example resized_crop=[0.5,1]")
        if self.randaugment is not None and self.randaugment_magnitude is None:
            raise ValueError("randaugment needs randaugment_magnitude, 0 to 30; 9 is a usual one")
        if self.randaugment_magnitude is not None and self.randaugment is None:
            raise ValueError("randaugment_magnitude needs randaugment, for example randaugment=2")
        return self

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that change images."""
        return {name: value for name, value in self.model_dump().items() if value}


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


class WebDataset(_ImageFiles):
    name: Literal["webdataset"]
    root: str = Field(description="folder of the shards: uncompressed tar files")
    train_shards: str | None = Field(
        description="for training, such as train-*.tar or train-{0000..0146}.tar; null: all that the others leave"
    )
    validation_shards: str | None = Field(
        description="for validation; null: those with val, valid or validation in their path, or cut from training"
    )
    test_shards: str | None = Field(
        description="for the test split; null: those with test in their path, or cut from training"
    )
    label: str = Field(
        min_length=1, description="ending of the member with a sample's label: cls, txt, or json.FIELD"
    )
    class_names: str | None = Field(
        description="file, in root unless its path is absolute, with a class's name per line; null: as labels are"
    )
    test: float = Field(gt=0, lt=1, description="share kept for the test split when no shards are for it")

    @field_validator("label")
    @classmethod
    def _json_has_fields(cls, value: str) -> str:
        ending, dot, field = value.partition(".")
        if ending == "json" and not field:
            raise ValueError("a JSON member has fields: name one, such as json.label")
        if ending != "json" and dot:
            raise ValueError(f"{ending} has no fields: only json.FIELD is known")
        return value


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
        if chosen := self.augment.chosen:
            off = {"crop": "0", "flip": "false"}
            words = " ".join(f"augment.{name}={off.get(name, 'null')}" for name in chosen)
            raise ValueError(f"diabetes has no images to augment: set {words}")
        return self


Dataset = Annotated[
    Digits | Downloaded | WebDataset | ImageTable | ImageFolder | Synthetic | Diabetes,
    Field(discriminator="name"),
]
