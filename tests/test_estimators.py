"""scikit-learn's estimators as teachers: by name, checked early, the same for a seed, kept without pickle."""

import json
import logging
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from kdistill import estimators
from kdistill.errors import ConfigError, ModelError
from kdistill.estimators import (
    check_estimator,
    estimator_logits,
    estimator_names,
    estimator_values,
    fit_estimator,
    load_estimator,
    save_estimator,
)

#: classifiers that people use as teachers, with parameters that make them quick
CLASSIFIERS = {
    "LogisticRegression": {"C": 0.1},
    "RandomForestClassifier": {"n_estimators": 20},
    "ExtraTreesClassifier": {"n_estimators": 20},
    "HistGradientBoostingClassifier": {"max_iter": 10},
    "GradientBoostingClassifier": {"n_estimators": 3},
    "KNeighborsClassifier": {"n_neighbors": 3},
    "GaussianNB": {},
    "MLPClassifier": {"hidden_layer_sizes": [16], "max_iter": 5},
    "CalibratedClassifierCV": {},
    "SGDClassifier": {"loss": "log_loss"},
    "SVC": {"probability": True},
}


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits as uint8 `[1797, 1, 8, 8]`, and labels."""
    data = load_digits()
    pixels = np.rint(data.images * 255 / 16).astype(np.uint8)
    return torch.from_numpy(pixels)[:, None], torch.from_numpy(data.target).long()


def parts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = digits()
    return images[:500], labels[:500], images[500:700], labels[500:700]


# --- names and parameters ---


def test_names_are_those_that_can_be_teachers() -> None:
    """By name and plain parameters, with probabilities: no ensembles of named others, no LinearSVC."""
    names = estimator_names("classification")
    assert set(CLASSIFIERS) <= set(names)
    assert not {"LinearSVC", "Perceptron", "VotingClassifier", "Ridge"} & set(names)
    assert {"Ridge", "RandomForestRegressor", "KNeighborsRegressor"} <= set(estimator_names("regression"))
    for name, params in CLASSIFIERS.items():
        check_estimator(name, params)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "RandomForestClasifier",
            {},
            r"scikit-learn has no classifier 'RandomForestClasifier'\. Did you mean 'Rand",
        ),
        ("Ridge", {}, r"^scikit-learn has no classifier 'Ridge'\."),
        ("os.system", {}, r"^scikit-learn has no classifier 'os\.system'\. Expected a class name$"),
        (
            "LinearSVC",
            {},
            r"^LinearSVC cannot be a teacher: it gives no probabilities \(predict_proba\), or is made",
        ),
        (
            "VotingClassifier",
            {},
            r"^VotingClassifier cannot be a teacher: .* or is made of other estimators\. Choose",
        ),
        (
            "SVC",
            {},
            r"^SVC with these parameters gives no prob.* needs them\. Set teacher\.params\.probability=true$",
        ),
        ("SGDClassifier", {}, r"Set teacher\.params\.loss=log_loss$"),
        (
            "GaussianNB",
            {"smoothing": 1},
            r"^GaussianNB has no parameter 'smoothing'\. Did you mean 'var_smoothing'\? It has: priors, var_smoothing$",
        ),
        (
            "LogisticRegression",
            {"C": -1.0},
            r"^The 'C' parameter of LogisticRegression must be a float in .* Got -1\.0",
        ),
        (
            "RandomForestClassifier",
            {"random_state": 3},
            r"random_state is set from teacher\.seed: leave it out of",
        ),
    ],
)
def test_mistakes_are_found_before_any_work(name: str, params: dict, message: str) -> None:
    """What is wrong, the nearest match, what helps: in one line."""
    with pytest.raises(ConfigError, match=message) as error:
        check_estimator(name, params)
    assert "\n" not in str(error.value)


def test_regressors_are_checked_likewise() -> None:
    """The task says which table a name is looked up in."""
    check_estimator("Ridge", {"alpha": 2.0}, task="regression")
    with pytest.raises(ConfigError, match=r"^scikit-learn has no regressor 'Rigde'\. Did you mean 'Ridge'"):
        check_estimator("Rigde", {}, task="regression")


# --- fitting ---


def test_a_seed_gives_the_same_teacher_again_and_another_one_another() -> None:
    """Fitted twice with one seed, the logits are the same bits."""
    images, labels, unseen, _ = parts()
    logits = [
        estimator_logits(
            fit_estimator("RandomForestClassifier", {"n_estimators": 10}, seed, images, labels), unseen, 10
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_pixels_are_seen_flat_and_in_0_to_1() -> None:
    """What scikit-learn's own calls give for pixels / 255."""
    images, labels, unseen, _ = parts()
    estimator = fit_estimator("RandomForestClassifier", {"n_estimators": 10}, 0, images, labels)
    own = RandomForestClassifier(n_estimators=10, random_state=0)
    own.fit(images.flatten(1).numpy().astype(np.float32) / 255, labels.numpy())
    expected = own.predict_proba(unseen.flatten(1).numpy().astype(np.float32) / 255)

    probabilities = estimator_logits(estimator, unseen, 10).softmax(1)

    np.testing.assert_allclose(probabilities.numpy(), expected, atol=2e-6)


