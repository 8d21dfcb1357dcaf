"""What goes with a student's weights so that they can be used in plain torch, without kdistill."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdistill.files import storage_errors, write_bytes, write_json
from kdistill.models import external
from kdistill.models.build import BUILDERS, complete_params

#: what `use.py` imports, and how it builds the network, for each origin of an architecture
_OWN = (
    "import architecture",
    """architecture.build(
        MODEL["name"],
        MODEL["params"],
        classes=len(MODEL["classes"]),
        channels=MODEL["channels"],
        image_size=MODEL["image_size"],
    )""",
)
_TORCHVISION = (
    "import torchvision",
    'torchvision.models.get_model(MODEL["name"].partition("/")[2], weights=None, **MODEL["arguments"])',
)
_TIMM = (
    "import timm",
    'timm.create_model(MODEL["name"].partition("/")[2], **MODEL["arguments"])',
)

_USE = '''\
"""Classify an image with the network in this folder:  python use.py image.png

kdistill made this folder and is not needed here: torch, safetensors and pillow are@EXTRA@.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

@IMPORT@

FOLDER = Path(__file__).resolve().parent
MODEL = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))


def load() -> torch.nn.Module:
    """The trained network in evaluation mode: what preprocess returns [N, C, H, W] -> logits [N, K]."""
    network = @BUILD@
    state = network.state_dict()
    stored = load_file(FOLDER / "model.safetensors")
    if state.keys() != stored.keys():
        raise RuntimeError("model.safetensors holds another network than model.json says")
    for name, tensor in state.items():
        tensor.copy_(stored[name])
    return network.eval()


def preprocess(image: Image.Image) -> torch.Tensor:
    """An image of any size -> [1, C, H, W]: its centre, resized and normalised as in training."""
    height, width = MODEL["image_size"]
    image.draft(None, (2 * width, 2 * height))
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers, of unknown range")
    if image.mode == "I" or image.mode.startswith("I;"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")  # 16 bits: the upper 8
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert({1: "L", 3: "RGB"}[MODEL["channels"]])
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(1, height, width, MODEL["channels"]).permute(0, 3, 1, 2)
    pixels = pixels.clone(memory_format=torch.contiguous_format)  # the layout changes how sums are rounded
    mean = torch.tensor(MODEL["mean"]).view(-1, 1, 1)
    std = torch.tensor(MODEL["std"]).view(-1, 1, 1)
    return (pixels / 255 - mean) / std


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python use.py image.png")
    with Image.open(sys.argv[1]) as image, torch.inference_mode():
        probabilities = load()(preprocess(image))[0].softmax(dim=0)
    best = probabilities.topk(min(5, len(MODEL["classes"])))
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"{probability:7.2%}  {MODEL['classes'][index]}")


if __name__ == "__main__":
    main()
'''


def write_portable(
    folder: Path,
    *,
    name: str,
    params: Mapping[str, Any],
    classes: Sequence[str],
    channels: int,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write `model.json`, `use.py` and, for an own architecture, `architecture.py`.

    They go next to `model.safetensors`. `channels` are the data's; `mean` and `std` are the Classifier's,
    one per input channel of the network.
    """
    own = name in BUILDERS
    imports, build = _OWN if own else _TIMM if name.startswith("timm/") else _TORCHVISION
    model = {
        "name": name,
        "params": complete_params(name, params),
        "classes": list(classes),
        "channels": channels,
        "image_size": list(image_size),
        "mean": list(mean),
        "std": list(std),
    }
    if not own:
        model["arguments"] = external.arguments(
            name, params, classes=len(classes), channels=channels, image_size=image_size
        )
    extra = "" if own else f", and {name.partition('/')[0]}"
    use = _USE.replace("@EXTRA@", extra).replace("@IMPORT@", imports).replace("@BUILD@", build)
    with storage_errors(folder):
        write_json(folder / "model.json", model)
        write_bytes(folder / "use.py", use.encode())
        if own:
            source = inspect.getsource(inspect.getmodule(BUILDERS[name]))  # type: ignore[arg-type]
            write_bytes(folder / "architecture.py", source.encode())
