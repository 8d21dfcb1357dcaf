"""The files of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 as they were published, and what torchvision calls them.

The same facts as in torchvision, which takes seconds to import: what has been downloaded is read without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Idx:
    """Two files for each part, of images and of labels, in the idx format, gzipped or not."""

    reader: str
    """torchvision's class, which downloads them."""
    classes: tuple[str, ...]
    compressed = ".gz"
    """What their names end with as they are published."""

    @property
    def folder(self) -> Path:
        return Path(self.reader, "raw")

    def files(self, train: bool) -> list[str]:
        """The names of the files that one part needs, without `compressed`."""
        part = "train" if train else "t10k"
        return [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]


@dataclass(frozen=True)
class Cifar:
    """Pickles that Python 2 wrote: some of images and labels for each part, and one of the classes' names."""

    reader: str
    folder: Path
    train: Mapping[str, str]
    """file -> md5"""
    test: Mapping[str, str]
    names: tuple[str, str]
    """The file of the classes' names, and its md5."""
    names_key: str
    labels_key: str
    compressed = ""

    def files(self, train: bool) -> list[str]:
        """The names of the files that one part needs."""
        return [*(self.train if train else self.test), self.names[0]]


PUBLISHED: dict[str, Idx | Cifar] = {
    "mnist": Idx(
        "MNIST",
        classes=(
            *("0 - zero", "1 - one", "2 - two", "3 - three", "4 - four"),
            *("5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine"),
        ),
    ),
    "fashion_mnist": Idx(
        "FashionMNIST",
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ),
    "cifar10": Cifar(
        "CIFAR10",
        Path("cifar-10-batches-py"),
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        names=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        names_key="label_names",
        labels_key="labels",
    ),
    "cifar100": Cifar(
        "CIFAR100",
        Path("cifar-100-python"),
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        names=("meta", "7973b15100ade9c7d40fb424638fde48"),
        names_key="fine_label_names",
        labels_key="fine_labels",
    ),
}
