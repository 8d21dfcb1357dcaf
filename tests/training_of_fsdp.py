"""What `test_fsdp.py` runs in one process, whole, and under torchrun in two, sharded: results go to `<rank>.pt`."""

import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdistill import fsdp, launch, ranks
from kdistill.engine import Engine
from kdistill.errors import Interrupted
from kdistill.learners import Learner, Peers
from kdistill.loop import Checkpoint, Goal, Step, fit, predict, train_step
from kdistill.losses import FeaturePart, MutualObjective, Objective, SoftLoss, kd_loss
from kdistill.losses.terms import VIDTerm
from kdistill.models import save_weights
from kdistill.partial import Assistance, Work
from kdistill.state import State
from kdistill.teachers import LiveTeacher
from tests.test_loop import DATA, TRAIN, VALIDATION, images, network, settings

SOFT = Objective(alpha=0.5, beta=0.5, soft=SoftLoss(kd_loss), T=2.0)
ADAMW = {"kind": "adamw", "momentum": None, "nesterov": None, "betas": [0.9, 0.99], "lr": 0.01}
#: saves after every step and epoch; this one is within the second epoch
CUT = 9
#: parameters of a unit: each block of these small networks is one
UNIT = 100


def engine(shard: bool = True) -> Engine:
    return Engine(torch.device("cpu"), "fp32", shard=shard and ranks.size() > 1)


def student(**params: Any) -> nn.Module:
    return network("mlp", **({"hidden": [16, 16]} | params))


def teacher(shard: bool = True, name: str = "mlp", layers: Sequence[str] = ()) -> LiveTeacher:
    """Asked in batches of 8: of a share of 9 images it is asked twice, of one of 8 once."""
    machine = engine(shard)
    return LiveTeacher(machine.spread(network(name, seed=7)), 8, machine, layers=layers)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: fsdp.whole(tensor) for name, tensor in module.state_dict().items()}


def trained(
    learner: nn.Module,
    objective: Goal = SOFT,
    batch_size: int = 16,
    *,
    signal: LiveTeacher | None = None,
    checkpoint: Checkpoint | None = None,
    shard: bool = True,
    **optim: Any,
) -> dict[str, Tensor]:
    """The weights after two epochs, of 5 or 6 steps each, and the losses of the epochs."""
    training = settings(2, batch_size, keep="last", **optim)
    fitted = fit(
        *(learner, DATA, VALIDATION, objective, training, engine(shard)),
        signal=signal or teacher(shard),
        checkpoint=checkpoint,
        checkpoint_seconds=0,
        judge_start=True,
    )
    return state_of(learner) | {"loss": torch.tensor([row["loss"] for row in fitted.history])}


def with_feature(
    name: str, layer: str, shape: tuple[int, ...], alpha: float, shard: bool = True, unit: int = UNIT
) -> dict[str, Tensor]:
    """A term on features with adapters; with `alpha=0` nothing asks for the student's logits."""
    fsdp.UNIT = unit
    features = [torch.rand(4, *shape)]
    own = network(name)
    torch.manual_seed(1)
    term = VIDTerm(features, features, initial_variance=5.0)
    objective = Objective(alpha=alpha, features=(FeaturePart("vid", 0.4, term, ((layer, layer),)),))
    asked = teacher(shard, name, [layer])
    return trained(Learner(own, [term]), objective, signal=asked, shard=shard, ema=0.5)


class Cutting(Assistance):
    """A checkpoint that the main rank writes, and at which the run is cut off."""

    saves = 0

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        if ranks.is_main():
            Work(self.source).save_checkpoint(state)
        self.saves += 1
        if self.saves == CUT:
            raise Interrupted("cut off")


