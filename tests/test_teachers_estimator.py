"""scikit-learn's estimators as teachers of networks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdistill import load_config, run, train_teacher
from kdistill.config.schema import Config, Stage
from kdistill.errors import ConfigError
from kdistill.stages import check_before, run_stage
from kdistill.stages.job import Job
from tests.cases.stages import at_stage, made

Tiny = Callable[..., Config]


@pytest.mark.parametrize(
    "teacher",
    [
        ("teacher=gradient_boosting", "teacher.params.max_iter=15"),
        ("teacher=random_forest", "teacher.params.n_estimators=30"),
    ],
)
def test_an_estimator_teaches_a_network(small: Tiny, teacher: tuple[str, ...]) -> None:
    """Trees on the pixels of digits teach a CNN, with soft targets alone, far better than chance (10 %)."""
    pytest.importorskip("skops")
    config = small(*teacher, "loss.alpha=0", "loss.T=1")
    scores = run(config)
    row = run_stage(at_stage(config, "eval")).tables[1].rows[0]

    assert scores["teacher"]["top1"] > 0.75
    assert scores["student"]["top1"] > 0.5
    assert scores["student"]["agreement"] > 0.5
    assert (scores["teacher"]["parameters"], row[1]) == (0, "-")
    assert len(made(config, "teacher")) == len(made(config, "soft-targets")) == 1


def test_a_regressor_teaches_a_network(tmp_path: Path) -> None:
    """A forest on ten measurements teaches a network to predict a number."""
    pytest.importorskip("skops")
    config = load_config(
        "dataset=diabetes",
        "teacher=random_forest",
        "teacher.name=sklearn/RandomForestRegressor",
        "teacher.params.n_estimators=30",
        "student=mlp",
        "student.optim=adamw",
        "student.epochs=15",
        "student.batch_size=32",
        "finetune=none",
        "device=cpu",
        f"runs={tmp_path / 'runs'}",
    )
    scores = run(config)

    assert scores["teacher"]["r2"] > 0.3
    assert scores["student"]["r2"] > 0.3  # 0: the mean
    assert 40 < scores["student"]["rmse"] < 70  # in units of the measurements


def test_an_estimator_s_key(small: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, parameters and seed count, and the version of scikit-learn; how networks train does not."""

    def key(*overrides: str) -> str:
        job = Job.open(small("teacher=random_forest", *overrides))
        return json.dumps(job.identity.teacher, sort_keys=True)

    before = key()
    assert key("teacher.epochs=3", "teacher.optim.lr=0.5", "teacher.keep=last") == before
    for override in ("teacher.seed=1", "teacher.params.n_estimators=7", "teacher.input.size=4"):
        assert key(override) != before
    monkeypatch.setattr("kdistill.identity.metadata.version", lambda name: "99.0")
    assert key() != before


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            ("teacher.name=sklearn/RandomForestClassifer",),
            ConfigError,
            "^scikit-learn has no classifier 'RandomForestClassifer'. Did you mean 'RandomForestClassifier'",
        ),
        (
            ("teacher.params.n_estimaters=3",),
            ConfigError,
            "^RandomForestClassifier has no parameter 'n_estimaters'. Did you mean 'n_estimators'",
        ),
        (("teacher.params.n_estimators=-3",), ConfigError, "^The 'n_estimators' parameter of Random"),
        (
            ("teacher.name=sklearn/RandomForestRegressor",),
            ConfigError,
            "^scikit-learn has no classifier 'RandomForestRegressor'",
        ),
        (
            ("dataset=synthetic_multilabel", "dataset.augment.crop=0"),
            ConfigError,
            "^sklearn/RandomForestClassifier does not know several labels per image; choose a network",
        ),
        (
            ("feature=at",),
            ConfigError,
            r"^features \(at\) need one network as teacher; sklearn/RandomForestClassifier has none to look into",
        ),
    ],
)
@pytest.mark.parametrize("stage", ["train-teacher", "run"])
def test_an_estimator_is_checked_before_it_is_fitted(
    small: Tiny, words: tuple[str, ...], error: type[Exception], message: str, stage: Stage
) -> None:
    """Names, parameters, ranges, the task and the loss: all refused before the first artifact."""
    pytest.importorskip("skops")
    words = tuple(w for w in words if not (w.startswith("feature") and stage == "train-teacher"))
    if not words:
        return
    config = at_stage(small("teacher=random_forest", *words, "dataset.train_samples=100"), stage)

    with pytest.raises(error, match=message):
        check_before([config])
    assert made(config, "teacher") == []


def test_without_skops_no_estimator_is_fitted(small: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named before the fitting, which could take hours."""
    monkeypatch.setitem(sys.modules, "skops", None)
    monkeypatch.setitem(sys.modules, "skops.io", None)
    monkeypatch.setattr("kdistill.stages.train_teacher.fit_estimator", lambda *a: pytest.fail("fitted"))
    config = small("teacher=random_forest")

    for attempt in (lambda: check_before([config]), lambda: train_teacher(config)):
        with pytest.raises(ConfigError, match=r"needs skops: pip install 'kdistill\[skops\]'$"):
            attempt()
