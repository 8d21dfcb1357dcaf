"""What `test_ranks.py` runs in one process and, under torchrun, in two: the results go to `<folder>/<rank>.pt`."""

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdistill import launch, ranks
from kdistill.config.section import Ramp
from kdistill.data import Batch, Mixing
from kdistill.features import observe
from kdistill.learners import Learner
from kdistill.loop import fit, predict
from kdistill.losses import FeaturePart, Objective, Outputs, SoftLoss, kd_loss
from kdistill.losses.terms import VIDTerm
from kdistill.training_data import TrainingData
from tests.test_loop import CPU, TRAIN, VALIDATION, VIEWS, images, network, settings

SOFT = Objective(alpha=0.5, beta=0.5, soft=SoftLoss(kd_loss), T=2.0)
LAYERS = ("stages.0", "stages.0")


def teach(seed: int = 7) -> nn.Module:
    return network("mlp", seed=seed).eval()


def trained(
    learner: nn.Module,
    objective: Objective = SOFT,
    batch_size: int = 16,
    mixing: Mixing | None = None,
    **optim: Any,
) -> dict[str, Tensor]:
    """The weights after two epochs, of 5 or 6 steps each, and the losses of the epochs."""
    teacher = teach()

    def signal(batch: Batch, view: int, T: float) -> Outputs:
        with torch.no_grad():
            return observe(teacher, batch.images, [LAYERS[1]])

    data = TrainingData(TRAIN, VIEWS, order_seed=5, mixing=mixing, classes=4)
    training = settings(2, batch_size, keep="last", **optim)
    fitted = fit(learner, data, VALIDATION, objective, training, CPU, signal=signal)
    return dict(learner.state_dict()) | {"loss": torch.tensor([row["loss"] for row in fitted.history])}


def with_feature() -> dict[str, Tensor]:
    """A term whose adapters are not used in the second epoch."""
    student = network("mlp")
    features = [torch.rand(4, 16)]
    torch.manual_seed(1)
    term = VIDTerm(features, features, initial_variance=5.0)
    part = FeaturePart("vid", Ramp(start=0.4, end=0, until=1), term, (LAYERS,))
    return trained(Learner(student, [term]), Objective(alpha=1.0, features=(part,)))


def everything() -> dict[str, object]:
    odd = images(33, seed=2)
    batch_norm = network("resnet8")
    trained(batch_norm)
    return {
        "kd": trained(network("mlp")),
        "unequal shares": trained(network("mlp"), batch_size=17),
        "accumulate": trained(network("mlp"), accumulate=2),
        "mixing": trained(network("mlp"), mixing=Mixing("mixup", 1.0, seed=3)),
        "feature": with_feature(),
        "predicted": predict(teach(), odd, 8, CPU),
        "few": predict(teach(), images(3), 8, CPU),
        "batch norm": {name: b for name, b in batch_norm.named_buffers() if "running" in name},
        "share": ranks.share(torch.arange(5)),
        "weight": ranks.weight(5),
        "gathered": ranks.gather(torch.arange(5)[: 2 + ranks.rank()]),
        "means": ranks.means([torch.tensor(1.0 + ranks.rank()), torch.tensor(2.0)]),
        "agree": [ranks.agree(False), ranks.agree(ranks.rank() == 1), ranks.agree(True)],
        "in step": list(ranks.in_step(iter("abc"[: 1 + 2 * ranks.rank()]))),
        "stopped": list(ranks.in_step(iter("abc"), stop=ranks.is_main())),
        "decided": [ranks.decided(ranks.rank() == 1), ranks.decided(ranks.is_main())],
    }


if __name__ == "__main__":
    logging.disable()
    if launch.is_rank():
        ranks.join()
    torch.save(everything(), Path(sys.argv[1], f"{ranks.rank()}.pt"))
    if launch.is_rank():
        launch.end(0)