def resumed(folder: Path, other: Path) -> dict[str, dict[str, Tensor]]:
    """Uninterrupted, gone on with, and gone on with from the state that is in the folder `other`."""
    kind = ADAMW | {"ema": 0.9, "clip_norm": 0.5, "accumulate": 2}
    own = folder / f"rank {ranks.rank()}"
    own.mkdir()
    try:
        trained(student(), checkpoint=Cutting(own, source=folder), **kind)
    except Interrupted:
        ranks.barrier()
    if ranks.is_main():
        (folder / "cut").mkdir()
        shutil.copy(folder / "checkpoint", folder / "cut")
    ranks.barrier()
    from_here, from_other = (Assistance(own, source=place) for place in (folder, other / "cut"))
    return {
        "uninterrupted": trained(student(), **kind),
        "resumed": trained(student(), checkpoint=from_here, **kind),
        "resumed from the other": trained(student(), checkpoint=from_other, **kind),
    }


def held() -> dict[str, int]:
    """Numbers that this rank holds in the middle of a training of 8580 parameters."""
    own, machine = student(hidden=[64, 64]), engine()
    state = State(own, len(TRAIN), settings(1), machine, Objective().task)
    step: nn.Module = Step(own, machine)
    step = fsdp.lead(step, machine.device) if machine.shard else step
    batch = next(DATA.batches(0, 16))
    train_step(state, step, batch, 0, Objective(), None)
    torch.stack(list(step(batch, Objective(), None).values())).sum().backward()
    parameters = list(own.parameters())
    momentum = [entry["momentum_buffer"] for entry in state.optimizer.state.values()]
    kinds = {"parameters": parameters, "gradients": [p.grad for p in parameters], "momentum": momentum}
    return {kind: sum(t.numel() for t in fsdp.local(tensors)) for kind, tensors in kinds.items()}


def saved(folder: Path) -> dict[str, Tensor]:
    """A student that is written as it is shipped, by all ranks."""
    own = student()
    result = trained(own, clip_norm=0.1)
    save_weights(own.net, folder / f"model-{ranks.rank()}.safetensors")
    return result


def everything(folder: Path, other: Path) -> dict[str, object]:
    fsdp.UNIT = UNIT
    odd = images(33, seed=2)
    whole, cut = network("mlp", seed=7), engine().spread(network("mlp", seed=7))
    mine = odd.images[: 17 if ranks.rank() else 8]  # three batches of 8, or one
    within = ("resnet8", "stages.1.0.conv1", (8, 4, 4))  # within a block, whose own output is not asked for
    return {
        "kd": saved(folder),
        "unequal shares": trained(student(), batch_size=17),
        "adamw, accumulate": trained(student(), accumulate=2, **ADAMW),
        "feature": with_feature("mlp", "stages.0", (16,), alpha=1.0),
        "only a feature": with_feature("mlp", "stages.0", (16,), alpha=0.0),
        "within a block": with_feature(*within, alpha=0.0),
        "within the only unit": with_feature(*within, alpha=0.0, unit=10**9),
        "within a block, whole": with_feature(*within, alpha=0.0, shard=False),
        "peers": trained(Peers(student(), student(seed=1)), MutualObjective(alpha=1, beta=1, T=2)),
        **resumed(folder, other),
        "batch norm": trained(network("resnet8")),
        "batch norm, whole": trained(network("resnet8"), shard=False),
        "predicted": predict(cut, odd, 8, engine()),
        "few": predict(cut, images(3), 8, engine()),
        "predicted, whole": predict(whole, odd, 8, engine(shard=False)),
        "few, whole": predict(whole, images(3), 8, engine(shard=False)),
        "asked": teacher().logits(mine),
        "asked, whole": teacher(shard=False).logits(mine),
        "held": held(),
    }


if __name__ == "__main__":
    logging.disable()
    if launch.is_rank():
        ranks.join()
    target = Path(sys.argv[1])
    torch.save(everything(target, Path(sys.argv[2])), target / f"{ranks.rank()}.pt")
    if launch.is_rank():
        launch.end(0)
