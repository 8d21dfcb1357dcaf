"""Networks as ONNX: every family gives PyTorch's outputs at any batch size, and the file says what it takes."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdistill.errors import ConfigError, ModelError
from kdistill.exports.onnx_file import OPSET, OnnxNetwork, check, write
from kdistill.interface import Interface
from kdistill.models import Classifier, ReusedHead
from kdistill.models.projector import Projector
from tests.cases.networks import untrained

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

CLASSES = ("bag", "coat", "dress", "shirt")


def network(name: str, params: Mapping[str, Any], channels: int, size: tuple[int, int]) -> Classifier:
    """Random weights, batch statistics that have moved, and outputs that are not all alike."""
    built = untrained(name, params, CLASSES, channels, size)
    built(pixels(8, channels, size))
    return built.eval()


def pixels(count: int, channels: int, size: tuple[int, int]) -> Tensor:
    if size == (1, 1):
        return torch.randn(count, channels, 1, 1, generator=torch.Generator().manual_seed(count))
    return torch.randint(
        0,
        256,
        (count, channels, *size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(count),
    )


def interface(channels: int, size: tuple[int, int], **more: Any) -> Interface:
    about = {"channels": channels, "image_size": size, "mean": [0.4] * channels, "std": [0.3] * channels}
    return Interface.read({"classes": CLASSES, **about, **more}, "test")


def check_outputs(built: Classifier, file: Path, about: Interface) -> None:
    """Batches of 1, 3 and 64 give PyTorch's outputs."""
    write(built, about, {}, file)
    exported = OnnxNetwork(file)
    for count in (1, 3, 64):
        inputs = pixels(count, about.channels, about.image_size)
        with torch.inference_mode():
            expected = built(inputs)
        outputs = exported(inputs)
        assert outputs.shape == (count, len(CLASSES))
        assert outputs.dtype == torch.float32
        assert (outputs - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "params", "channels", "size"),
    [
        ("cnn", {"channels": [4]}, 1, (8, 8)),
        ("mlp", {"hidden": [8], "dropout": 0.3}, 3, (8, 8)),
        ("resnet8", {"width": 4}, 3, (16, 12)),
        ("resnet18", {"width": 4}, 1, (16, 16)),
        ("wrn_16_1", {"width": 4}, 3, (16, 16)),
        pytest.param("torchvision/mobilenet_v3_small", {}, 1, (32, 32), marks=pytest.mark.slow),
        pytest.param("torchvision/squeezenet1_1", {}, 3, (48, 48), marks=pytest.mark.slow),
        pytest.param("torchvision/resnet18", {}, 3, (32, 32), marks=pytest.mark.slow),
        pytest.param("timm/mobilenetv3_small_050", {}, 3, (32, 32), marks=pytest.mark.slow),
    ],
)
def test_every_family_gives_pytorchs_outputs(
    tmp_path: Path, name: str, params: dict[str, Any], channels: int, size: tuple[int, int]
) -> None:
    """Within 1e-4, also for grey images that a network for colour is shown, at batches of 1, 3 and 64."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    check_outputs(network(name, params, channels, size), tmp_path / "net.onnx", interface(channels, size))


def test_rows_of_numbers_are_floats(tmp_path: Path) -> None:
    """The network of a table takes float32 `[N, D, 1, 1]`."""
    about = interface(12, (1, 1), input="vector")
    check_outputs(network("mlp", {"hidden": [8]}, 12, (1, 1)), tmp_path / "net.onnx", about)


@pytest.mark.parametrize("layer", ["stages.2", "pool@in"])
def test_a_student_that_reuses_its_teachers_head(tmp_path: Path, layer: str) -> None:
    """SimKD's student: what is tapped, projected and classified is in the graph."""
    built = network("resnet8", {"width": 4}, 1, (16, 16))
    built.net = ReusedHead(built.net, layer, Projector(16, 32, (2, 2), 2), nn.Linear(32, len(CLASSES))).eval()
    check_outputs(built, tmp_path / "net.onnx", interface(1, (16, 16)))


# --- what the file says ---


def test_the_metadata_say_what_it_takes_and_gives(tmp_path: Path) -> None:
    """Lists as JSON, words as they are; read back, they are the interface."""
    about = interface(
        1,
        (8, 8),
        source_channels=3,
        source_size=(32, 32),
        task="regression",
        target_mean=[1.0] * 4,
        target_std=[2.0] * 4,
    )
    file = tmp_path / "net.onnx"
    write(network("mlp", {"hidden": [4]}, 1, (8, 8)), about, {"kdistill": "0.1.0", "network": "mlp-1"}, file)
    metadata = {entry.key: entry.value for entry in onnx.load(file).metadata_props}

    assert metadata == {
        "task": "regression",
        "classes": json.dumps(CLASSES),
        "input": "image",
        "channels": "1",
        "image_size": "[8, 8]",
        "source_channels": "3",
        "source_size": "[32, 32]",
        "mean": "[0.4]",
        "std": "[0.3]",
        "resizing": "central crop of the sides' ratio, bilinear with antialiasing",
        "normalisation": "in the graph: (pixels / 255 - mean) / std",
        "target_mean": "[1.0, 1.0, 1.0, 1.0]",
        "target_std": "[2.0, 2.0, 2.0, 2.0]",
        "kdistill": "0.1.0",
        "network": "mlp-1",
    }
    assert OnnxNetwork(file).interface == about


@pytest.mark.parametrize(("task", "output"), [("classification", "logits"), ("regression", "values")])
def test_one_file_with_a_free_batch_size(tmp_path: Path, task: str, output: str) -> None:
    """uint8 `[batch, C, H, W]` -> float32 `[batch, K]`, one file, the stated opset, no path of this machine."""
    file = tmp_path / "net.onnx"
    write(network("cnn", {"channels": [4]}, 3, (8, 8)), interface(3, (8, 8), task=task), {}, file)
    model = onnx.load(file)
    ends = [
        (
            end.name,
            end.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim],
        )
        for end in (*model.graph.input, *model.graph.output)
    ]

    assert ends == [
        ("input", onnx.TensorProto.UINT8, ["batch", 3, 8, 8]),
        (output, onnx.TensorProto.FLOAT, ["batch", 4]),
    ]
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", OPSET)]
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert str(Path(__file__).parent.parent).encode() not in file.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in file.read_bytes()


# --- what is refused ---


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    """One line with the file's name."""
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ModelError, match=r"text\.onnx is no ONNX file, or is cut off: .*$") as caught:
        OnnxNetwork(tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)


def test_a_file_of_another_program(tmp_path: Path) -> None:
    """It runs, but does not say what its outputs are: the error names what is missing and who writes it."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError) as caught:
        OnnxNetwork(tmp_path / "other.onnx")
    assert str(caught.value) == (
        f"{tmp_path}/other.onnx does not say what the network takes and gives (missing or wrong: classes, channels,"
        " image_size, mean, std). Expected a file made by `kdistill export`, or the folder of a trained network"
    )


def test_an_operation_that_onnx_does_not_have(tmp_path: Path) -> None:
    """Eigenvalues: the error says in a line what PyTorch's exporter lacks, and there is no file."""

    class Eigenvalues(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.linalg.eigvals(images.float()).real.flatten(1)

    with pytest.raises(ModelError, match=r"^PyTorch cannot write this network as ONNX: .*linalg_eig[^\n]*$"):
        write(Eigenvalues().eval(), interface(1, (8, 8)), {}, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Before anything is written."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        check()
    assert str(caught.value) == f"ONNX needs {package}: pip install 'kdistill[onnx]'"
