"""Teachers that are known only by their outputs, in a file."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdistill import distill, load_config, make_soft_targets, run
from kdistill.config.schema import Config, Stage
from kdistill.errors import ConfigError, DataError, ModelError
from kdistill.stages import check_before, run_stage
from kdistill.stages.job import Job
from tests.cases.stages import at_stage, made, train_all
from tests.cases.teachers import first_batch, outputs_for, write_images, write_outputs

Tiny = Callable[..., Config]


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
