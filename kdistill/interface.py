"""What goes into a trained network and what comes out, as its `model.json` or the metadata of an exported file says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from torch import Tensor

from kdistill.config.data import TaskName
from kdistill.data import InputView
from kdistill.errors import ModelError

Size = tuple[PositiveInt, PositiveInt]


class Interface(BaseModel):
    """The network takes `[N, channels, *image_size]`: uint8 pixels, or float32 rows of numbers `[N, D, 1, 1]`.

    It gives logits `[N, K]` of the `classes`; for regression, (value - target_mean) / target_std of the values that
    they name. `source_size` and `source_channels` are what images are first brought to where the network is shown
    less; None: what it is shown. `mean` and `std` are of pixels in [0, 1]; the network subtracts and divides itself.
    """

    model_config = ConfigDict(frozen=True)

    task: TaskName = "classification"
    classes: tuple[str, ...] = Field(min_length=1)
    input: Literal["image", "vector"] = "image"
    channels: PositiveInt
    image_size: Size
    source_channels: PositiveInt | None = None
    source_size: Size | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[float, ...] | None = None

    @classmethod
    def read(cls, about: Mapping[str, Any], source: str) -> Interface:
        """From what `source` says, which may be more; raises `ModelError` for what is missing or no such thing."""
        try:
            return cls.model_validate(about)
        except ValidationError as ex:
            wrong = dict.fromkeys(str(problem["loc"][0]) for problem in ex.errors())
            raise ModelError(
                f"{source} does not say what the network takes and gives (missing or wrong: {', '.join(wrong)})."
                " Expected a file made by `kdistill export`, or the folder of a trained network"
            ) from None

    @property
    def source(self) -> tuple[int, tuple[int, int]]:
        """Channels and (height, width) that image files are brought to."""
        return self.source_channels or self.channels, self.source_size or self.image_size

    @property
    def view(self) -> InputView:
        """What the network is shown of images of the `source`'s size and channels."""
        channels, size = self.source
        smaller = self.image_size[0] if self.image_size != size else None
        return InputView(size=smaller, grey=self.channels == 1 and channels == 3)

    def example(self, count: int) -> Tensor:
        """Zeros of the shape and type that the network takes, for `count` samples."""
        dtype = torch.uint8 if self.input == "image" else torch.float32
        return torch.zeros(count, self.channels, *self.image_size, dtype=dtype)

    def answers(self, outputs: Tensor, top: int) -> list[list[tuple[str, float]]]:
        """What outputs `[N, K]` say of each sample, as (name, number).

        Classification and multi-label: the `top` likeliest classes with their probabilities, which sum to one over
        all classes, or are each class's own. Regression: every value, in its own units.
        """
        if self.task == "regression":
            std, mean = torch.tensor(self.target_std or 1.0), torch.tensor(self.target_mean or 0.0)
            return [list(zip(self.classes, row, strict=True)) for row in (outputs * std + mean).tolist()]
        probabilities = outputs.softmax(1) if self.task == "classification" else outputs.sigmoid()
        best = probabilities.topk(min(top, len(self.classes)))
        return [
            [(self.classes[index], value) for value, index in zip(values, indices, strict=True)]
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
