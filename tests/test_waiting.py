"""A training step never waits for a GPU, so that the process can give it work ahead.

The `meta` device stands for a GPU: it has no numbers, so that reading one is an error, and what is copied to it or
from it can be seen.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdistill.classes import class_map
from kdistill.data import Mixing, Views
from kdistill.data.geometry import Erase, Move, ResizedCrop, moved
from kdistill.data.inputs import InputView
from kdistill.data.splits import ArraySplit
from kdistill.engine import Engine
from kdistill.loop import Step, train_step
from kdistill.losses import Objective, Outputs, SoftLoss, kd_loss
from kdistill.losses.terms import TERMS
from kdistill.state import State
from kdistill.stored import AllLogits, Reader
from kdistill.tasks import CLASSIFICATION
from kdistill.teachers import MappedTeacher, StoredTeacher
from kdistill.training_data import TrainingData
from tests.test_feature_losses_terms import LABELS, STUDENTS, TEACHERS, build
from tests.test_loop import VIEWS, images, network, settings
from tests.test_losses_contract import LOSSES

GPU = torch.device("meta")


class Copies(TorchDispatchMode):
    """Counts the operations between the CPU and the other device; single numbers on the CPU are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in tensors if tensor.ndim}) > 1:
            self.found.append(str(func))
        return result


def on_gpu(split: ArraySplit, **changes: Any) -> TrainingData:
    return TrainingData(split.to(GPU), **{"views": VIEWS, "order_seed": 5, "classes": 4} | changes)


def epoch(data: TrainingData, objective: Objective, signal: Any = None, **optim: Any) -> list[str]:
    """Run an epoch of 6 steps but for the last, at whose loss is looked; returns what was copied."""
    engine = Engine(GPU, "fp32")
    state = State(engine.place(network()), 96, settings(**optim), engine, CLASSIFICATION)
    step = Step(state.network, engine)
    with Copies() as copies:
        for batch in list(data.batches(0, 16))[:-1]:
            train_step(state, step, batch, 0, objective, signal)
    assert state.step == 5
    return copies.found


KD = Objective(alpha=0.5, beta=0.5, soft=SoftLoss(kd_loss), T=2.0)
#: the order of the samples, once an epoch
ORDER = ["aten._to_copy.default"]


@pytest.mark.parametrize(
    "optim", [{}, {"clip_norm": 1.0, "accumulate": 2}, {"ema": 0.9}, {"kind": "adamw", "momentum": None}]
)
def test_plain_training(optim: dict[str, Any]) -> None:
    """Only the order of the samples is brought to the GPU, once an epoch."""
    if optim.get("kind") == "adamw":
        optim = optim | {"nesterov": None, "betas": (0.9, 0.999)}
    assert epoch(on_gpu(images()), Objective(label_smoothing=0.1), **optim) == ORDER


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_distillation_from_stored_soft_targets(kind: Any, tmp_path: Any) -> None:
    """They are held on the GPU; mixing draws its partners there."""
    np.save(tmp_path / "logits.npy", np.zeros((1, 96, 4), np.float16))
    signal = StoredTeacher(Reader(tmp_path / "logits.npy", AllLogits((1, 96, 4), "float16"), GPU))
    assert epoch(on_gpu(images()), KD, signal) == ORDER
    assert epoch(on_gpu(images(), mixing=Mixing(kind, 1.0, 0)), KD, signal) == ORDER


@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_logits(name: str) -> None:
    logits, labels = torch.zeros(16, 4, device=GPU), torch.zeros(16, dtype=torch.int64, device=GPU)
    assert not copies_of(lambda: LOSSES[name](logits, logits, labels))


@pytest.mark.parametrize("kind", TERMS)
def test_losses_on_features(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # refuses the meta device
    student, teacher = STUDENTS["maps"], TEACHERS["maps"]
    term = build(kind, [student], [teacher]).to(GPU)
    student, teacher = student.to(GPU), teacher.to(GPU)
    labels, indices = LABELS[: len(student)].to(GPU), torch.arange(len(student), device=GPU)
    assert not copies_of(lambda: term([student], [teacher], labels, indices))


def test_augmentation() -> None:
    """Tables are brought to the GPU once. RandAugment and jitter do wait: they sort images by what is drawn."""
    pixels, indices = images().to(GPU).images, torch.arange(96, device=GPU)
    chosen = torch.zeros(96, dtype=torch.int64, device=GPU)
    views = Views(0, 0, False, (ResizedCrop((0.5, 1.0), (1.0, 1.0)), Erase(3)))
    assert not copies_of(lambda: views(pixels, indices, 0))
    assert not copies_of(lambda: moved(pixels, (Move(x=2.0),), chosen))
    assert not copies_of(lambda: InputView(size=5, grey=False)(pixels))


def test_teachers_of_other_classes() -> None:
    """The table of classes is brought to the GPU once."""
    logits = Outputs(torch.zeros(16, 4, device=GPU))
    for student in (["a", "b", "c"], ["b", "d", "unknown"]):
        teacher = MappedTeacher(lambda *_: logits, class_map(["a", "b", "c", "d"], student, None))
        assert not copies_of(lambda teacher=teacher: teacher(None, 0, 1.0))


def test_results_are_used_while_the_gpu_makes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, each when its copy has arrived, and one behind."""
    told: list[str] = []

    class Event:
        def record(self, stream: object) -> None:
            told.append("copying")

        def synchronize(self) -> None:
            told.append("arrived")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    engine = Engine(torch.device("cuda"), "bf16")
    for (number,) in engine.fetched((torch.tensor(i),) for i in range(3)):
        told.append(str(int(number)))

    assert told == ["copying", "copying", "arrived", "0", "copying", "arrived", "1", "arrived", "2"]
    assert not list(engine.fetched([]))


def copies_of(work: Callable[[], object]) -> list[str]:
    """What is copied when it is done for the second time."""
    work()
    with Copies() as copies:
        work()
    return copies.found
