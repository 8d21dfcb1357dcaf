"""Networks as ONNX: written by PyTorch's exporter, described in the file's metadata, run by ONNX Runtime on the CPU.

The packages are the extra `onnx`; they are imported where they are used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdistill.errors import ModelError, first_line
from kdistill.extras import imported
from kdistill.files import write_bytes
from kdistill.interface import Interface

#: of the operators' definitions; PyTorch's exporter writes it without converting, in a file of IR version 10
OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
#: what is said of images in words, beside their size
PREPARED = {
    "resizing": "central crop of the sides' ratio, bilinear with antialiasing",
    "normalisation": "in the graph: (pixels / 255 - mean) / std",
}


def check() -> None:
    """Raise `ConfigError` where a package of the extra is missing."""
    for name in PACKAGES:
        _imported(name)


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def write(network: nn.Module, interface: Interface, notes: Mapping[str, str], path: Path) -> None:
    """Write a network in evaluation mode, with its normalisation: `input` -> `logits` (regression: `values`).

    The batch size is free. The metadata hold the interface, lists as JSON, and the `notes`. Raises `ModelError` for
    an operation that ONNX does not have.
    """
    onnx = _imported("onnx")
    model = _program(network, interface).model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # where in the source each operator comes from: paths of this machine
    facts = interface.model_dump(mode="json", exclude_none=True)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    prepared = PREPARED if interface.input == "image" else {}
    onnx.helper.set_model_props(model, {**texts, **prepared, **notes})
    onnx.checker.check_model(model)
    write_bytes(path, model.SerializeToString())


def _program(network: nn.Module, interface: Interface) -> torch.onnx.ONNXProgram:
    try:
        program = torch.onnx.export(
            network,
            (interface.example(2),),  # a batch of one would be taken for a constant
            input_names=["input"],
            output_names=["values" if interface.task == "regression" else "logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as ex:
        raise ModelError(
            f"PyTorch cannot write this network as ONNX: {first_line(ex.__cause__ or ex)}"
        ) from ex
    assert program is not None
    return program


class OnnxNetwork:
    """An ONNX file that `write` wrote, in ONNX Runtime on the CPU, with as many threads as PyTorch has.

    Raises `ModelError` for a file that ONNX Runtime cannot read, or that does not say what it takes and gives.
    """

    def __init__(self, path: Path) -> None:
        runtime = _imported("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors alone
        try:
            self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as ex:  # ONNX Runtime has a class of its own for each cause
            raise ModelError(f"{path} is no ONNX file, or is cut off: {first_line(ex)}") from ex
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.interface = Interface.read({k: _value(text) for k, text in metadata.items()}, str(path))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs `[N, K]`, float32, of inputs as the interface says."""
        (given,) = self._session.get_inputs()
        (outputs,) = self._session.run(None, {given.name: inputs.numpy()})
        return torch.from_numpy(outputs)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _imported(name: str) -> Any:
    return imported(name, "onnx", "ONNX")