def test_numbers_are_seen_as_they_are() -> None:
    """Floats are no pixels: what scikit-learn's Ridge answers for the diabetes data, R2 0.38 and not -0.02."""
    numbers, target = load_diabetes(return_X_y=True)
    numbers = numbers.astype(np.float32)
    inputs, values = torch.from_numpy(numbers)[:, :, None, None], torch.from_numpy(target)[:, None].float()
    teacher = fit_estimator("Ridge", {}, 0, inputs[:300], values[:300], task="regression")
    answers = estimator_values(teacher, inputs[300:])[:, 0].numpy()
    own = Ridge().fit(numbers[:300], target[:300].astype(np.float32)).predict(numbers[300:])

    np.testing.assert_allclose(answers, own, rtol=1e-5)
    truth = target[300:]
    assert 1 - ((truth - answers) ** 2).sum() / ((truth - truth.mean()) ** 2).sum() > 0.35


def test_unlabelled_samples_are_left_out() -> None:
    """-1 is no class."""
    images, labels, unseen, _ = parts()
    some = labels.clone()
    some[100:] = -1
    with_unlabelled = fit_estimator("GaussianNB", {}, 0, images, some)
    without = fit_estimator("GaussianNB", {}, 0, images[:100], labels[:100])

    assert torch.equal(estimator_logits(with_unlabelled, unseen, 10), estimator_logits(without, unseen, 10))


