"""Networks that are only asked, and images to ask them about."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdistill.models import Classifier


def images(n: int = 8, size: int = 16) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, size, size), generator=random).to(torch.uint8)


def trained(network: Classifier) -> Classifier:
    """With statistics and scales that are not those of a new batch norm."""
    random = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.uniform_(-1, 1, generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
            module.weight.data.uniform_(0.5, 2, generator=random)
            module.bias.data.uniform_(-1, 1, generator=random)
    return network.eval()


class Net(nn.Module):
    """A convolution and its batch norm; the cases differ in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.bn(self.conv(x)))

    def out(self, h: Tensor) -> Tensor:
        return self.head(h.mean((2, 3)))
