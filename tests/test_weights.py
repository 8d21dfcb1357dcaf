"""Weights in and out: safetensors and torch.save files, wrappings, misfits, and what is never unpickled."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from kdistill.errors import ModelError, StorageError
from kdistill.models import (
    Match,
    build_network,
    fit_state,
    load_state,
    load_weights,
    save_weights,
)


def cnn(seed: int = 0, classes: int = 10, channels: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build_network("cnn", {"channels": [4]}, classes=classes, channels=channels, image_size=(8, 8))


def same(network: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


def test_weights_survive_a_round_trip(tmp_path: Path) -> None:
    """What is written as safetensors is read back bit for bit, and each tensor is accounted for."""
    source, target = cnn(1), cnn(2)
    save_weights(source, tmp_path / "model.safetensors")
    table = load_weights(target, tmp_path / "model.safetensors")
    assert same(target, source)
    assert {row.key for row in table} == set(source.state_dict())
    assert Match("head.weight", "head.weight", (10, 4)) in table


def test_channels_last_and_shared_tensors_can_be_written(tmp_path: Path) -> None:
    """A layout for speed does not reach the file, and a tensor with two names is stored under both."""
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)).to(memory_format=torch.channels_last)
    network[1].weight = network[0].weight
    save_weights(network, tmp_path / "model.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["0.weight"], stored["1.weight"])
    assert torch.equal(stored["0.weight"], network[0].weight)


def test_a_missing_folder_to_write_to_is_an_error(tmp_path: Path) -> None:
    """Writing fails in words where the folder cannot be written."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write to"):
        save_weights(cnn(), tmp_path / "file" / "model.safetensors")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
        lambda state: {"checkpoint": None, "net": {"state_dict": state}},
        lambda state: {f"_orig_mod.module.{key}": tensor for key, tensor in state.items()},
        lambda state: {f"model.net.{key}": tensor for key, tensor in state.items()},
        lambda state: {"model_ema": {f"module.{key}": tensor for key, tensor in state.items()}, "epoch": 1},
    ],
)
def test_checkpoints_are_unwrapped(tmp_path: Path, wrap: Any) -> None:
    """Training scripts wrap a state dict in many ways; all of these are the same network."""
    source, target = cnn(1), cnn(2)
    torch.save(wrap(source.state_dict()), tmp_path / "checkpoint.pth")
    load_weights(target, tmp_path / "checkpoint.pth")
    assert same(target, source)


def test_the_table_shows_the_files_own_names() -> None:
    """A prefix that was taken off still shows in the table."""
    state = {f"module.{key}": tensor for key, tensor in cnn(1).state_dict().items()}
    assert Match("module.head.bias", "head.bias", (10,)) in fit_state(cnn(2), state, "here")


