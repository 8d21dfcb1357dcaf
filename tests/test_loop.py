"""The training loop: what it computes, what it keeps, how it stops and goes on."""

import copy
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdistill.config.schema import Training
from kdistill.data import Views, sample_order
from kdistill.data.splits import ArraySplit
from kdistill.engine import Engine
from kdistill.errors import DataError, Diverged, Interrupted
from kdistill.loop import fit, predict
from kdistill.losses import Objective, Outputs, SoftLoss, kd_loss
from kdistill.models import build_classifier
from kdistill.optim import build_optimizer, learning_rate
from kdistill.training_data import TrainingData

CPU = Engine(torch.device("cpu"), "fp32")
VIEWS = Views(seed=3, crop=1, flip=True)


def images(n: int = 96, seed: int = 0) -> ArraySplit:
    """Images whose class is where the bright half is: left, right, top, bottom."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    pixels = torch.randint(0, 120, (n, 1, 8, 8), generator=generator)
    halves = torch.zeros(4, 1, 8, 8, dtype=torch.int64)
    halves[0, :, :, :4], halves[1, :, :, 4:], halves[2, :, :4], halves[3, :, 4:] = 120, 120, 120, 120
    return ArraySplit((pixels + halves[labels]).to(torch.uint8), labels)


TRAIN, VALIDATION = images(), images(48, seed=1)
DATA = TrainingData(TRAIN, VIEWS, order_seed=5)


def settings(epochs: int = 2, batch_size: int = 16, keep: str = "best", **optim: Any) -> Training:
    common = {"lr": 0.05, "weight_decay": 1e-3, "warmup_epochs": 0, "clip_norm": None, "accumulate": 1}
    common |= {"ema": None, "early_stopping": None, "schedule": {"kind": "cosine", "final": 0.0}}
    sgd = {"kind": "sgd", "momentum": 0.9, "nesterov": True}
    values = {"epochs": epochs, "batch_size": batch_size, "label_smoothing": 0.0, "keep": keep}
    chosen = {name: value for name, value in (sgd | optim).items() if value is not None}
    return Training.model_validate(values | {"optim": common | chosen})


def network(name: str = "resnet8", seed: int = 0, **params: Any) -> nn.Module:
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"resnet8": {"width": 4}, "mlp": {"hidden": [16]}, "cnn": {"channels": [8]}}[
        name
    ]
    return build_classifier(
        name, defaults | params, classes=4, channels=1, image_size=(8, 8), mean=[0.4], std=[0.3]
    )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Memory:
    """A checkpoint in memory; `stop_after` asks the process to stop at that save."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None
        self.saves = 0

    def load_checkpoint(self) -> dict[str, Any] | None:
        return copy.deepcopy(self.state)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        self.state = copy.deepcopy(state)
        self.saves += 1

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        self.lines = rows


def test_equals_plain_training_exactly() -> None:
    """Without a soft term the loop is a plain PyTorch training loop: the same weights, bit for bit."""
    plain, ours = network(), network()
    training = settings(epochs=3, keep="last", warmup_epochs=1, clip_norm=1.0)
    optimizer = build_optimizer(plain, training.optim)
    rate = learning_rate(training.optim, epochs=3, steps_per_epoch=6)
    plain.train()
    for epoch in range(3):
        for step, chunk in enumerate(sample_order(96, 5, epoch).split(16)):
            for group in optimizer.param_groups:
                group["lr"] = rate(6 * epoch + step)
            inputs = VIEWS(TRAIN.images[chunk], chunk, epoch)
            F.cross_entropy(plain(inputs), TRAIN.labels[chunk]).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    fit(ours, DATA, VALIDATION, Objective(), training, CPU)

    assert_same(weights(plain), weights(ours))


def test_learns_and_reports_each_epoch() -> None:
    """The loss falls, the bright halves are told apart, and each epoch has a row."""
    model = network()
    fitted = fit(model, DATA, VALIDATION, Objective(), settings(epochs=8, keep="last"), CPU)
    first, last = fitted.history[0], fitted.history[-1]

    assert [row["epoch"] for row in fitted.history] == list(range(1, 9))
    assert last["loss"] < first["loss"] / 2
    assert fitted.scores["top1"] > 0.9
    assert {"hard", "lr", "validation_top1", "validation_nll", "images_per_second"} <= set(first)
    assert not model.training


