"""Images without labels beside a data set, and splits read as one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kdistill.config.data import Dataset
from kdistill.data import Batch, Data, load_data, sample_order, transfer
from kdistill.data.decoding import ImageFiles, decode
from kdistill.data.filesplit import FileSplit
from kdistill.data.joined import JoinedSplit
from kdistill.data.splits import ArraySplit
from kdistill.data.unlabelled import with_unlabelled
from kdistill.errors import ConfigError, DataError
from tests.cases.data import config as section


def config(name: str = "digits", **changes: Any) -> Dataset:
    """Of twenty labelled samples."""
    return section(name, **{"train_samples": 20, **changes})


def write_images(folder: Path, names: list[str], seed: int = 0) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([seed, i]).integers(0, 256, (11, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def whole(batches: list[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.indices for batch in batches]),
    )


NAMES = ["b.png", "a/deep/1.JPG", "a/2.png"]


# --- unlabelled images ---


def test_unlabelled_images_are_brought_to_the_data_set(tmp_path: Path) -> None:
    """Any folder, searched to its end: decoded at the data set's size and channels, labels -1, ids their paths."""
    write_images(tmp_path, [*NAMES, ".hidden.png"])
    (tmp_path / "notes.txt").write_text("no image")
    data, plain = load_data(config(unlabelled=str(tmp_path))), load_data(config())
    assert data.unlabelled is not None
    batch = next(data.unlabelled.batches(torch.arange(3), 3))

    assert list(data.unlabelled.ids) == ["a/2.png", "a/deep/1.JPG", "b.png"]
    assert data.unlabelled.labels.tolist() == [-1, -1, -1]
    assert torch.equal(batch.images[2], decode(str(tmp_path / "b.png"), 8, 1))
    # what is labelled knows nothing of them
    assert (data.fingerprint, data.mean, data.std) == (plain.fingerprint, plain.mean, plain.std)


def test_fingerprint_of_unlabelled_images(tmp_path: Path) -> None:
    """It follows their contents and paths, not the folder's place, nor whether they are in memory."""
    one, moved, other = (
        write_images(tmp_path / name, NAMES, seed) for name, seed in (("one", 0), ("two", 0), ("three", 1))
    )
    prints = [
        load_data(config(unlabelled=str(folder)), memory_gb=gb).unlabelled_fingerprint
        for folder, gb in ((one, 1.0), (moved, 1.0), (one, 0.0), (other, 1.0))
    ]

    assert prints[0] == prints[1] == prints[2] != prints[3]
    assert load_data(config()).unlabelled_fingerprint is None


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "disk"])
def test_unlabelled_images_of_other_tasks(tmp_path: Path, memory_gb: float) -> None:
    """Where labels are rows of numbers, those not known are rows of nan."""
    write_images(tmp_path, NAMES)
    several = config("synthetic", max_labels=2, unlabelled=str(tmp_path))
    data = load_data(several, memory_gb=memory_gb)
    joined = transfer(data)
    images, labels, _ = whole(list(joined.batches(torch.tensor([len(data.train), 0]), 2)))

    assert images.shape == (2, 3, 6, 6)
    assert labels.isnan().tolist() == [[True] * 4, [False] * 4]


def test_unlabelled_folder_among_the_classes(tmp_path: Path) -> None:
    """A folder per class, and one of them is named as unlabelled: it is no class."""
    for name in ("cat", "dog", "more"):
        write_images(tmp_path / name, [f"{i}.png" for i in range(8)])
    files = {"root": str(tmp_path), "image_size": 8, "channels": 3, "test": 0.2, "on_error": "raise"}
    some = {"train_samples": None, "unlabelled": str(tmp_path / "more")}

    assert load_data(config("image_folder", **files, **some)).classes == ("cat", "dog")


def test_corrupt_unlabelled_images(tmp_path: Path) -> None:
    """on_error=skip of an image folder holds for them; a data set without that setting names the file."""
    for name in ("cat", "dog"):
        write_images(tmp_path / "root" / name, [f"{i}.png" for i in range(8)])
    folder = write_images(tmp_path / "more", NAMES)
    (folder / "b.png").write_bytes(b"")
    files = {"root": str(tmp_path / "root"), "image_size": 8, "channels": 3, "test": 0.2, "on_error": "skip"}
    data = load_data(config("image_folder", **files, train_samples=None, unlabelled=str(folder)))
    assert data.unlabelled is not None

    assert list(data.unlabelled.ids) == ["a/2.png", "a/deep/1.JPG"]
    assert data.unlabelled.skipped == 1
    with pytest.raises(DataError, match=rf"^cannot decode {folder / 'b.png'} "):
        load_data(config(unlabelled=str(folder)))


