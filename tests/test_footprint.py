"""What a model takes to be used: operations and memory by hand, times in order."""

import pytest
import torch
from torch import nn

from kdistill import footprint, trial
from kdistill.footprint import BATCH_SIZE, measure, operations, working_memory
from kdistill.models import build_network, multiply_adds


def test_operations_by_hand() -> None:
    """A matrix product of [1, 4] and [4, 8] has 32 multiply-adds, each two operations."""
    assert operations(nn.Linear(4, 8), torch.zeros(1, 4)) == 64


@pytest.mark.parametrize("name", ["cnn", "resnet8", "wrn_16_1", "mlp"])
def test_operations_are_two_for_each_multiply_add(name: str) -> None:
    """torch's counter, and the count that decides about precision, agree on kdistill's own networks."""
    network = build_network(name, {}, classes=10, channels=3, image_size=(8, 8)).eval()
    counted = multiply_adds(name, {}, classes=10, channels=3, image_size=(8, 8))

    assert operations(network, torch.zeros(1, 3, 8, 8)) == 2 * counted


def test_working_memory_by_hand() -> None:
    """Weights, input, and the two largest neighbours; what is no longer needed counts no more."""
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.ReLU())
    weights = sum(p.nbytes for p in network.parameters())
    with torch.no_grad():
        taken = working_memory(network, images := torch.zeros(3, 4))

    assert taken == weights + images.nbytes + 2 * (3 * 8 * 4)


def test_views_take_no_memory() -> None:
    """A reshaped tensor is the same memory; what is changed in place, too."""
    images = torch.zeros(2, 3, 4)

    assert working_memory(lambda x: x.flatten(1).view(2, 2, 6).transpose(0, 1), images) == images.nbytes
    assert working_memory(lambda x: (x + 1).mul_(2), images) == 2 * images.nbytes


def test_a_footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are in order and of as many runs as asked for; few images are repeated to a batch."""
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    sizes: list[int] = []
    network = nn.Linear(4, 2)

    def forward(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return network(images)

    found = measure(forward, torch.zeros(3, 4), runs=7)

    assert set(sizes) == {1, BATCH_SIZE}
    assert found.runs == 7
    assert 0 < found.latency_p50 <= found.latency_p95
    assert found.throughput > 0
    assert (found.flops, found.device, found.threads) == (16, "cpu", torch.get_num_threads())


def test_a_slow_model_is_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is over, a few runs are enough."""
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(footprint, "SECONDS", 0.0)

    assert measure(nn.Linear(4, 2), torch.zeros(1, 4), runs=100).runs == footprint.LEAST


def test_work_outside_of_torch_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimator's operations and memory are None, and not 0."""
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    found = measure(lambda images: images.numpy().sum(), torch.zeros(1, 4), runs=1)

    assert (found.flops, found.memory) == (None, None)