def test_a_class_never_seen_gets_the_floor() -> None:
    """Columns stand for classes 0..K-1, whichever of them were there: 1e-7 for the others."""
    images, labels, unseen, _ = parts()
    odd = labels % 2 == 1
    estimator = fit_estimator("GaussianNB", {}, 0, images[odd], labels[odd])
    logits = estimator_logits(estimator, unseen, 12)
    expected = torch.from_numpy(estimator.predict_proba(unseen.flatten(1).numpy().astype(np.float32) / 255))

    assert logits.shape == (200, 12)
    assert logits.dtype == torch.float32
    absent = logits[:, [0, 2, 4, 6, 8, 10, 11]]
    assert absent.unique().tolist() == pytest.approx([np.log(1e-7)])
    torch.testing.assert_close(logits[:, 1:10:2].softmax(1), expected.float(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["LogisticRegression", "RandomForestClassifier", "KNeighborsClassifier"])
def test_teachers_know_digits(name: str) -> None:
    """The largest logit is the digit, for most."""
    images, labels, unseen, truth = parts()
    estimator = fit_estimator(name, CLASSIFIERS[name], 0, images, labels)

    assert (estimator_logits(estimator, unseen, 10).argmax(1) == truth).float().mean() > 0.7


def test_warnings_are_logged_once_and_short(caplog: pytest.LogCaptureFixture) -> None:
    """A fit that did not converge says so in one line, and is used."""
    images, labels, _, _ = parts()
    with caplog.at_level(logging.WARNING, "kdistill"):
        fit_estimator("LogisticRegression", {"max_iter": 1}, 0, images, labels)

    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("LogisticRegression: lbfgs failed to converge after 1 iteration")
    assert "\n" not in caplog.messages[0]


def test_a_fit_that_fails_is_a_clear_error() -> None:
    """scikit-learn's own reason, after whose it is."""
    images = parts()[0]
    with pytest.raises(ConfigError, match=r"^LogisticRegression cannot be fitted to 50 samples: .*2 classes"):
        fit_estimator("LogisticRegression", {}, 0, images[:50], torch.zeros(50, dtype=torch.int64))


# --- regression ---


def test_regression_of_several_values() -> None:
    """Exact on a linear target; the shape is [N, D], for D = 1 too; samples with unknown values are left out."""
    images = parts()[0]
    weights = torch.tensor([[1.0, -2.0]]).expand(64, 2)
    values = images.flatten(1).float() / 255 @ weights
    some = values.clone()
    some[3, 1] = torch.nan
    both = fit_estimator("LinearRegression", {}, 0, images, some, task="regression")
    one = fit_estimator("LinearRegression", {}, 0, images, some[:, :1], task="regression")

    torch.testing.assert_close(estimator_values(both, images), values, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(estimator_values(one, images), values[:, :1], atol=1e-3, rtol=1e-4)


def test_a_regressor_of_one_output_is_fitted_for_each_value() -> None:
    """The column of a pair is what is fitted for it alone."""
    images, labels, unseen, _ = parts()
    values = torch.stack([labels.float(), (labels % 2).float()], dim=1)
    params = {"max_iter": 5}
    pair = fit_estimator("HistGradientBoostingRegressor", params, 0, images, values, task="regression")
    second = fit_estimator(
        "HistGradientBoostingRegressor", params, 0, images, values[:, 1], task="regression"
    )

    assert estimator_values(pair, unseen).shape == (200, 2)
    assert torch.equal(estimator_values(pair, unseen)[:, 1:], estimator_values(second, unseen))


@pytest.mark.filterwarnings("ignore:One or more samples have no neighbors")
def test_values_that_are_no_numbers_are_an_error() -> None:
    """A regressor that has no neighbours within its radius answers nan."""
    images, labels, unseen, _ = parts()
    far = fit_estimator(
        "RadiusNeighborsRegressor", {"radius": 0.01}, 0, images, labels.float(), task="regression"
    )
    with pytest.raises(
        ModelError, match=r"^RadiusNeighborsRegressor gave values that are not finite numbers: choose"
    ):
        estimator_values(far, unseen)


# --- files ---


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_saved_classifier_is_the_same(name: str, tmp_path: Path) -> None:
    """Bit for bit, from a file that holds no pickle."""
    pytest.importorskip("skops")
    images, labels, unseen, _ = parts()
    estimator = fit_estimator(name, CLASSIFIERS[name], 0, images, labels)
    save_estimator(estimator, tmp_path / "teacher.skops")
    again = load_estimator(tmp_path / "teacher.skops")
    kinds = Counter(Path(entry).suffix for entry in zipfile.ZipFile(tmp_path / "teacher.skops").namelist())

    assert type(again) is type(estimator)
    assert torch.equal(estimator_logits(again, unseen, 10), estimator_logits(estimator, unseen, 10))
    assert set(kinds) <= {".json", ".npy", ".npz"}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("KNeighborsClassifier", {"algorithm": "kd_tree", "metric": "chebyshev"}),
        ("KNeighborsClassifier", {"algorithm": "ball_tree", "metric": "canberra"}),
        ("KNeighborsClassifier", {"algorithm": "brute"}),
        ("GaussianProcessClassifier", {}),
        ("MLPClassifier", {"solver": "sgd", "max_iter": 2}),
    ],
)
def test_parameters_that_bring_other_parts_are_kept_too(name: str, params: dict, tmp_path: Path) -> None:
    """Trees, distances, kernels, optimizers."""
    pytest.importorskip("skops")
    images, labels, unseen, _ = parts()
    estimator = fit_estimator(name, params, 0, images[:80], labels[:80])
    save_estimator(estimator, tmp_path / "teacher.skops")
    again = load_estimator(tmp_path / "teacher.skops")

    assert torch.equal(estimator_logits(again, unseen, 10), estimator_logits(estimator, unseen, 10))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("Ridge", {}),
        ("HistGradientBoostingRegressor", {"loss": "gamma", "max_iter": 3}),
        ("GradientBoostingRegressor", {"loss": "huber", "n_estimators": 3}),
        ("TweedieRegressor", {"power": 1.5}),
        ("SVR", {}),
    ],
)
def test_a_saved_regressor_of_one_value_is_the_same(name: str, params: dict, tmp_path: Path) -> None:
    """With the parts of its loss."""
    pytest.importorskip("skops")
    images, labels, unseen, _ = parts()
    values = labels[:200, None].float() + 1
    estimator = fit_estimator(name, params, 0, images[:200], values, task="regression")
    save_estimator(estimator, tmp_path / "teacher.skops")
    again = load_estimator(tmp_path / "teacher.skops")

    assert torch.equal(estimator_values(again, unseen), estimator_values(estimator, unseen))


