"""Teachers that were trained elsewhere, and perhaps for other classes: folders of networks."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdistill import distill, load_network, make_soft_targets, run, train_teacher
from kdistill.artifacts import Artifact, ArtifactStore
from kdistill.config.schema import Config, Stage
from kdistill.errors import ConfigError, DamagedArtifact, ModelError
from kdistill.stages import check_before
from kdistill.stages.job import Job
from kdistill.stages.signals import teacher_signal
from tests.cases.stages import at_stage, rebuild
from tests.cases.teachers import first_batch, weights_of, write_images

Tiny = Callable[..., Config]
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
