"""Networks with channels last: the global pool hands its gradient back in that layout, with the same bits."""

import pytest
import torch
from torch import Tensor, nn

from kdistill.channels_last import AdaptiveMean2d, to_channels_last
from kdistill.engine import Engine
from kdistill.models.cnn import CNN

CPU = torch.device("cpu")
LAST = torch.channels_last


def answers(pool: nn.Module, maps: Tensor) -> tuple[Tensor, Tensor]:
    """What a pool gives, and the gradient of its input, in the layout that it came back in."""
    found: list[Tensor] = []
    inner = maps.requires_grad_() * 1
    inner.register_hook(found.append)
    out = pool(inner)
    (out.float() ** 2).sum().backward()
    return out.detach(), found[0]


@pytest.mark.parametrize("shape", [(8, 16, 7, 7), (3, 5, 2, 9), (1, 3, 5, 5), (8, 6, 1, 1), (4, 1, 5, 5)])
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pool_is_torchs_to_the_last_bit(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours, plain = (
        answers(pool, maps.clone().contiguous(memory_format=layout))
        for pool in (AdaptiveMean2d(), nn.AdaptiveAvgPool2d(1))
    )

    for own, torchs in zip(ours, plain, strict=True):
        assert own.shape == torchs.shape
        assert torch.equal(own, torchs)


def test_its_gradient_has_the_layout_of_its_input() -> None:
    """Which torch's has not: where it has one day, this module can go."""
    maps = torch.randn(8, 16, 7, 7).contiguous(memory_format=LAST)
    ours, plain = (answers(pool, maps.clone())[1] for pool in (AdaptiveMean2d(), nn.AdaptiveAvgPool2d(1)))

    assert ours.is_contiguous(memory_format=LAST)
    assert not plain.is_contiguous(memory_format=LAST)


def test_maps_without_a_batch_are_torchs_matter() -> None:
    assert AdaptiveMean2d()(torch.ones(3, 4, 4)).shape == (3, 1, 1)


def test_an_engine_puts_it_into_networks_to_be_trained() -> None:
    """Nested ones, too; pools to other sizes stay, and so does the network in every bit."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(CNN([4, 8], classes=3, channels=3)), nn.AdaptiveAvgPool2d(2))
    keys = list(network.state_dict())
    Engine(CPU, "fp32").place(network)

    assert type(network[0][0].pool[0]) is AdaptiveMean2d
    assert type(network[1]) is nn.AdaptiveAvgPool2d
    assert list(network.state_dict()) == keys
    assert network[0][0].stages[1][0].weight.is_contiguous(memory_format=LAST)


def test_training_with_it_gives_the_same_weights() -> None:
    def trained(*, swapped: bool) -> list[Tensor]:
        torch.manual_seed(0)
        network: nn.Module = CNN([4, 8], classes=3, channels=3)
        network = to_channels_last(network, CPU) if swapped else network.to(memory_format=LAST)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            images = torch.randn(16, 3, 12, 12).contiguous(memory_format=LAST)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), torch.arange(16) % 3).backward()
            optimizer.step()
        return list(network.parameters())

    assert all(map(torch.equal, trained(swapped=True), trained(swapped=False)))
