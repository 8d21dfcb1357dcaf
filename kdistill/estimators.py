"""scikit-learn's classifiers and regressors as teachers: by class name, on flattened pixels, kept without pickle."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor

from kdistill.averaging import log_of
from kdistill.errors import ConfigError, ModelError, did_you_mean, first_line
from kdistill.extras import imported

# scikit-learn is imported where it is used: it takes a second, and few runs need it
if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

_log = logging.getLogger("kdistill")

Task = Literal["classification", "regression"]
_KINDS: dict[Task, str] = {"classification": "classifier", "regression": "regressor"}

#: what a saved estimator may be made of, besides what skops itself trusts: classes that hold numbers, by module.
#: One by one, and only from the module that defines it: modules also hold functions, such as `dataclass`, that
#: run text. Not among the distances: PyFuncDistance, which calls what a file says.
_PARTS = {
    "sklearn._loss.link": "HalfLogitLink IdentityLink Interval LogitLink LogLink MultinomialLogit",
    "sklearn._loss.loss": "AbsoluteError ExponentialLoss HalfBinomialLoss HalfGammaLoss HalfMultinomialLoss"
    " HalfPoissonLoss HalfSquaredError HalfTweedieLoss HalfTweedieLossIdentity HuberLoss PinballLoss",
    "sklearn.calibration": "_CalibratedClassifier _SigmoidCalibration _TemperatureScaling",
    "sklearn.ensemble._hist_gradient_boosting.binning": "_BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.predictor": "TreePredictor",
    "sklearn.gaussian_process._gpc": "_BinaryGaussianProcessClassifierLaplace",
    "sklearn.gaussian_process.kernels": "ConstantKernel Product RBF",
    "sklearn.metrics._dist_metrics": "BrayCurtisDistance64 CanberraDistance64 ChebyshevDistance64 DiceDistance64"
    " EuclideanDistance64 HammingDistance64 HaversineDistance64 JaccardDistance64 MahalanobisDistance64"
    " ManhattanDistance64 MinkowskiDistance64 RogersTanimotoDistance64 RussellRaoDistance64 SEuclideanDistance64"
    " SokalMichenerDistance64 SokalSneathDistance64",
    "sklearn.neighbors._ball_tree": "BallTree",
    "sklearn.neighbors._kd_tree": "KDTree",
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
    "sklearn.tree._tree": "Tree",
}

#: the ways in which skops may be told to make a thing. Left out are those that call or look up what the file
#: names: functions, methods, partial, operator, and constructors with arguments of the file's choice.
_LOADERS = frozenset(
    [
        "DictNode",
        "JsonNode",
        "ListNode",
        "LossNode",
        "NdArrayNode",
        "ObjectNode",
        "RandomGeneratorNode",
        "RandomStateNode",
        "TreeNode",
        "TupleNode",
        "TypeNode",
    ]
)


def estimator_names(task: Task) -> list[str]:
    """Return the class names that can be asked for: those that need no other estimator, and can be a teacher."""
    return sorted(_table(task))


def check_estimator(name: str, params: Mapping[str, Any], task: Task = "classification") -> None:
    """Raise ConfigError for an unknown name or parameter, a value out of range, or no probabilities."""
    _build(name, params, task)


def fit_estimator(
    name: str,
    params: Mapping[str, Any],
    seed: int,
    images: Tensor,
    labels: Tensor,
    task: Task = "classification",
) -> BaseEstimator:
    """Fit the estimator of this class name: a pure function of its arguments (with n_jobs left alone).

    Args:
        name: a class of scikit-learn, such as "RandomForestClassifier".
        params: its parameters; random_state is `seed`.
        images: uint8 `[n, C, H, W]`, which the estimator sees as `[n, C * H * W]` float32 in [0, 1]; numbers,
            float `[n, D, 1, 1]`, it sees as they are.
        labels: int64 `[n]`, or values `[n, D]` for regression. Samples of label -1, or with a value of nan, are
            left out.

    A regressor that has one output only is fitted once for each of several. Warnings of scikit-learn (did not
    converge) are logged. Raises ConfigError as `check_estimator` does, and when fitting fails.
    """
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.utils import get_tags

    estimator = _build(name, params, task)
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=seed)
    if task == "classification":
        known, targets = labels >= 0, labels
    else:
        # of one output, scikit-learn wants a vector
        targets = labels.flatten(1).squeeze(1) if labels.ndim > 1 else labels
        known = ~labels.reshape(len(labels), -1).isnan().any(1)
        if targets.ndim > 1 and not get_tags(estimator).target_tags.multi_output:
            estimator = MultiOutputRegressor(estimator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator.fit(_pixels(images[known]), targets[known].cpu().numpy())
        except (ValueError, TypeError, ArithmeticError, np.linalg.LinAlgError) as ex:
            raise ConfigError(
                f"{name} cannot be fitted to {int(known.sum())} samples: {first_line(ex)}"
            ) from ex
    for text in dict.fromkeys(str(warning.message).strip().splitlines()[0] for warning in caught):
        _log.warning(f"{name}: {text}")
    return estimator


def estimator_logits(estimator: BaseEstimator, images: Tensor, classes: int) -> Tensor:
    """Return logits `[N, K]` float32, on the CPU, of images as in `fit_estimator`: the log of predict_proba.

    Softmax gives the probabilities back; those below 1e-7 count as 1e-7 (`averaging.log_of`), also of a class
    that the estimator never saw. Column k is class k. Raises ModelError if a probability is not a
    number.
    """
    probabilities = _finite(estimator, estimator.predict_proba(_pixels(images)))
    aligned = probabilities.new_zeros(len(images), classes)
    aligned[:, torch.from_numpy(np.asarray(estimator.classes_, dtype=np.int64))] = probabilities
    return log_of(aligned)


def estimator_values(estimator: BaseEstimator, images: Tensor) -> Tensor:
    """Return a regressor's values `[N, D]` float32, on the CPU, of images as in `fit_estimator`.

    Raises ModelError if a value is not a number.
    """
    values = _finite(estimator, estimator.predict(_pixels(images)))
    return values.float().reshape(len(images), -1)


def require_skops() -> None:
    """Raise ConfigError where estimators could not be kept, because skops is missing."""
    _skops()


def save_estimator(estimator: BaseEstimator, path: Path) -> None:
    """Write a fitted estimator as a skops file; the same estimator does not give the same bytes twice.

    It is read back at once: what `load_estimator` would refuse is refused here, with the same errors.
    """
    _skops().dump(estimator, path)
    load_estimator(path)


def load_estimator(path: Path) -> BaseEstimator:
    """Read what `save_estimator` wrote. Nothing is unpickled, and nothing but classes of estimators' parts is made.

    No file can run code; the numbers in it are not verified, and forged ones can crash the process.

    Raises ConfigError when skops is missing, and ModelError for another file or other types.
    """
    from sklearn.multioutput import MultiOutputRegressor

    skops = _skops()
    try:
        foreign = skops.get_untrusted_types(file=path)
        refused = [name for name in foreign if not _is_part(name)]
        refused += sorted(_loaders(path) - _LOADERS)
        if not refused:
            estimator = skops.load(path, trusted=foreign)
    except Exception as ex:  # a damaged file: zip, JSON, numpy and scikit-learn each raise their own
        raise ModelError(f"{path} cannot be read as an estimator: {first_line(ex)}") from ex
    if refused:
        raise ModelError(
            f"{path} holds {refused[0]}, which no estimator of scikit-learn is made of: refused to load it"
        )
    if type(estimator) not in {
        MultiOutputRegressor,
        *_table("classification").values(),
        *_table("regression").values(),
    }:
        raise ModelError(f"{path} holds a {type(estimator).__name__}: expected a classifier or regressor")
    return estimator


def _is_part(name: str) -> bool:
    module, _, class_name = name.rpartition(".")
    if class_name not in _PARTS.get(module, "").split():
        return False
    part = getattr(import_module(module), class_name, None)
    return isinstance(part, type) and part.__module__ == module


def _loaders(path: Path) -> set[str]:
    """The ways in which skops would make the things in this file, by its names for them."""

    def found(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("__loader__"), str):
                yield node["__loader__"]
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from found(child)

    with ZipFile(path) as file:
        return set(found(json.loads(file.read("schema.json"))))


@cache
def _every(task: Task) -> dict[str, type[BaseEstimator]]:
    from sklearn.utils import all_estimators

    return dict(all_estimators(type_filter=_KINDS[task]))


@cache
def _table(task: Task) -> dict[str, type[BaseEstimator]]:
    """Those that can teach, and can be made without another estimator."""
    return {
        name: estimator
        for name, estimator in _every(task).items()
        if (task == "regression" or hasattr(estimator, "predict_proba"))
        and all(
            parameter.default is not Parameter.empty or parameter.kind == Parameter.VAR_KEYWORD
            for parameter in signature(estimator).parameters.values()
        )
    }


def _build(name: str, params: Mapping[str, Any], task: Task) -> BaseEstimator:
    table = _table(task)
    if name not in table:
        raise ConfigError(_unknown(name, task))
    estimator = table[name]()
    known = sorted(estimator.get_params(deep=False))
    # what another teacher's section leaves at null says nothing about this one
    params = {key: value for key, value in params.items() if value is not None or key in known}
    for key in params:
        if key not in known:
            raise ConfigError(
                f"{name} has no parameter {key!r}.{did_you_mean(key, known)} It has: {', '.join(known)}"
            )
    if "random_state" in params:
        raise ConfigError(f"{name}: random_state is set from teacher.seed: leave it out of teacher.params")
    estimator.set_params(**params)
    try:
        estimator._validate_params()
    except ValueError as ex:
        raise ConfigError(first_line(ex)) from None
    if task == "classification" and not hasattr(estimator, "predict_proba"):
        raise ConfigError(
            f"{name} with these parameters gives no probabilities (predict_proba), and a teacher needs them."
            f"{_PROBABILISTIC.get(name, ' Choose another classifier')}"
        )
    return estimator


#: what gives those classifiers probabilities that have none by default
_PROBABILISTIC = {
    "SGDClassifier": " Set teacher.params.loss=log_loss",
    "SVC": " Set teacher.params.probability=true",
    "NuSVC": " Set teacher.params.probability=true",
}


def _unknown(name: str, task: Task) -> str:
    kind = _KINDS[task]
    if name in _every(task):
        return (
            f"{name} cannot be a teacher: it gives no probabilities (predict_proba), or is made of other estimators."
            " Choose another one, such as LogisticRegression or RandomForestClassifier"
        )
    return f"scikit-learn has no {kind} {name!r}.{did_you_mean(name, _table(task))} Expected a class name"


def _pixels(images: Tensor) -> np.ndarray:
    """Images `[N, C, H, W]` as `[N, C * H * W]` float32: uint8 in [0, 1], other numbers as they are."""
    numbers = images.flatten(1).cpu().numpy().astype(np.float32)
    return numbers / 255 if images.dtype == torch.uint8 else numbers


def _finite(estimator: BaseEstimator, outputs: np.ndarray) -> Tensor:
    if not np.isfinite(outputs).all():
        raise ModelError(
            f"{type(estimator).__name__} gave values that are not finite numbers:"
            " choose other teacher.params, or another estimator"
        )
    return torch.from_numpy(np.asarray(outputs))


def _skops() -> Any:
    return imported("skops.io", "skops", "keeping scikit-learn estimators")