def test_a_saved_regressor_is_the_same(tmp_path: Path) -> None:
    """Also where one stands for each value."""
    pytest.importorskip("skops")
    images, labels, unseen, _ = parts()
    values = torch.stack([labels.float(), (labels % 2).float()], dim=1)
    estimator = fit_estimator(
        "GradientBoostingRegressor", {"n_estimators": 3}, 0, images, values, task="regression"
    )
    save_estimator(estimator, tmp_path / "teacher.skops")

    again = load_estimator(tmp_path / "teacher.skops")

    assert torch.equal(estimator_values(again, unseen), estimator_values(estimator, unseen))


def forge(path: Path, made_by: dict[str, str], content: object) -> None:
    """Write a file whose top node makes something of `content`, as `made_by` says."""
    skops_io = pytest.importorskip("skops.io")
    skops_io.dump(content, path)
    with zipfile.ZipFile(path) as file:
        files = {name: file.read(name) for name in file.namelist()}
    schema = json.loads(files["schema.json"])
    top = {key: schema.pop(key) for key in ("protocol", "_skops_version")}
    files["schema.json"] = json.dumps({**made_by, "content": schema, "__id__": 1, **top}).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)


@pytest.mark.parametrize("listed", [False, True])
def test_a_function_in_a_module_of_parts_is_not_run(
    listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dataclass` runs the names of fields; a module of scikit-learn's losses imports it. Even a slip in the list
    of parts would not let it in: it is no class, and of another module."""
    skops_io = pytest.importorskip("skops.io")
    if listed:
        monkeypatch.setitem(estimators._PARTS, "sklearn._loss.link", "Interval dataclass")
    ran, path = tmp_path / "ran", tmp_path / "teacher.skops"
    victim = LinearRegression()
    code = f"b:''' and __import__('pathlib').Path({str(ran)!r}).touch()"
    victim.__dict__ |= {"__annotations__": {"a:'''": "int", code: "int"}, "__mro__": ["x"]}
    victim.__dict__ |= {"__name__": "X", "__qualname__": "X"}
    function = {"__class__": "dataclass", "__module__": "sklearn._loss.link"}
    forge(path, {**function, "__loader__": "ConstructorFromReduceNode"}, (victim,))

    with pytest.raises(ModelError, match=r"holds sklearn\._loss\.link\.dataclass, which no estimator"):
        load_estimator(path)
    assert not ran.exists()

    with pytest.raises(TypeError):  # the file is as bad as it should be
        skops_io.load(path, trusted=["sklearn._loss.link.dataclass"])
    assert ran.exists()


@pytest.mark.parametrize(
    "name",
    [
        "sklearn._loss.link.namedtuple",
        "sklearn.gaussian_process.kernels.clone",
        "sklearn.gaussian_process.kernels.signature",
        "sklearn.metrics._dist_metrics.newObj",
        "sklearn.metrics._dist_metrics.PyFuncDistance64",
        "sklearn.metrics._dist_metrics.csr_matrix",
        "sklearn.tree._tree.Treehouse",
        "sklearn.tree._tree.Tree.predict",
        "sklearn.tree._tree.",
        "Tree",
    ],
)
def test_names_beside_the_parts_are_refused(name: str, tmp_path: Path) -> None:
    """Only equal names count: no imported function, no class beside, no prefix, no method."""
    module, _, made = name.rpartition(".")
    path = tmp_path / "teacher.skops"
    forge(path, {"__class__": made, "__module__": module, "__loader__": "ConstructorFromReduceNode"}, ())
    with pytest.raises(
        ModelError, match=r"which no estimator of scikit-learn is made of: refused to load it$"
    ):
        load_estimator(path)


def test_even_a_part_is_not_called_with_arguments_of_the_file(tmp_path: Path) -> None:
    """Parts are filled with their state; ways of making things that no saved estimator uses are refused."""
    skops_io = pytest.importorskip("skops.io")
    path = tmp_path / "teacher.skops"
    part = {"__class__": "KDTree", "__module__": "sklearn.neighbors._kd_tree"}
    forge(path, {**part, "__loader__": "ConstructorFromReduceNode"}, ([[0.0], [1.0]],))
    with pytest.raises(ModelError, match="holds ConstructorFromReduceNode, which no estimator"):
        load_estimator(path)
    estimator = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    estimator.predict = np.exp  # skops trusts numpy's functions of arrays
    skops_io.dump(estimator, path)
    with pytest.raises(ModelError, match="holds FunctionNode, which no estimator"):
        load_estimator(path)


class Malicious:
    """Not a part of any estimator; counts how often it was made."""

    made = 0

    def __setstate__(self, state: dict) -> None:
        Malicious.made += 1


def test_other_types_are_refused_unread(tmp_path: Path) -> None:
    """A class of somebody else's, even inside an estimator, is never made; nor is a function of numpy's taken."""
    skops_io = pytest.importorskip("skops.io")
    path = tmp_path / "teacher.skops"
    estimator = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    for foreign, name in ((Malicious(), "Malicious"), (np.testing.assert_equal, "numpy.testing")):
        estimator.extra_ = foreign
        skops_io.dump(estimator, path)
        with pytest.raises(
            ModelError, match=rf"{name}.*, which no estimator of scikit-learn is made of: refused to"
        ):
            load_estimator(path)
    assert Malicious.made == 0


def test_other_content_is_an_error(tmp_path: Path) -> None:
    """A scaler, a dictionary, half a file, text: none is a teacher."""
    skops_io = pytest.importorskip("skops.io")
    path = tmp_path / "teacher.skops"
    for other in (StandardScaler(), {"a": 1}):
        skops_io.dump(other, path)
        with pytest.raises(
            ModelError, match=f"holds a {type(other).__name__}: expected a classifier or regressor$"
        ):
            load_estimator(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"text"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read as an estimator: "):
            load_estimator(path)


def test_what_could_not_be_loaded_is_not_saved_silently(tmp_path: Path) -> None:
    """Saving reads back: a teacher that took hours fails at once, not at its first use."""
    pytest.importorskip("skops")
    estimator = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    estimator.extra_ = Malicious()
    with pytest.raises(ModelError, match="Malicious, which no estimator of scikit-learn is made of"):
        save_estimator(estimator, tmp_path / "teacher.skops")


def test_without_skops_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Saving and loading say what to install."""
    monkeypatch.setitem(__import__("sys").modules, "skops", None)
    monkeypatch.setitem(__import__("sys").modules, "skops.io", None)
    message = r"^keeping scikit-learn estimators needs skops: pip install 'kdistill\[skops\]'$"
    with pytest.raises(ConfigError, match=message):
        load_estimator(tmp_path / "teacher.skops")
    with pytest.raises(ConfigError, match=message):
        save_estimator(LinearRegression(), tmp_path / "teacher.skops")
