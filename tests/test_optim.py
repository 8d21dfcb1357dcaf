"""Optimizers and learning rates."""

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from kdistill.config.optim import SGD, AdamW, Constant, Cosine, MultiStep
from kdistill.optim import build_optimizer, learning_rate, schedule_factor

COMMON = {"weight_decay": 0.1, "clip_norm": None, "accumulate": 1, "ema": None, "early_stopping": None}
COSINE = Cosine(kind="cosine", final=0.1)


def sgd(**changes: object) -> SGD:
    values = {
        "kind": "sgd",
        "lr": 0.5,
        "momentum": 0.9,
        "nesterov": True,
        "schedule": COSINE,
        "warmup_epochs": 0,
    }
    return SGD.model_validate(COMMON | values | changes)


def test_schedules_by_hand() -> None:
    """Cosine from 1 over the middle to `final`; multi-step falls by gamma at each milestone; constant stays."""
    steps = MultiStep(kind="multistep", milestones=[0.5, 0.75], gamma=0.1)

    assert [schedule_factor(COSINE, p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1])
    assert [schedule_factor(steps, p) for p in (0, 0.49, 0.5, 0.8)] == pytest.approx([1, 1, 0.1, 0.01])
    assert schedule_factor(Constant(kind="constant"), 0.9) == 1


def test_warm_up_is_linear_and_then_the_schedule_runs() -> None:
    """Two warm-up epochs of five steps: tenths of the peak, which the next step has in full."""
    rate = learning_rate(sgd(warmup_epochs=2), epochs=10, steps_per_epoch=5)

    assert [rate(s) for s in range(10)] == pytest.approx([0.05 * (s + 1) for s in range(10)])
    assert rate(10) == pytest.approx(0.5)
    assert rate(30) == pytest.approx(0.5 * 0.55)


def test_a_warm_up_longer_than_the_training_is_cut() -> None:
    """One epoch with five warm-up epochs: the peak is reached at the last step."""
    rate = learning_rate(sgd(warmup_epochs=5), epochs=1, steps_per_epoch=4)

    assert rate(3) == pytest.approx(0.5)


def test_weight_decay_spares_biases_and_norms() -> None:
    """Only weights with two or more axes are decayed."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    decayed, spared = build_optimizer(model, sgd()).param_groups

    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0)
    assert len(spared["params"]) == 4


def test_kinds() -> None:
    """The kind chooses the optimizer; its own parameters are passed on."""
    adamw = AdamW.model_validate(
        COMMON | {"kind": "adamw", "lr": 1e-3, "betas": (0.8, 0.99), "schedule": COSINE, "warmup_epochs": 0}
    )
    model = nn.Linear(2, 2)

    assert build_optimizer(model, adamw).param_groups[0]["betas"] == (0.8, 0.99)
    first = build_optimizer(model, sgd(momentum=0.5)).param_groups[0]
    assert (first["momentum"], first["nesterov"]) == (0.5, True)
    assert isinstance(build_optimizer(model, adamw), torch.optim.AdamW)


ADAMW = AdamW.model_validate(
    COMMON | {"kind": "adamw", "lr": 0.05, "betas": (0.9, 0.99), "schedule": COSINE, "warmup_epochs": 0}
)


@pytest.mark.parametrize(
    ("config", "own"),
    [
        (sgd(momentum=0.9), lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.9, nesterov=True)),
        (ADAMW, lambda groups: torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.99))),
    ],
    ids=["sgd", "adamw"],
)
def test_steps_are_pytorch_s_own(config: SGD | AdamW, own: Callable[..., torch.optim.Optimizer]) -> None:
    """The same bits after each step, also where the state was saved and loaded between them."""
    torch.manual_seed(0)
    one, images = nn.Linear(3, 2), torch.randn(4, 3)
    two = deepcopy(one)
    ours = build_optimizer(one, config)
    theirs = own(
        [
            {"params": [two.weight], "weight_decay": config.weight_decay},
            {"params": [two.bias], "weight_decay": 0.0},
        ]
    )
    for _ in range(3):
        for network, optimizer in ((one, ours), (two, theirs)):
            optimizer.zero_grad()
            network(images).square().sum().backward()
            optimizer.step()
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(one.bias, two.bias)
        assert one.weight.requires_grad
        saved, ours = ours.state_dict(), build_optimizer(one, config)
        ours.load_state_dict(saved)


def test_training_imports_neither_compiler_nor_sympy(tmp_path: Path) -> None:
    """They take a second: PyTorch's own optimizers import the one, gradients given to `backward` the other."""
    words = ["dataset=digits", "student=cnn", "student.epochs=1", "teacher=cnn", "teacher.epochs=1"]
    program = f"""
import sys
from kdistill.cli import main
for stage in ("train-teacher", "distill"):
    assert main([stage, *{words}, "runs={tmp_path}"]) == 0
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
