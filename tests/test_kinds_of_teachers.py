"""All kinds of teachers at work: ensembles, scikit-learn's estimators, files of outputs, other networks' folders."""

import csv
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from kdistill import cli, distill, evaluate, load_config, load_network, make_soft_targets, run, train_teacher
from kdistill.artifacts import Artifact, ArtifactStore
from kdistill.config.schema import Config, Stage
from kdistill.errors import ConfigError, DamagedArtifact, DataError, MissingArtifact, ModelError
from kdistill.files import sha256_of
from kdistill.models import save_weights
from kdistill.stages import check_before, run_stage
from kdistill.stages.job import Job
from kdistill.stages.signals import teacher_signal

Tiny = Callable[..., Config]

#: an ensemble of two: a ResNet-8 of width 8 like the tiny pipeline's teacher, of another seed, and a CNN
TWO = (
    "teacher=ensemble",
    "~teacher.params.members",
    "teacher.params.members={one: {name: resnet8, params: {width: 8}, seed: 1}, two: {name: cnn}}",
)
#: digits, a student that learns them in some seconds
DIGITS = (
    "dataset=digits",
    "dataset.train_samples=400",
    "dataset.augment.crop=0",
    "student=mlp",
    "student.epochs=8",
    "student.optim=adamw",
    "student.optim.lr=0.01",
    "student.batch_size=32",
    "finetune=none",
    "device=cpu",
)


def two(tiny: Tiny, *overrides: str) -> Config:
    """The tiny pipeline with the ensemble: its teacher's own `params.width` gives way."""
    return tiny(*TWO, "~teacher.params.width", *overrides)


@pytest.fixture
def small(tmp_path: Path) -> Tiny:
    """Composes a config on digits."""
    return lambda *overrides: load_config(*DIGITS, f"runs={tmp_path / 'runs'}", *overrides)


def at_stage(config: Config, stage: Stage) -> Config:
    return config.model_copy(update={"stage": stage})


def made(config: Config, kind: str) -> list[str]:
    return sorted(p.name for p in (Path(config.runs) / "artifacts" / kind).glob("*") if p.is_dir())


def train_all(config: Config) -> None:
    """`kdistill train-teacher`: every member."""
    run_stage(at_stage(config, "train-teacher"))


def parents_of(job: Job) -> dict[str, Artifact]:
    """What the student's loss is told is read from these."""
    return job.student_parents()


def first_batch(job: Job, count: int = 12):
    (batch,) = job.transfer_set.batches(torch.arange(count), count)
    return batch