def test_a_prefix_that_some_keys_lack_stays() -> None:
    """A part of a network that is called `net` is not taken for a wrapper."""
    network = nn.ModuleDict({"net": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    only_net = nn.ModuleDict({"net": nn.Linear(2, 2)})
    for module in (network, only_net):
        fit_state(module, {key: torch.ones_like(t) for key, t in module.state_dict().items()}, "here")
        assert all(tensor.eq(1).all() for tensor in module.state_dict().values())


def test_old_files_without_batch_counts_fit() -> None:
    """`num_batches_tracked` came late to batch norm, and does not matter for the output."""
    source, target = cnn(1), cnn(2)
    state = {key: t for key, t in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    fit_state(target, state, "old file")
    assert same(target, source)


def test_half_precision_files_fit() -> None:
    """A float16 file fills a float32 network; the values are the file's."""
    state = {key: t.half() if t.is_floating_point() else t for key, t in cnn(1).state_dict().items()}
    target = cnn(2)
    fit_state(target, state, "half")
    assert target.state_dict()["head.weight"].dtype == torch.float32
    assert torch.equal(target.state_dict()["head.weight"], state["head.weight"].float())


def test_networks_with_a_version_of_their_own_fit(tmp_path: Path) -> None:
    """torchvision's MNASNet refuses `load_state_dict` of a state without version numbers; a file has none."""

    def mnasnet() -> nn.Module:
        return build_network("torchvision/mnasnet0_5", {}, classes=3, channels=3, image_size=(32, 32))

    source, target = mnasnet(), mnasnet()
    save_weights(source, tmp_path / "model.safetensors")
    load_weights(target, tmp_path / "model.safetensors")
    assert same(target, source)


def test_build_network_reads_the_users_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`weights=PATH` fills the network, and the log shows a table of what went where."""
    source, path = cnn(1), tmp_path / "mine.safetensors"
    save_weights(source, path)
    with caplog.at_level(logging.INFO, logger="kdistill"):
        network = build_network(
            "cnn", {"channels": [4]}, classes=10, channels=1, image_size=(8, 8), weights=str(path)
        )
    assert same(network, source)
    first, *rows = caplog.messages[0].splitlines()
    assert first == f"weights: 8 of 8 keys from {path}"
    assert len(rows) == 8
    assert "  head.weight                     ->  head.weight  [10, 4]" in rows


# --- what does not fit ---


def misfit(network: nn.Module, state: dict[str, Tensor]) -> str:
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ModelError) as error:
        fit_state(network, state, "FILE")
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    return str(error.value)


def test_another_number_of_classes_is_said_in_one_line() -> None:
    """The commonest misfit gets its own words; the network stays as it was."""
    text = misfit(cnn(classes=10), cnn(classes=100).state_dict())
    assert text.startswith(
        "weights FILE do not fit: head.weight: file has 100 classes, the data has 10. Train a network for"
    )
    assert "\n" not in text


def test_other_names_are_listed_with_the_nearest() -> None:
    """A renamed layer shows as missing and not in the network, with the file's likely name for it."""
    state = {key.replace("head", "fc"): tensor for key, tensor in cnn().state_dict().items()}
    assert misfit(cnn(), state).splitlines() == [
        "weights FILE do not fit: 6 of 8 keys match by name and shape",
        "  missing in the file (2):",
        "    head.weight (file has fc.weight)",
        "    head.bias (file has fc.bias)",
        "  not in the network (2):",
        "    fc.weight",
        "    fc.bias",
    ]


def test_other_shapes_are_listed() -> None:
    """A network for other images differs in its first layer."""
    assert misfit(cnn(channels=3), cnn(channels=1).state_dict()).splitlines() == [
        "weights FILE do not fit: 7 of 8 keys match by name and shape",
        "  other shape (1):",
        "    stages.0.0.weight: file [4, 1, 3, 3], network [4, 3, 3, 3]",
    ]


def test_long_lists_are_cut() -> None:
    """Another architecture altogether does not fill the screen."""
    resnet = build_network("resnet56", {"width": 1}, classes=10, channels=1, image_size=(8, 8))
    text = misfit(resnet, {"a": torch.zeros(1)})
    assert "  missing in the file (287):" in text
    assert "    and 282 more" in text
    assert len(text.splitlines()) == 10


# --- what cannot be read ---


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("plain", [False, True])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, plain: bool) -> None:
    """A file that would run code when unpickled is refused, whether torch.save or pickle wrote it."""
    path, trace = tmp_path / "evil.pt", tmp_path / "ran"
    content = {"state_dict": cnn().state_dict(), "x": Payload(trace)}
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ModelError) as error:
        load_state(path)
    assert not trace.exists()
    assert f"{path} holds pickled Python objects, and loading those can run any code" in str(error.value)
    assert "torch.save(network.state_dict(), PATH)" in str(error.value)
    torch.load(tmp_path / "evil.pt", weights_only=False) if not plain else pickle.loads(path.read_bytes())
    assert trace.is_dir()  # the payload works where it is let


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    """torch.save of a whole network stores code by name; only its tensors are accepted."""
    torch.save(cnn(), tmp_path / "module.pt")
    with pytest.raises(ModelError, match="holds pickled Python objects"):
        load_state(tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.pt", b"hello world"), ("x.pt", b""), ("x.safetensors", b"hello world"), ("x.safetensors", b"")],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """Garbage and empty files are called what they are."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="is no file of weights, or is cut off; expected safetensors or"):
        load_state(tmp_path / name)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    """A half download."""
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(cnn().state_dict(), path)
    else:
        save_weights(cnn(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is no file of weights, or is cut off"):
        load_state(path)


def test_a_file_without_a_network_says_what_it_holds(tmp_path: Path) -> None:
    """A checkpoint of something else."""
    torch.save({"epoch": 3, "acc": 0.9}, tmp_path / "a.pt")
    with pytest.raises(
        ModelError, match=r"a\.pt holds a dict of 'epoch', 'acc'; expected the tensors of a state"
    ):
        load_state(tmp_path / "a.pt")
    torch.save([torch.zeros(1)], tmp_path / "b.pt")
    with pytest.raises(ModelError, match=r"b\.pt holds a list; expected"):
        load_state(tmp_path / "b.pt")


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    """Folders and typing errors are told apart."""
    (tmp_path / "teacher.safetensors").touch()
    with pytest.raises(
        ModelError, match=r"no file .*techer\.safetensors\. Did you mean 'teacher\.safetensors'\?"
    ):
        load_state(tmp_path / "techer.safetensors")
    with pytest.raises(ModelError, match=r"is a folder; expected a file such as .*model\.safetensors"):
        load_state(tmp_path)
    with pytest.raises(ModelError, match=r"no folder .*nowhere\. Expected null, DEFAULT or a file's path"):
        load_state(tmp_path / "nowhere" / "x.pt")
