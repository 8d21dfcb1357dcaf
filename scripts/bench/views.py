"""Images per second of each augmentation: `python scripts/bench/views.py [repeats]`.

Batches of 128 uint8 images, one thread; seconds are the processor's, so that other work does not count. Prints one
JSON line for each option and a Markdown table of medians.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from torch import Tensor

from kdistill import load_config
from kdistill.data import Views, augmented

SHAPES = [(128, 1, 28, 28), (128, 3, 32, 32)]
#: options as on the command line, `dataset.augment.` left out
OPTIONS = [
    "crop=2 flip=true",
    "resized_crop=[0.5,1] resized_crop_ratio=[0.75,1.33]",
    "randaugment=1 randaugment_magnitude=9",
    "randaugment=2 randaugment_magnitude=9",
    "brightness=0.4",
    "contrast=0.4",
    "saturation=0.4",
    "hue=0.1",
    "brightness=0.4 contrast=0.4 saturation=0.4 hue=0.1",
    "erase=8",
]
#: what grey images have not
COLOURED = ("saturation", "hue")


def views(option: str, shape: tuple[int, ...]) -> Views | None:
    """The views of an option; None for colours of grey images."""
    if shape[1] == 1 and any(word in option for word in COLOURED):
        return None
    words = [f"dataset.augment.{word}" for word in option.split()]
    config = load_config("dataset=synthetic", *words)
    return augmented(config.dataset.augment, 0, shape[1], (shape[2], shape[3]))


def rate(shown: Views, images: Tensor, repeats: int) -> float:
    """Median images per second of the processor's time."""
    indices = torch.arange(len(images))
    seconds = []
    for view in range(repeats):
        start = time.process_time()
        shown(images, indices, view)
        seconds.append(time.process_time() - start)
    return len(images) / statistics.median(seconds)


def main(repeats: int) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in SHAPES]
    lines = [f"| option | {' | '.join(' x '.join(map(str, shape)) for shape in SHAPES)} |", "|--|--:|--:|"]
    for option in OPTIONS:
        shown = [views(option, shape) for shape in SHAPES]
        rates = [rate(v, b, repeats) if v else None for v, b in zip(shown, batches, strict=True)]
        print(json.dumps({"bench": "views", "option": option, "images_per_second": rates}), flush=True)
        cells = [f"{value:,.0f}" if value else "-" for value in rates]
        lines.append(f"| `{option}` | {' | '.join(cells)} |")
    print("\n".join(["", *lines]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