def test_mistakes_are_named(tmp_path: Path) -> None:
    """No folder, no image in it, or a data set whose images no file can be decoded to."""
    (tmp_path / "empty").mkdir()

    def problem(folder: Path, *where: Any, **changes: Any) -> str:
        with pytest.raises((DataError, ConfigError)) as caught:
            load_data(config(*where, unlabelled=str(folder), **changes))
        return str(caught.value).replace(str(tmp_path), "DIR")

    assert problem(tmp_path / "emtpy") == (
        "dataset.unlabelled=DIR/emtpy: there is no such folder. Did you mean 'empty'?"
    )
    assert problem(tmp_path / "empty").startswith("dataset.unlabelled=DIR/empty has no images (.jpg .jpeg ")
    assert problem(tmp_path, "synthetic", channels=5) == (
        "dataset.unlabelled needs square images of 1 or 3 channels; the data set's are 5 x 6 x 6"
    )


# --- splits read as one ---


def joined_of_three(folder: Path) -> tuple[JoinedSplit, Tensor]:
    """Four images in memory, three files, two in memory; and all nine images."""
    write_images(folder, ["0.png", "1.png", "2.png"])
    files = ImageFiles(str(folder), ["0.png", "1.png", "2.png"], 5, 1)
    grey = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 5, 5).contiguous()
    split = JoinedSplit(
        (
            ArraySplit(grey[:4], torch.tensor([0, 1, 2, 3])),
            FileSplit(files, torch.tensor([-1, -1, -1]), skip_corrupt=True),
            ArraySplit(grey[4:], torch.tensor([4, 5])),
        ),
        ("", "files/", "more/"),
    )
    decoded = [decode(str(folder / f"{i}.png"), 5, 1) for i in range(3)]
    return split, torch.stack([*grey[:4], *decoded, *grey[4:]])


def test_joined_split_is_its_parts_in_a_row(tmp_path: Path) -> None:
    """Length, labels and ids; every order gives the same images, labels and positions, batch by batch."""
    split, images = joined_of_three(tmp_path)
    labels = torch.tensor([0, 1, 2, 3, -1, -1, -1, 4, 5])

    assert (len(split), split.image_shape, split.skipped) == (9, (1, 5, 5), 0)
    assert torch.equal(split.labels, labels)
    assert list(split.ids[2:6]) == ["2", "3", "files/0.png", "files/1.png"]
    for epoch in range(5):
        order = sample_order(9, 0, epoch)
        for size in (1, 2, 4, 9):
            batches = list(split.batches(order, size))
            assert [len(batch.labels) for batch in batches] == [len(part) for part in order.split(size)]
            found = whole(batches)
            assert torch.equal(found[0], images[order])
            assert torch.equal(found[1], labels[order])
            assert torch.equal(found[2], order)
    assert list(split.batches(torch.arange(0), 4)) == []


def test_joined_split_lacks_corrupt_images_in_the_right_places(tmp_path: Path) -> None:
    """The others keep their order; a batch of nothing but corrupt images does not come."""
    split, images = joined_of_three(tmp_path)
    (tmp_path / "1.png").write_bytes(b"")
    order = torch.tensor([7, 5, 0, 6, 4, 5, 5, 8, 5, 5])
    batches = list(split.batches(order, 2))

    assert [batch.indices.tolist() for batch in batches] == [[7], [0, 6], [4], [8]]
    assert torch.equal(whole(batches)[0], images[[7, 0, 6, 4, 8]])
    assert whole(batches)[1].tolist() == [4, 0, -1, -1, 5]
    assert split.skipped == 1


def test_joined_split_moves_to_a_device(tmp_path: Path) -> None:
    """All parts' batches lie there."""
    split, _ = joined_of_three(tmp_path)
    moved = split.to(torch.device("meta"))
    batch = next(moved.batches(torch.tensor([5, 0, 8]), 3))

    assert {batch.images.device.type, batch.labels.device.type, batch.indices.device.type} == {"meta"}
    assert split.labels.device.type == "cpu"


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_change_nothing(tmp_path: Path) -> None:
    """Files decoded by worker processes come in the same places."""
    folder = write_images(tmp_path, [f"{i}.png" for i in range(6)])
    order = sample_order(26, 0, 0)
    found = [
        whole(
            list(
                transfer(load_data(config(unlabelled=str(folder)), workers=n, memory_gb=0.0)).batches(
                    order, 4
                )
            )
        )
        for n in (0, 2)
    ]

    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_transfer_set(tmp_path: Path) -> None:
    """The training split first, at its own positions, then the unlabelled images; without them the split itself."""
    data: Data = load_data(config())
    more = with_unlabelled(data, str(write_images(tmp_path, NAMES)))
    split = transfer(more)

    assert transfer(data) is data.train
    assert len(split) == 23
    assert list(split.ids)[:20] == list(data.train.ids)
    assert list(split.ids)[20:] == ["unlabelled/a/2.png", "unlabelled/a/deep/1.JPG", "unlabelled/b.png"]
    assert torch.equal(split.labels[:20], data.train.labels)
    assert more.test_fingerprint == data.test_fingerprint
