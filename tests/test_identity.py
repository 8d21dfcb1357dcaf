"""Which setting changes which artifact's key: the table that the whole store rests on."""

from collections.abc import Callable

import pytest

from kdistill.config.schema import Config
from kdistill.identity import Identity, key_of

KINDS = ("teacher", "soft_targets", "student", "finetuned")


def keys(
    config: Config, fingerprint: str = "data", precision: str = "fp32", weights: dict | None = None
) -> list[str]:
    identity = Identity(config, fingerprint, {"teacher": precision, "student": precision}, weights or {})
    return [key_of(getattr(identity, kind)) for kind in KINDS]


def changed(before: list[str], after: list[str]) -> set[str]:
    return {kind for kind, a, b in zip(KINDS, before, after, strict=True) if a != b}


ALL = set(KINDS)
STUDENT = {"student", "finetuned"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("teacher.epochs=9", ALL),
        ("teacher.seed=1", ALL),
        ("device.processes=2", ALL),
        ("teacher.optim.lr=0.2", ALL),
        ("teacher.params.width=12", ALL),
        ("dataset.validation=0.3", ALL),
        ("dataset.augment.flip=false", ALL),
        ("soft_targets.seed=1", {"soft_targets", *STUDENT}),
        ("soft_targets.views=2", {"soft_targets", *STUDENT}),
        ("soft_targets.dtype=float32", {"soft_targets", *STUDENT}),
        ("soft_targets.top_k=2", {"soft_targets", *STUDENT}),
        ("soft_targets.batch_size=64", {"soft_targets", *STUDENT}),
        ("student.epochs=7", {"soft_targets", *STUDENT}),  # one view per epoch
        ("soft_targets=live", STUDENT),
        ("student.seed=1", STUDENT),
        ("student.optim.lr=0.2", STUDENT),
        ("student.optim=adamw", STUDENT),
        ("loss.T=2", STUDENT),
        ("loss.alpha=0.5", STUDENT),
        ("finetune.epochs=3", {"finetuned"}),
        ("finetune.optim.lr=0.2", {"finetuned"}),
        # typed before hashing, and other ways to say the same
        ("loss.T=4.0", set()),
        ("loss.beta=0.9", set()),
        ("soft_targets=stored", set()),
        ("soft_targets.views=3", set()),
        ("student.params.channels=[8]", set()),
        # where and how, not what
        ("device.workers=3", set()),
        ("device.cache=elsewhere", set()),
        ("device.threads=1", set()),
        ("device.processes=1", set()),
        ("runs=elsewhere", set()),
        ("tracker=tensorboard", set()),
        ("tracker=mlflow", set()),
        ("tracker=wandb", set()),
        ("force=true", set()),
    ],
)
def test_what_determines_each_artifact(
    tiny: Callable[..., Config], override: str, expected: set[str]
) -> None:
    """A setting changes the artifacts that depend on it and what is made from those, and no others."""
    assert changed(keys(tiny()), keys(tiny(override))) == expected


def test_data_precision_and_own_weights_are_part_of_the_key(tiny: Callable[..., Config]) -> None:
    """The fingerprint of the data and the resolved precision change all; own weights the network they start."""
    before = keys(tiny())

    assert changed(before, keys(tiny(), fingerprint="other")) == ALL
    assert changed(before, keys(tiny(), precision="bf16")) == ALL
    assert changed(before, keys(tiny(), weights={"teacher": "sha"})) == ALL
    assert changed(before, keys(tiny(), weights={"student": "sha"})) == STUDENT


def test_the_control_depends_on_no_teacher(tiny: Callable[..., Config]) -> None:
    """Without a soft term neither teacher nor temperature nor the way of storing matters."""
    before = keys(tiny("loss=ce"))

    for override in ("teacher.epochs=9", "soft_targets=live", "soft_targets.dtype=float32"):
        assert changed(before, keys(tiny("loss=ce", override))) & STUDENT == set()
    assert changed(before, keys(tiny("loss=ce", "student.label_smoothing=0.1"))) == STUDENT


def test_a_new_optional_setting_changes_no_key() -> None:
    """None is dropped before hashing, and the order of settings does not matter."""
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert len(key_of({"a": 1})) == 12


def test_keys_stay(tiny: Callable[..., Config]) -> None:
    """Pinned: whoever changes these makes every user train again, and must mean it (raise FORMAT)."""
    assert keys(tiny()) == PINNED


PINNED = ["f1d62896dc0e", "5026d66c777d", "50b75d76f2b3", "54e8d0302d3a"]