def rebuild(folder: Path) -> None:
    """What a rebuild with other library versions does: other weights, and a manifest that fits them."""
    network = load_network(folder)
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    path = folder / "model.safetensors"
    save_weights(network.net, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    manifest["files"][path.name] |= entry
    manifest["digest"] = entry["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


# --- ensembles ---


def test_an_ensemble_s_members_are_teachers_like_others(tiny: Tiny) -> None:
    """Each member is trained once; one that equals a plain teacher is that artifact; nothing else is made."""
    plain = train_teacher(tiny("teacher.seed=1"))
    train_all(two(tiny))
    after = made(two(tiny), "teacher")
    train_all(two(tiny))

    assert len(after) == 2
    assert plain.folder.name in after
    assert made(two(tiny), "teacher") == after


def test_soft_targets_are_stored_by_member(tiny: Tiny) -> None:
    """Another ensemble, and a student of one member alone, read those that are there."""
    train_all(two(tiny))
    student = distill(two(tiny))
    stored = made(two(tiny), "soft-targets")
    distill(two(tiny, "teacher.params.average=logits"))
    distill(two(tiny, "~teacher.params.members.two"))
    distill(tiny("teacher.seed=1"))

    assert len(stored) == 2
    assert made(two(tiny), "soft-targets") == stored
    assert len(made(two(tiny), "student")) == 4
    assert student.parents.keys() == {"teacher one", "teacher two", "soft-targets one", "soft-targets two"}
    assert {pin["kind"] for pin in student.parents.values()} == {"teacher", "soft-targets"}


@pytest.mark.parametrize(
    ("settings", "weights", "of"),
    [
        ((), (0.5, 0.5), "probabilities"),
        (("teacher.params.average=logits",), (0.5, 0.5), "logits"),
        (("teacher.params.weights={one: 3, two: 1}",), (0.75, 0.25), "probabilities"),
        (
            ("teacher.params.weights={two: 1, one: 3}", "teacher.params.average=logits"),
            (0.75, 0.25),
            "logits",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["stored", "live"])
def test_what_the_student_is_told_by_hand(
    tiny: Tiny, settings: tuple[str, ...], weights: tuple[float, float], of: str, mode: str
) -> None:
    """softmax(z / T) is the weighted mean of the members' probabilities at T, or z that of their logits."""
    T = 3.0
    config = two(tiny, *settings, f"soft_targets={mode}", "soft_targets.dtype=float32")
    train_all(config)
    distill(config)
    job = Job.open(config)
    signal = teacher_signal(job, parents_of(job))
    assert signal is not None
    raw = first_batch(job)
    view = 1
    images = job.student_views(raw.images, raw.indices, view)
    told = signal(type(raw)(images, raw.labels, raw.indices), view, T).logits
    with torch.no_grad():
        one, two_ = (
            load_network(job.teachers[name].require_teacher().folder)(images).double()
            for name in ("one", "two")
        )

    if of == "logits":
        torch.testing.assert_close(told.double(), weights[0] * one + weights[1] * two_, rtol=1e-4, atol=1e-4)
    else:
        expected = weights[0] * (one / T).exp() / (one / T).exp().sum(1, keepdim=True)
        expected += weights[1] * (two_ / T).exp() / (two_ / T).exp().sum(1, keepdim=True)
        found = (told.double() / T).softmax(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def weights_of(config: Config) -> dict[str, Tensor]:
    return load_network(distill(config).folder).state_dict()


def test_an_ensemble_stored_in_float32_equals_live(tiny: Tiny) -> None:
    """The student has the same weights, bit for bit, whichever way its members' answers come."""
    config = two(tiny, "soft_targets.dtype=float32", "student.batch_size=20")
    train_all(config)
    live = two(tiny, "soft_targets.dtype=float32", "student.batch_size=20", "soft_targets=live")
    a, b = weights_of(config), weights_of(live)

    assert distill(config).folder != distill(live).folder
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_members_see_images_in_their_own_way(tiny: Tiny) -> None:
    """Other sizes, grey and normalisation for each; the student's view stays its own."""
    colour = tiny(
        "teacher=ensemble",
        "~teacher.params.width",
        "~teacher.params.members",
        "dataset.channels=3",
        "teacher.params.members={small: {name: cnn, input: {size: 6, grey: true}},"
        " plain: {name: cnn},"
        " own: {name: cnn, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}",
    )
    scores = run(colour)
    folders = {name: job.require_teacher().folder for name, job in Job.open(colour).teachers.items()}
    about = {name: json.loads((folder / "model.json").read_text()) for name, folder in folders.items()}

    assert list(scores) == [
        "teacher own",
        "teacher plain",
        "teacher small",
        "teacher",
        "student",
        "fine-tuned",
    ]
    assert (about["small"]["channels"], about["small"]["image_size"]) == (1, [6, 6])
    assert (about["own"]["channels"], about["own"]["image_size"]) == (3, [8, 8])
    assert about["own"]["mean"] == [0.5, 0.5, 0.5]
    assert about["plain"]["mean"] != [0.5, 0.5, 0.5]
    assert sorted(len(np.load(f / "logits.npy")) for f in _folders(colour, "soft-targets")) == [3, 3, 3]


def _folders(config: Config, kind: str) -> list[Path]:
    return sorted(p for p in (Path(config.runs) / "artifacts" / kind).glob("*") if p.is_dir())


def test_the_table_shows_each_member_and_the_ensemble(tiny: Tiny) -> None:
    """Members' scores are those they have alone; the ensemble's parameters and time are their sums."""
    config = two(tiny)
    scores = run(config)
    alone = tiny("teacher.seed=1")
    distill(alone)
    single = evaluate(alone)["teacher"]
    table = run_stage(at_stage(config, "eval")).tables[0]

    assert list(scores) == ["teacher one", "teacher two", "teacher", "student", "fine-tuned"]
    compared = ("agreement", "kl")  # with the ensemble
    assert {k: v for k, v in scores["teacher one"].items() if k not in compared} == {
        k: v for k, v in single.items() if k not in compared
    }
    for what in ("parameters", "bytes"):
        assert scores["teacher"][what] == scores["teacher one"][what] + scores["teacher two"][what]
    assert 0 <= scores["student"]["agreement"] <= 1
    assert [row[0] for row in table.rows] == [
        "teacher one",
        "teacher two",
        "teacher ensemble",
        "student cnn, distilled",
        "student cnn, fine-tuned",
    ]


def test_a_missing_member_names_the_command(tiny: Tiny) -> None:
    """distill stops before any work, names the member's network, and the command trains what is missing."""
    config = at_stage(two(tiny), "distill")
    train_teacher(tiny("teacher.seed=1"))  # member one
    words = ["teacher=ensemble", "student.epochs=3", "loss.T=2"]
    expected = "the teacher cnn is not trained yet. Make it with:\n  kdistill train-teacher teacher=ensemble"

    for attempt in (lambda: check_before([config], [words]), lambda: run_stage(config, words)):
        with pytest.raises(MissingArtifact) as caught:
            attempt()
        assert str(caught.value) == expected
    assert made(config, "soft-targets") == []


def test_a_rebuilt_member_makes_the_student_stale(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """The member's soft targets and the student are named and made anew; the other member's stay."""
    config = two(tiny)
    run(config)
    before = distill(config).manifest["parents"]
    rebuild(Job.open(config).teachers["two"].require_teacher().folder)
    after = distill(config).manifest["parents"]

    assert "is stale: it was made from another build of teacher two" in caplog.text
    assert {role for role in before if before[role] != after[role]} == {"teacher two", "soft-targets two"}


def test_artifacts_know_an_ensemble_s_student(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """list shows it, rm of a member takes soft targets and students along, gc finds it stale."""
    config = two(tiny)
    run(config)
    runs, jobs = f"runs={config.runs}", Job.open(config).teachers
    folder = jobs["two"].require_teacher().folder

    assert cli.main(["artifacts", runs]) == 0
    assert "stale" not in capsys.readouterr().out
    rebuild(folder)
    assert cli.main(["artifacts", runs]) == 0
    # the member's soft targets, the student, the fine-tuned student; what these, the member and the ensemble predict
    assert capsys.readouterr().out.count("stale") == 7

    assert cli.main(["artifacts", "rm", folder.name.rpartition("-")[2], "--yes", runs]) == 0
    assert "removed 8 folders" in capsys.readouterr().out
    store = ArtifactStore(Path(config.runs) / "artifacts")
    assert [a.kind for a in store.all()] == ["teacher", "soft-targets", "predictions"]


def test_an_ensemble_may_hold_other_kinds(small: Tiny) -> None:
    """A forest and a network: the student learns from both; a folder among them is not trained again."""
    pytest.importorskip("skops")
    forest = "{name: sklearn/RandomForestClassifier, params: {n_estimators: 5}}"
    members = "teacher.params.members={forest: " + forest + ", net: {name: cnn, epochs: 2}}"
    config = small("teacher=ensemble", "~teacher.params.members", members, "student.epochs=1")
    scores = run(config)
    net = Job.open(config).teachers["net"].require_teacher().folder
    folder = f"teacher.params.members={{forest: {forest}, net: {{name: folder, weights: {net}}}}}"
    again = small("teacher=ensemble", "~teacher.params.members", folder, "student.epochs=1")
    train_all(again)

    assert list(scores) == ["teacher forest", "teacher net", "teacher", "student"]
    assert run(again)["teacher"]["top1"] == scores["teacher"]["top1"]
    assert len(made(again, "teacher")) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "teacher.params.members={x: {seed: 3}}",
            r"teacher.params.members.x.name=null: name a network or another teacher, for example"
            r" \{x: \{name: resnet20, seed: 1\}\}",
        ),
        ("teacher.params.members={x: {name: ensemble}}", "an ensemble has no ensembles as members"),
        ("teacher.params.members={x: {name: resnet21}}", "teacher.params.members.x: no model 'resnet21'"),
        (
            "teacher.params.members={x: {name: cnn, epoch: 3}}",
            "teacher.params.members.x: no setting 'epoch'. Did you mean 'epochs'",
        ),
        (
            "teacher.params.members={x: {name: cnn, optim: {lr: -1}}}",
            "teacher.params.members.x.optim.lr=-1: must be greater than 0",
        ),
        ("teacher.params.weights={one: 1}", r"weights name one, but the members are one, two$"),
        ("teacher.params.weights={one: 1, two: 0}", "teacher.params.weights.two=0: must be greater than 0"),
        ("teacher.params.average=odds", "teacher.params.average=odds: must be 'probabilities' or 'logits'"),
        ("teacher.weights=x.pt", r"ensemble takes no weights \(got weights=x.pt\)"),
    ],
)
def test_mistakes_in_an_ensemble(tiny: Tiny, override: str, message: str) -> None:
    """A member without a network, unknown settings, weights that do not fit: one line, before any work."""
    with pytest.raises(ConfigError, match=message) as caught:
        two(tiny, override)
    assert "\n" not in str(caught.value)


# --- scikit-learn's estimators ---


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


# --- files of outputs ---


def outputs_for(config: Config) -> tuple[list[str], np.ndarray]:
    """Sample ids of what a student learns from, and logits that put 4 on the label and noise elsewhere."""
    job = Job.open(config)
    labels = job.transfer_set.labels.numpy()
    logits = np.random.default_rng(0).normal(size=(len(labels), len(job.data.classes))).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 4
    return list(job.transfer_set.ids), logits


def write_outputs(path: Path, ids: list[str], values: np.ndarray, classes: list[str]) -> Path:
    match path.suffix:
        case ".csv":
            with path.open("w", newline="") as file:
                rows = [[name, *map(float, row)] for name, row in zip(ids, values, strict=True)]
                csv.writer(file).writerows([["id", *classes], *rows])
        case ".npz":
            np.savez(path, values=values, ids=np.array(ids))
        case ".npy":
            whole = np.zeros((max(map(int, ids)) + 1, values.shape[1]), np.float32)
            whole[np.array(ids, dtype=int)] = values
            np.save(path, whole)
        case ".safetensors":
            numbers = torch.tensor([int(name) for name in ids])
            save_file({"values": torch.from_numpy(values), "ids": numbers}, path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".npy", ".safetensors"])
def test_a_file_of_outputs_teaches(small: Tiny, tmp_path: Path, suffix: str) -> None:
    """Rows are found by id, in any order: the stored row of each sample is its own; digits' ids are positions."""
    ids, logits = outputs_for(small())
    order = np.random.default_rng(1).permutation(len(ids))
    path = write_outputs(
        tmp_path / f"outputs{suffix}", [ids[i] for i in order], logits[order], [str(k) for k in range(10)]
    )
    config = small("teacher=file", f"teacher.weights={path}", "soft_targets.dtype=float32", "loss.alpha=0")
    scores = run(config)
    stored = np.load(make_soft_targets(config).folder / "logits.npy")
    student = distill(config)

    assert stored.shape == (1, len(ids), 10)
    np.testing.assert_array_equal(stored[0], logits)
    assert list(scores) == ["student"]  # nothing is known of the teacher on the test split
    assert scores["student"]["top1"] > 0.5
    assert "agreement" not in scores["student"]
    assert student.parents.keys() == {"soft-targets"}
    assert made(config, "teacher") == []


def test_ids_of_digits_are_positions_in_scikit_learn_s_data(small: Tiny) -> None:
    """Row i of a file belongs to image i of sklearn.datasets.load_digits()."""
    from sklearn.datasets import load_digits

    job = Job.open(small())
    batch = first_batch(job, 5)
    images = np.rint(load_digits().images * 255 / 16)

    for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
        assert np.array_equal(image[0].numpy(), images[int(job.transfer_set.ids[index])])


def write_images(
    folder: Path, classes: Mapping[str, int], size: int = 8, channels: int = 1, n: int = 24
) -> Path:
    """A folder per class; an image of class k has grey level k in a noisy square. Deterministic."""
    for name, level in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            rng = np.random.default_rng([level, i])
            pixels = rng.integers(0, 60, (size, size, channels)) + level
            pixels[: size // 2] = pixels[: size // 2] // (1 + level % 3)
            array = pixels.clip(0, 255).astype(np.uint8)
            Image.fromarray(array[:, :, 0] if channels == 1 else array).save(folder / name / f"{i:02d}.png")
    return folder


FOLDER = (
    "dataset=image_folder",
    "dataset.image_size=8",
    "dataset.channels=1",
    "dataset.augment.crop=1",
    "dataset.augment.flip=true",
    "dataset.validation=0.2",
    "dataset.test=0.25",
)


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Config]:
    """Composes a small pipeline for an image folder: (root, overrides) -> config."""
    from tests.conftest import TINY

    def compose(root: Path, *overrides: str) -> Config:
        dropped = ("dataset", "teacher.params") if "teacher=f" in " ".join(overrides) else ("dataset",)
        common = [word for word in TINY if not word.startswith(dropped)]
        return load_config(*FOLDER, *common, f"dataset.root={root}", f"runs={tmp_path / 'runs'}", *overrides)

    return compose


def test_ids_of_an_image_folder_are_paths(images: Tiny, tmp_path: Path) -> None:
    """Relative to dataset.root, with forward slashes; with them in a CSV, probabilities teach a student."""
    root = write_images(tmp_path / "data", {"dark": 0, "grey": 90, "light": 190})
    ids, _ = outputs_for(images(root))
    probabilities = np.full((len(ids), 3), 0.05)
    for row, name in zip(probabilities, ids, strict=True):
        row[["light", "dark", "grey"].index(name.split("/")[0])] = 0.9
    path = write_outputs(tmp_path / "outputs.csv", ids, probabilities, ["light", "dark", "grey"])
    config = images(
        root,
        "teacher=file",
        f"teacher.weights={path}",
        "teacher.params.values=probabilities",
        "soft_targets.dtype=float32",
    )
    run(config)
    stored = np.load(make_soft_targets(config).folder / "logits.npy")[0]
    labels = Job.open(config).transfer_set.labels.numpy()

    assert all((root / name).is_file() for name in ids)
    np.testing.assert_allclose(stored[np.arange(len(ids)), labels], math.log(0.9), rtol=1e-6)
    np.testing.assert_allclose(np.exp(stored).sum(1), 1, rtol=1e-5)


def test_a_file_is_known_by_its_content(small: Tiny, tmp_path: Path) -> None:
    """Another place for the file is the same student; another content another one."""
    ids, logits = outputs_for(small())
    path = write_outputs(tmp_path / "a.npy", ids, logits, [])
    (tmp_path / "sub").mkdir()
    copy = Path(shutil.copy(path, tmp_path / "sub" / "b.npy"))
    other = write_outputs(tmp_path / "c.npy", ids, logits + np.eye(10, dtype=np.float32)[0], [])
    quick = ("teacher=file", "student.epochs=1")
    folders = [distill(small(*quick, f"teacher.weights={p}")).folder for p in (path, copy, other)]

    assert folders[0] == folders[1] != folders[2]
    assert (
        distill(small(*quick, f"teacher.weights={path}", "teacher.params.values=logits")).folder == folders[0]
    )


@pytest.mark.parametrize(
    ("damage", "override", "error", "message"),
    [
        ("row", "loss.T=2", DataError, r"outputs.csv: no row for 1 of 400 samples: '\d+'; add them"),
        (
            "class",
            "loss.T=2",
            DataError,
            "outputs.csv: the data set has no class 'ten'. Expected one column per",
        ),
        ("nan", "loss.T=2", DataError, "outputs.csv: 1 samples have values that are nan or infinite"),
        (
            "none",
            "teacher.params.values=probabilities",
            DataError,
            "negative probabilities: .*; if these are logits, set teacher.params.values=logits",
        ),
        ("none", "soft_targets=live", ConfigError, "soft_targets=live needs a teacher that can be asked"),
        ("none", "feature=at", ConfigError, r"features \(at\) need one network as teacher; file has none"),
        (
            "none",
            "teacher.weights=absent.csv",
            ModelError,
            r"^teacher.weights=absent.csv: there is no such file. Expected a file of the teacher's outputs \(.csv",
        ),
        (
            "none",
            "teacher.params.value=logits",
            ConfigError,
            "file has no parameter 'value'. Did you mean 'values'",
        ),
    ],
)
@pytest.mark.parametrize("stage", ["distill", "run"])
def test_a_file_is_checked_before_training(
    small: Tiny,
    tmp_path: Path,
    damage: str,
    override: str,
    error: type[Exception],
    message: str,
    stage: Stage,
) -> None:
    """Missing rows, unknown classes, values that are none, and settings a file cannot serve."""
    ids, logits = outputs_for(small())
    classes = [str(k) for k in range(10)]
    if damage == "row":
        ids, logits = ids[1:], logits[1:]
    elif damage == "class":
        classes[3] = "ten"
    elif damage == "nan":
        logits[5, 5] = np.nan
    path = write_outputs(tmp_path / "outputs.csv", ids, logits, classes)

    with pytest.raises(error, match=message):
        check_before([at_stage(small("teacher=file", f"teacher.weights={path}", override), stage)])


def test_a_file_s_commands(small: Tiny, tmp_path: Path) -> None:
    """There is no teacher to train; soft-targets reads the file, distill and eval work."""
    ids, logits = outputs_for(small())
    path = write_outputs(tmp_path / "a.npy", ids, logits, [])
    config = small("teacher=file", f"teacher.weights={path}", "student.epochs=1")

    with pytest.raises(
        ConfigError, match=r"^teacher.name=file: this teacher is brought along, there is nothing"
    ):
        train_all(config)
    assert "soft-targets" in run_stage(at_stage(config, "soft-targets")).artifacts
    assert "student" in run_stage(at_stage(config, "distill")).artifacts
    assert "student" in run_stage(at_stage(config, "eval")).artifacts


def test_a_file_of_values_for_regression(tmp_path: Path) -> None:
    """Values are in the units of the data, as the labels are; stored in units of the training split."""
    plain = load_config("dataset=diabetes", "student=mlp", "device=cpu", f"runs={tmp_path / 'runs'}")
    data = Job.open(plain).data
    values = np.array([[100.0 + i] for i in range(len(data.train))], np.float32)
    np.savez(tmp_path / "values.npz", values=values, ids=np.array(list(data.train.ids)))
    config = load_config(
        "dataset=diabetes",
        "student=mlp",
        "student.epochs=1",
        "device=cpu",
        f"runs={tmp_path / 'runs'}",
        "teacher=file",
        f"teacher.weights={tmp_path / 'values.npz'}",
        "soft_targets.dtype=float32",
    )
    stored = np.load(make_soft_targets(config).folder / "logits.npy")[0]
    assert data.target_mean is not None
    assert data.target_std is not None

    np.testing.assert_allclose(stored * data.target_std[0] + data.target_mean[0], values, rtol=1e-5)
    with pytest.raises(
        ConfigError, match=r"^teacher.params.values=probabilities is for classification, but diab"
    ):
        make_soft_targets(
            load_config(
                "dataset=diabetes",
                "student=mlp",
                "device=cpu",
                f"runs={tmp_path / 'runs'}",
                "teacher=file",
                f"teacher.weights={tmp_path / 'values.npz'}",
                "teacher.params.values=probabilities",
            )
        )


# --- folders: networks that were trained elsewhere ---


NAMES = {"dark": 0, "grey": 90, "light": 190}


def brought(images: Tiny, tmp_path: Path, classes: Mapping[str, int], *overrides: str, **image: int) -> Path:
    """The folder of a teacher that was trained on other images, as a user has it: a copy outside of the runs."""
    root = write_images(tmp_path / "theirs", classes, **image)
    trained = train_teacher(images(root, f"runs={tmp_path / 'theirs_runs'}", *overrides)).folder
    return Path(shutil.copytree(trained, tmp_path / "brought" / "teacher"))


@pytest.mark.parametrize("mode", ["stored", "live"])
@pytest.mark.parametrize(
    ("theirs", "class_map", "columns", "shared"),
    [
        (("light", "grey", "dark"), None, ((0,), (1,), (2,)), None),  # named alike: sorted by name again
        (("dark", "grey", "light", "white"), None, ((0,), (1,), (2,)), None),  # more classes
        (("light", "dark"), None, ((0,), (1,)), (0, 2)),  # fewer
        (("night", "haze", "day"), "{night: dark, haze: grey, day: light}", ((2,), (1,), (0,)), None),
        (
            ("coal", "dim", "light", "night"),
            "{coal: dark, night: dark, dim: grey, light: light}",
            ((0, 3), (1,), (2,)),
            None,
        ),
    ],
)
def test_a_teacher_of_other_classes(
    images: Tiny,
    tmp_path: Path,
    mode: str,
    theirs: tuple[str, ...],
    class_map: str | None,
    columns: tuple[tuple[int, ...], ...],
    shared: tuple[int, ...] | None,
) -> None:
    """Stored are the teacher's own logits; the loss sees those of the student's classes, added at T where several."""
    T = 2.0
    levels = {name: 50 * k for k, name in enumerate(theirs)}
    folder = brought(images, tmp_path, levels)
    root = write_images(tmp_path / "data", NAMES)
    map_word = (f"teacher.class_map={class_map}",) if class_map else ()
    config = images(
        root, "teacher=folder", f"teacher.weights={folder}", f"soft_targets={mode}",
        "soft_targets.dtype=float32", *map_word,
    )  # fmt: skip
    scores = run(config)
    job = Job.open(config)
    raw = first_batch(job)
    seen = job.student_views(raw.images, raw.indices, 1)
    with torch.no_grad():
        own = load_network(folder)(seen).double()
    signal = teacher_signal(job, job.student_parents())
    assert signal is not None
    told = signal(type(raw)(seen, raw.labels, raw.indices), 1, T)
    by_hand = torch.stack([T * (own[:, list(group)] / T).exp().sum(1).log() for group in columns], 1)

    torch.testing.assert_close(told.logits.double(), by_hand, rtol=1e-4, atol=1e-4)
    assert (None if told.classes is None else tuple(told.classes.tolist())) == shared
    if mode == "stored":
        stored = np.load(make_soft_targets(config).folder / "logits.npy")
        assert stored.shape == (3, len(job.transfer_set), len(theirs))
        np.testing.assert_allclose(stored[1, raw.indices], own, rtol=1e-4, atol=1e-4)
    # a teacher that knows only part of the classes cannot be compared with
    assert ("teacher" in scores) == (shared is None)
    assert ("agreement" in scores["student"]) == (shared is None)


def test_a_teacher_of_other_images(images: Tiny, tmp_path: Path) -> None:
    """A teacher of grey 12 x 12 images is shown colour ones of 8 x 8 in its own way, live as stored."""
    folder = brought(images, tmp_path, NAMES, "dataset.image_size=12", size=12)
    root = write_images(tmp_path / "data", NAMES, channels=3)
    common = (
        "dataset.channels=3",
        "teacher=folder",
        f"teacher.weights={folder}",
        "soft_targets.dtype=float32",
    )
    config = images(root, *common)
    run(config)
    job = Job.open(config)
    batch = first_batch(job, 6)
    seen = job.student_views(batch.images, batch.indices, 0)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L") for image in seen]
    resized = [picture.resize((12, 12), Image.Resampling.BILINEAR) for picture in pictures]
    shown = torch.stack([torch.from_numpy(np.array(picture))[None] for picture in resized])
    with torch.no_grad():
        expected = load_network(folder)(shown)
    stored = np.load(make_soft_targets(config).folder / "logits.npy")[0, batch.indices]
    a, b = weights_of(config), weights_of(images(root, *common, "soft_targets=live"))

    np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_student_s_folder_teaches(tiny: Tiny) -> None:
    """Born again by hand: the student of one run is the teacher of the next; its parents are pinned."""
    first = distill_all(tiny())
    config = tiny(
        "teacher=folder", "~teacher.params.width", f"teacher.weights={first.folder}", "student.seed=1"
    )
    scores = run(config)
    second = distill(config)

    assert scores["teacher"]["parameters"] == first.manifest["parameters"]
    assert second.parents["teacher"] == {
        "name": first.folder.name,
        "digest": first.digest,
        "kind": "student",
    }
    store = ArtifactStore(Path(config.runs) / "artifacts")
    rebuild(first.folder)
    assert store.is_stale(second)


def distill_all(config: Config) -> Artifact:
    train_teacher(config)
    return distill(config)


def test_a_folder_s_place_does_not_matter(tiny: Tiny, tmp_path: Path) -> None:
    """A copy elsewhere is the same teacher, whether its path is absolute or not."""
    folder = train_teacher(tiny()).folder
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    one, two_ = (
        distill(tiny("teacher=folder", "~teacher.params.width", f"teacher.weights={path}"))
        for path in (folder, f"{copy}/")
    )

    assert one.folder == two_.folder


@pytest.mark.parametrize("stage", ["soft-targets", "distill", "run"])
@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        (
            "absent",
            ModelError,
            r"teacher.weights=.*absent: there is no such folder. Expected the folder of a trained",
        ),
        (
            "empty",
            ModelError,
            r"teacher.weights=.*: there is no manifest.json in it. Expected the folder of a trained network",
        ),
        ("file", ModelError, r"teacher.weights=.*: this is a file. Expected the folder of a trained network"),
        ("cut", DamagedArtifact, r"model.safetensors is damaged: it has [\d,]+ bytes, not [\d,]+$"),
        (
            "flipped",
            DamagedArtifact,
            "model.safetensors is damaged: its content does not match its checksum$",
        ),
        (
            "soft-targets",
            ModelError,
            "holds no network: it is an artifact of kind soft-targets without model.json",
        ),
        ("other classes", ConfigError, "^teacher and student share no class, and at least two are needed"),
        (
            "other channels",
            ModelError,
            "a network for images of 2 x 8 x 8 cannot be shown those of synthetic",
        ),
    ],
)
def test_a_folder_is_checked_before_training(
    tiny: Tiny, images: Tiny, tmp_path: Path, stage: Stage, case: str, error: type[Exception], message: str
) -> None:
    """No artifact, a damaged one, one of another kind, classes or images that do not fit."""
    folder = tmp_path / case
    match case:
        case "empty":
            folder.mkdir()
        case "file":
            folder.touch()
        case "cut" | "flipped":
            shutil.copytree(train_teacher(tiny()).folder, folder)
            content = bytearray((folder / "model.safetensors").read_bytes())
            content[-1] ^= 1
            (folder / "model.safetensors").write_bytes(content[:-1] if case == "cut" else content)
        case "soft-targets":
            train_teacher(tiny())
            shutil.copytree(make_soft_targets(tiny()).folder, folder)
        case "other classes":
            shutil.copytree(brought(images, tmp_path, NAMES), folder)
        case "other channels":
            shutil.copytree(train_teacher(tiny("dataset.channels=2")).folder, folder)
    config = tiny("teacher=folder", "~teacher.params.width", f"teacher.weights={folder}", "student.seed=7")

    with pytest.raises(error, match=message):
        check_before([at_stage(config, stage)])