def test_each_epoch_is_told_after_it_is_saved_and_may_end_the_training() -> None:
    """`on_epoch` gets the rows of the history; what it raises comes through, with the state of that epoch saved."""
    told: list[dict[str, Any]] = []
    saved = Memory()

    def on_epoch(row: dict[str, Any]) -> None:
        told.append(row)
        if row["epoch"] == 2:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        fit(
            network(),
            DATA,
            VALIDATION,
            Objective(),
            settings(4),
            CPU,
            checkpoint=saved,
            on_epoch=on_epoch,
        )

    assert saved.state is not None
    assert saved.state["history"] == told
    assert [row["epoch"] for row in told] == [1, 2]


def test_a_run_that_is_gone_on_with_tells_its_first_epochs_again() -> None:
    """Who listens since then has all rows of the history, in order."""
    told: list[dict[str, Any]] = []
    saved = Memory()

    def stop(row: dict[str, Any]) -> None:
        raise LookupError("enough")

    def train(on_epoch: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
        goal = Objective()
        return fit(
            network(), DATA, VALIDATION, goal, settings(3), CPU, checkpoint=saved, on_epoch=on_epoch
        ).history

    with pytest.raises(LookupError, match="enough"):
        train(stop)

    assert train(told.append) == told
    assert [row["epoch"] for row in told] == [1, 2, 3]


def test_terms_in_the_history_add_up_to_the_loss() -> None:
    """Hard and soft term are recorded weighted."""
    objective = Objective(alpha=0.5, beta=0.5, soft=SoftLoss(kd_loss), T=2.0)
    row = fit(
        network(),
        DATA,
        VALIDATION,
        objective,
        settings(1),
        CPU,
        signal=lambda batch, view, T: Outputs(torch.zeros(len(batch.labels), 4)),
    ).history[0]

    assert row["hard"] + row["soft"] == pytest.approx(row["loss"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_terms_are_weighted_in_the_gradient(accumulate: int) -> None:
    """alpha * CE + beta * T^2 KL, differentiated by hand, moves the weights as `fit` does; and is recorded."""
    plain, ours = network("mlp"), network("mlp")
    training = settings(epochs=1, batch_size=96, keep="last", accumulate=accumulate)
    chunk = sample_order(96, 5, 0)
    logits, answers = plain(VIEWS(TRAIN.images[chunk], chunk, 0)), torch.arange(4.0)
    hard = 0.3 * F.cross_entropy(logits, TRAIN.labels[chunk])
    soft = 2 * kd_loss(logits, answers.expand(96, 4), T=2.0)
    (hard + soft).backward()
    optimizer = build_optimizer(plain, training.optim)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(training.optim, 1, 1)(0)
    optimizer.step()

    objective = Objective(alpha=0.3, beta=2.0, soft=SoftLoss(kd_loss), T=2.0)
    fitted = fit(
        ours, DATA, VALIDATION, objective, training, CPU,
        signal=lambda batch, view, T: Outputs(answers.expand(len(batch.labels), 4)),
    )  # fmt: skip

    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    row = fitted.history[0]
    assert (row["hard"], row["soft"]) == pytest.approx((hard.item(), soft.item()), rel=1e-5)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_the_same_batch_in_parts(accumulate: int) -> None:
    """For a network without batch norm, parts of a batch add up to its gradient."""
    whole, parts = network("mlp"), network("mlp")
    fit(whole, DATA, VALIDATION, Objective(), settings(keep="last"), CPU)
    fit(parts, DATA, VALIDATION, Objective(), settings(keep="last", accumulate=accumulate), CPU)

    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_keep_best_keeps_the_state_that_scored_best() -> None:
    """With a learning rate that ends in ruin, the best state is kept and not the last one."""
    model = network()
    wild = settings(epochs=6, lr=2.0, schedule={"kind": "constant"})
    fitted = fit(model, DATA, VALIDATION, Objective(), wild, CPU)
    logits, labels = predict(model, VALIDATION, 16, CPU)
    best = max(row["validation_top1"] for row in fitted.history)

    assert fitted.scores["top1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert fitted.scores["top1"] >= best


def test_no_epochs_leave_the_weights_alone() -> None:
    """`epochs=0` evaluates and keeps what it was given: a user's own teacher, for example."""
    model = network()
    before = weights(model)
    fitted = fit(model, DATA, VALIDATION, Objective(), settings(epochs=0), CPU)

    assert_same(before, weights(model))
    assert fitted.history == []
    assert 0 <= fitted.scores["top1"] <= 1


def test_moving_average_by_hand() -> None:
    """The kept network is the moving average of the weights after each step."""
    kept, raw = network("mlp"), network("mlp")
    fit(kept, DATA, VALIDATION, Objective(), settings(epochs=1, keep="last", ema=0.5), CPU)
    steps = []
    for count in range(1, 7):
        trace = copy.deepcopy(raw)
        _train_steps(trace, count)
        steps.append(weights(trace))
    average = steps[0]
    for state in steps[1:]:
        average = {name: 0.5 * average[name] + 0.5 * state[name] for name in average}

    for name, value in kept.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-7)


def _train_steps(model: nn.Module, count: int) -> None:
    training = settings(epochs=1)
    optimizer, rate = build_optimizer(model, training.optim), learning_rate(training.optim, 1, 6)
    for step, chunk in enumerate(sample_order(96, 5, 0).split(16)[:count]):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        F.cross_entropy(model(VIEWS(TRAIN.images[chunk], chunk, 0)), TRAIN.labels[chunk]).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_early_stopping_waits_its_patience() -> None:
    """With a learning rate too small to change any prediction, training ends after the patience."""
    still = settings(epochs=20, lr=1e-30, early_stopping=3)
    fitted = fit(network("mlp"), DATA, VALIDATION, Objective(), still, CPU)

    assert len(fitted.history) == 4  # the first is better than nothing, three are not better than the first


def test_weights_that_a_last_step_broke_are_never_kept() -> None:
    """The loss is looked at before a step; what the last step does to the weights shows on validation."""
    one_step = settings(epochs=1, batch_size=96, lr=1e30, schedule={"kind": "constant"})
    with pytest.raises(Diverged, match=r"the validation loss is not finite after epoch 1/1 step 1/1"):
        fit(network(), DATA, VALIDATION, Objective(), one_step, CPU)


def test_non_finite_loss_stops_before_the_optimizer_moves() -> None:
    """The message names epoch, step and terms; the weights are those of the step before."""
    model = network("mlp")
    calls = []

    def signal_then_nan(batch: Any, view: int, T: float) -> Outputs:
        calls.append(weights(model))
        value = float("nan") if len(calls) == 9 else 0.0
        return Outputs(torch.full((len(batch.labels), 4), value))

    objective = Objective(alpha=0.5, beta=0.5, soft=SoftLoss(kd_loss), T=2.0)
    with pytest.raises(Diverged) as caught:
        fit(model, DATA, VALIDATION, objective, settings(epochs=3), CPU, signal=signal_then_nan)

    assert str(caught.value).startswith("the loss is not finite at epoch 2/3 step 2/6 (terms: hard=")
    assert "soft=nan" in str(caught.value)
    assert "optim.lr (now 0.05)" in str(caught.value)
    assert_same(calls[-1], weights(model))


@pytest.mark.parametrize(("seconds", "calls_made", "saves"), [(300, 10, 1), (0, 9, 9)])
def test_a_gpu_s_loss_is_looked_at_now_and_then(
    seconds: int, calls_made: int, saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every fourth step here, and before a state is saved: none is that has moved on a loss that is not finite.

    The message names the step that it was.
    """
    monkeypatch.setattr(Engine, "look_every", 4)
    memory, calls = Memory(), []

    def signal_then_nan(batch: Any, view: int, T: float) -> Outputs:
        calls.append(T)
        value = float("nan") if len(calls) == 9 else 0.0
        return Outputs(torch.full((len(batch.labels), 4), value))

    objective = Objective(alpha=0.5, beta=0.5, soft=SoftLoss(kd_loss), T=2.0)
    expected = r"^the loss is not finite at epoch 2/3 step 2/6 \(terms: .*=nan\);"
    with pytest.raises(Diverged, match=expected + " what is saved has not moved on it"):
        fit(
            network("mlp"),
            DATA,
            VALIDATION,
            objective,
            settings(epochs=3),
            CPU,
            signal=signal_then_nan,
            checkpoint=memory,
            checkpoint_seconds=seconds,
        )

    assert (len(calls), memory.saves) == (calls_made, saves)
    assert memory.state is not None
    assert all(value.isfinite().all() for value in memory.state["network"].values())


@pytest.mark.parametrize("stop_at", [1, 4, 6, 7, 11])
@pytest.mark.parametrize(
    "optim",
    [
        {},
        {"ema": 0.9, "accumulate": 2, "clip_norm": 1.0, "early_stopping": 5},
        {"kind": "adamw", "betas": [0.9, 0.99], "momentum": None, "nesterov": None, "lr": 0.01},
    ],
    ids=["sgd", "sgd with everything", "adamw"],
)
def test_stopped_and_resumed_equals_uninterrupted(stop_at: int, optim: dict[str, Any]) -> None:
    """A stop at any step, within or between epochs: the rest of the run is the same, bit for bit.

    The network has batch norm and dropout, the run momentum, a schedule and a moving average.
    """

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop = network(), nn.Dropout(0.3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(self.body(x))

    def train(model: nn.Module, memory: Memory, stop: int | None) -> Any:
        calls = [0]

        def interrupting(batch: Any, view: int, T: float) -> Outputs:
            calls[0] += 1
            if calls[0] == (stop or -1) * optim.get("accumulate", 1):
                os.kill(os.getpid(), signal.SIGINT)
            return Outputs(torch.zeros(len(batch.labels), 4))

        objective = Objective(alpha=0.5, beta=0.5, soft=SoftLoss(kd_loss), T=2.0)
        with CPU.seeded(7):
            return fit(
                model,
                DATA,
                VALIDATION,
                objective,
                settings(epochs=2, **optim),
                CPU,
                signal=interrupting,
                checkpoint=memory,
            )

    torch.manual_seed(0)
    start = Dropping()
    straight, resumed = copy.deepcopy(start), copy.deepcopy(start)
    expected = train(straight, Memory(), stop=None)

    memory = Memory()
    with pytest.raises(Interrupted, match="the state is saved: give the same command again to go on"):
        train(copy.deepcopy(start), memory, stop=stop_at)
    actual = train(resumed, memory, stop=None)

    assert_same(weights(straight), weights(resumed))
    untimed = [{k: v for k, v in row.items() if k != "images_per_second"} for row in expected.history]
    assert untimed == [{k: v for k, v in row.items() if k != "images_per_second"} for row in actual.history]


def test_the_order_and_the_views_follow_the_epoch() -> None:
    """Epoch e shows view e modulo the distinct views, every sample once, in an order of its own."""
    data = TrainingData(TRAIN, VIEWS, order_seed=1, distinct_views=2, first_epoch=3)
    seen = [torch.cat([b.indices for b in data.batches(epoch, 16)]) for epoch in range(2)]

    assert [data.view(e) for e in range(4)] == [1, 0, 1, 0]
    assert sorted(seen[0].tolist()) == list(range(96))
    assert seen[0].tolist() != seen[1].tolist()
    later = torch.cat([b.indices for b in data.batches(0, 16, start=2)])
    assert torch.equal(seen[0][32:], later)


def test_an_incomplete_batch_waits_for_another_epoch() -> None:
    """96 samples in batches of 40: two batches an epoch; a split smaller than the batch is one batch."""
    assert [len(b.labels) for b in DATA.batches(0, 40)] == [40, 40]

    history = fit(network("mlp"), DATA, VALIDATION, Objective(), settings(1, batch_size=512), CPU).history
    assert len(history) == 1


def test_a_split_too_small_to_be_split_is_refused() -> None:
    """A batch of all 3 samples cannot be cut into 2 equal parts."""
    small = TrainingData(images(3), VIEWS, order_seed=0)
    with pytest.raises(DataError, match="3 training samples do not make a batch of 16 in 2 equal parts"):
        fit(network("mlp"), small, VALIDATION, Objective(), settings(accumulate=2), CPU)


def test_predict_keeps_the_split_s_order_and_the_network_s_mode() -> None:
    """Logits come in the split's order whatever the batch size, and training mode is put back."""
    model = network().train()
    one, labels = predict(model, VALIDATION, 48, CPU)
    other, _ = predict(model, VALIDATION, 7, CPU)

    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, VALIDATION.labels)
    assert model.training


def test_bf16_trains_close_to_fp32() -> None:
    """Half precision is another rounding of the same training, not another training."""
    exact, half = network(), network()
    fit(exact, DATA, VALIDATION, Objective(), settings(1, keep="last"), CPU)
    fit(half, DATA, VALIDATION, Objective(), settings(1, keep="last"), Engine(torch.device("cpu"), "bf16"))
    difference = torch.cat(
        [(a - b).flatten() for a, b in zip(exact.parameters(), half.parameters(), strict=True)]
    )
    size = torch.cat([p.flatten() for p in exact.parameters()])

    assert 0 < difference.norm() < 0.1 * size.norm()
