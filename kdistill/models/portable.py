"""What goes with a student's weights so that they can be used in plain torch, without kdistill."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from torch import nn

from kdistill.files import storage_errors, write_bytes, write_json
from kdistill.models import external, projector, reused_head
from kdistill.models.build import BUILDERS, complete_params
from kdistill.models.classifier import Classifier, build_classifier

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

#: what a student that reuses its teacher's head has around its network
_REUSED = """network = reused_head.ReusedHead(
        network,
        MODEL["reused_head"]["layer"],
        projector.Projector(**MODEL["reused_head"]["projector"]),
        torch.nn.Linear(MODEL["reused_head"]["projector"]["teacher_channels"], len(MODEL["classes"])),
    )
    """

_USE = '''\
"""@DOES@ with the network in this folder:  python use.py @EXAMPLE@

kdistill made this folder and is not needed here: @NEEDS@ are.
"""

import json
@MATH@import sys
from pathlib import Path

import torch
@PILLOW@from safetensors.torch import load_file

@IMPORT@

FOLDER = Path(__file__).resolve().parent
MODEL = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))


def load() -> torch.nn.Module:
    """The trained network in evaluation mode: what preprocess returns [N, C, H, W] -> @GIVES@ [N, K]."""
    network = @BUILD@
    @REUSED@state = network.state_dict()
    stored = load_file(FOLDER / "model.safetensors")
    if state.keys() != stored.keys():
        raise RuntimeError("model.safetensors holds another network than model.json says")
    for name, tensor in state.items():
        tensor.copy_(stored[name])
    return network.eval()


@PREPROCESS@


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python use.py @EXAMPLE@")
    try:
        with @OPEN@torch.inference_mode():
            outputs = load()(preprocess(@INPUT@))[0]
    except (OSError, ValueError) as ex:
        sys.exit(f"{sys.argv[1]}: {ex}")
    @SHOW@


if __name__ == "__main__":
    main()
'''

_PREPROCESS_IMAGE = '''\
def preprocess(image: Image.Image) -> torch.Tensor:
    """An image of any size -> [1, C, H, W]: its centre, resized and normalised as in training."""
    height, width = MODEL.get("source_size", MODEL["image_size"])  # first that of the data set
    image.draft(None, (2 * width, 2 * height))
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers, of unknown range")
    if image.mode == "I" or image.mode.startswith("I;"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")  # 16 bits: the upper 8
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    modes = {1: "L", 3: "RGB"}
    image = image.convert(modes[MODEL.get("source_channels", MODEL["channels"])])
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    height, width = MODEL["image_size"]
    image = image.convert(modes[MODEL["channels"]]).resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(1, height, width, MODEL["channels"]).permute(0, 3, 1, 2)
    pixels = pixels.clone(memory_format=torch.contiguous_format)  # the layout changes how sums are rounded
    mean = torch.tensor(MODEL["mean"]).view(-1, 1, 1)
    std = torch.tensor(MODEL["std"]).view(-1, 1, 1)
    return (pixels / 255 - mean) / std'''
_PREPROCESS_VECTOR = '''\
def preprocess(text: str) -> torch.Tensor:
    """Numbers with commas between them -> [1, C, H, W], normalised as in training."""
    shape = (MODEL["channels"], *MODEL["image_size"])
    numbers = torch.tensor([float(word) for word in text.split(",")])
    if len(numbers) != math.prod(shape):
        raise ValueError(f"expected {math.prod(shape)} numbers, got {len(numbers)}")
    mean = torch.tensor(MODEL["mean"]).view(-1, 1, 1)
    std = torch.tensor(MODEL["std"]).view(-1, 1, 1)
    return (numbers.view(1, *shape) - mean) / std'''

#: what `use.py` has for each kind of input
_INPUTS = {
    "image": {
        "PREPROCESS": _PREPROCESS_IMAGE,
        "MATH": "",
        "PILLOW": "from PIL import Image, ImageOps\n",
        "EXAMPLE": "image.png",
        "OPEN": "Image.open(sys.argv[1]) as image, ",
        "INPUT": "image",
    },
    "vector": {
        "PREPROCESS": _PREPROCESS_VECTOR,
        "MATH": "import math\n",
        "PILLOW": "",
        "EXAMPLE": "0.1,0.2,...",
        "OPEN": "",
        "INPUT": "sys.argv[1]",
    },
}

#: what `use.py` prints for each task
_SHOW = {
    "classification": """probabilities = outputs.softmax(dim=0)
    best = probabilities.topk(min(5, len(MODEL["classes"])))
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"{probability:7.2%}  {MODEL['classes'][index]}")""",
    "multilabel": """probabilities = outputs.sigmoid().tolist()
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)
    likely = [index for index in order if probabilities[index] > 0.5]
    for index in likely or order[:1]:
        print(f"{probabilities[index]:7.2%}  {MODEL['classes'][index]}")""",
    "regression": """values = outputs * torch.tensor(MODEL["target_std"]) + torch.tensor(MODEL["target_mean"])
    for value, name in zip(values.tolist(), MODEL["classes"], strict=True):
        print(f"{value:.6g}  {name}")""",
}
_DOES = {"classification": "Classify", "multilabel": "Label", "regression": "Predict numbers from"}

InputKind = Literal["image", "vector"]
TaskName = Literal["classification", "multilabel", "regression"]


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
    reused_head: Mapping[str, Any] | None = None,
    task: TaskName = "classification",
    input: InputKind = "image",
    target_mean: Sequence[float] | None = None,
    target_std: Sequence[float] | None = None,
    source_size: tuple[int, int] | None = None,
    source_channels: int | None = None,
) -> None:
    """Write `model.json`, `use.py` and the sources that it needs, next to `model.safetensors`.

    Args:
        channels: what the network is shown of the data, as `image_size` (height, width).
        mean, std: the Classifier's, one per input channel of the network.
        reused_head: of SimKD's student, `{"layer": name, "projector": Projector.arguments}`; what `rebuild` reads.
        task: what the outputs are; for regression `classes` names the values.
        input: images of any size, or rows of numbers, float `[N, D, 1, 1]`.
        target_mean, target_std: for regression, of each value: value = output * std + mean. None: 0 and 1.
        source_size, source_channels: the data set's, where the network is shown its images in another size, or
            grey. None: those that it is shown.
    """
    model: dict[str, Any] = {
        "name": name,
        "params": complete_params(name, params),
        "classes": list(classes),
        "channels": channels,
        "image_size": list(image_size),
        "mean": list(mean),
        "std": list(std),
    }
    if name not in BUILDERS:
        model["arguments"] = external.arguments(
            name, params, classes=len(classes), channels=channels, image_size=image_size
        )
    if reused_head is not None:
        model["reused_head"] = dict(reused_head)
    if task != "classification":
        model["task"] = task
    if input != "image":
        model["input"] = input
    if source_size not in (None, image_size):
        model["source_size"] = list(source_size)
    if source_channels not in (None, channels):
        model["source_channels"] = source_channels
    if task == "regression":
        model["target_mean"] = [0.0] * len(classes) if target_mean is None else list(target_mean)
        model["target_std"] = [1.0] * len(classes) if target_std is None else list(target_std)
    with storage_errors(folder):
        write_json(folder / "model.json", model)
        write_bytes(folder / "use.py", _script(model).encode())
        for module, source in _sources(model).items():
            write_bytes(folder / f"{module}.py", inspect.getsource(source).encode())


def reused_head_of(network: Classifier) -> dict[str, Any] | None:
    """What `model.json` says of a student that reuses its teacher's head; None of any other."""
    net = network.net
    if not isinstance(net, reused_head.ReusedHead):
        return None
    return {"layer": net.layer, "projector": net.projector.arguments}


def rebuild(about: Mapping[str, Any]) -> Classifier:
    """The network that a `model.json` describes, with its normalisation and random weights.

    Its `net` has the keys of the `model.safetensors` beside it. Raises `ModelError` for an unknown name.
    """
    network = build_classifier(
        about["name"],
        about["params"],
        classes=len(about["classes"]),
        channels=about["channels"],
        image_size=tuple(about["image_size"]),
        mean=about["mean"],
        std=about["std"],
    )
    if "reused_head" in about:
        arguments = about["reused_head"]["projector"]
        network.net = reused_head.ReusedHead(
            network.net,
            about["reused_head"]["layer"],
            projector.Projector(**arguments),
            nn.Linear(arguments["teacher_channels"], len(about["classes"])),
        )
    return network


def _sources(model: Mapping[str, Any]) -> dict[str, ModuleType]:
    """The modules whose source goes with the weights, by the names that `use.py` imports them by."""
    sources: dict[str, ModuleType] = {}
    if model["name"] in BUILDERS:
        module = inspect.getmodule(BUILDERS[model["name"]])
        assert module is not None
        sources["architecture"] = module
    if "reused_head" in model:
        sources |= {"projector": projector, "reused_head": reused_head}
    return sources


def _script(model: Mapping[str, Any]) -> str:
    """The text of `use.py`."""
    family = "own" if model["name"] in BUILDERS else model["name"].partition("/")[0]
    imports, build = {"own": _OWN, "torchvision": _TORCHVISION, "timm": _TIMM}[family]
    reused = "reused_head" in model
    task, kind = model.get("task", "classification"), model.get("input", "image")
    needs = ["torch", "safetensors"]
    needs += ["pillow"] if kind == "image" else []
    needs += [family] if family != "own" else []
    parts = {
        **_INPUTS[kind],
        "DOES": f"{_DOES[task]} {'an image' if kind == 'image' else 'a row of numbers'}",
        "NEEDS": f"{', '.join(needs[:-1])} and {needs[-1]}",
        "IMPORT": imports + "\nimport projector\nimport reused_head" * reused,
        "GIVES": "outputs" if task == "regression" else "logits",
        "BUILD": build,
        "REUSED": _REUSED * reused,
        "SHOW": _SHOW[task],
    }
    text = _USE
    for word, part in parts.items():
        text = text.replace(f"@{word}@", part)
    return text
