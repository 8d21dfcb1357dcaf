"""Tar files of images: what is in them, where, and what can be wrong; lists that are made once."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdistill.data import shards
from kdistill.data.decoding import decode
from kdistill.data.shards import Shard, read_shards, shard_images, shards_under
from kdistill.errors import DataError, StorageError
from tests.shards import Sample, as_json, image, samples, write, write_as_webdataset


def read(path: Path, label: str | None = "cls", index: Path | None = None) -> Shard:
    (shard,) = read_shards(path.parent, [path.name], label, str(index) if index else None)
    return shard


def contents(path: Path, shard: Shard) -> list[bytes]:
    """What stands where the shard's list says that images are."""
    whole = path.read_bytes()
    return [whole[offset : offset + size] for offset, size in zip(shard.offsets, shard.sizes, strict=True)]


# --- what is in a tar ---


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_format_of_tar(tmp_path: Path, format: int) -> None:
    """Long and non-ASCII names take members of their own in GNU's and POSIX's formats; offsets stay right."""
    keys = ["a/b/0", "two", "long" * 20 + "/" + "names" * 15]
    keys += [] if format == tarfile.USTAR_FORMAT else ["long" * 60, "Übung"]
    content = [(key, {"jpg": image(i, "jpg"), "cls": b" %d\n" % i}) for i, key in enumerate(keys)]
    path = write(tmp_path / "0.tar", content, format)
    shard = read(path)

    assert shard.names == [f"{key}.jpg" for key in keys]
    assert shard.labels == [str(i) for i in range(len(keys))]
    assert contents(path, shard) == [members["jpg"] for _, members in content]


def test_shards_of_the_package_itself(tmp_path: Path) -> None:
    """What webdataset's ShardWriter makes of five samples, two to a shard; pictures encoded by it or by us."""
    content = samples("01010")
    write_as_webdataset(str(tmp_path / "train-%06d.tar"), content, maxcount=2)
    tars = shards_under(tmp_path)
    found = read_shards(tmp_path, tars, "cls", None)

    assert tars == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert [shard.names for shard in found] == [
        ["000000.png", "000001.png"],
        ["000002.png", "000003.png"],
        ["000004.png"],
    ]
    assert [label for shard in found for label in shard.labels] == list("01010")
    listed = zip(tars, found, strict=True)
    pictures = [picture for tar, shard in listed for picture in contents(tmp_path / tar, shard)]
    assert pictures == [members["png"] for _, members in content]


def test_what_belongs_to_no_sample(tmp_path: Path) -> None:
    """Folders, hidden files, links and names without a dot are passed over; `./` is no part of a key."""
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        folder, link = tarfile.TarInfo("./sub"), tarfile.TarInfo("1.jpg")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "0.jpg"
        tar.addfile(folder)
        tar.addfile(link)
        for name in (
            "./sub/0.PNG",
            "./sub/._0.PNG",
            "./sub/0.Cls",
            "README.txt",
            "README",
            "__meta__",
            "sub/0.seg.png",
        ):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"7"))
    shard = read(path)

    assert (shard.names, shard.labels) == (["sub/0.PNG"], ["7"])
    assert contents(path, shard) == [b"7"]


def test_members_of_a_sample_need_not_be_neighbours(tmp_path: Path) -> None:
    """All pictures first, then all labels."""
    content: list[Sample] = [("a", {"png": b"A"}), ("b", {"png": b"B"})]
    path = write(tmp_path / "0.tar", [*content, ("a", {"cls": b"0"}), ("b", {"cls": b"1"})])
    shard = read(path)

    assert (shard.names, shard.labels, contents(path, shard)) == (
        ["a.png", "b.png"],
        ["0", "1"],
        [b"A", b"B"],
    )


def test_labels_of_every_kind(tmp_path: Path) -> None:
    """.cls, .txt, and a field of .json, a whole number or text; none are read where none are asked for."""
    members = {"png": b"", "cls": b"3", "txt": b" a cat\n", "json": as_json(label=4, name=" dog")}
    path = write(tmp_path / "0.tar", [("x", members)])

    labels = [read(path, label).labels for label in ("cls", "txt", "json.label", "json.name", None)]
    assert labels == [["3"], ["a cat"], ["4"], ["dog"], []]


def test_images_in_any_order(tmp_path: Path) -> None:
    """Positions, ids, sizes and contents; a selection; and what a worker is sent."""
    write(tmp_path / "a" / "0.tar", samples([0, 1]))
    write(tmp_path / "1.tar", samples([1], start=2))
    tars = shards_under(tmp_path)
    files = shard_images(tmp_path, tars, read_shards(tmp_path, tars, None, None), 8, 3)

    assert list(files.names) == ["1.tar/000002.png", "a/0.tar/000000.png", "a/0.tar/000001.png"]
    (tmp_path / "x.png").write_bytes(image(0))
    pixels = decode(str(tmp_path / "x.png"), 8, 3)
    good, images, bad = pickle.loads(pickle.dumps(files)).__getitems__([1, 0])
    assert (good, bad) == ([1, 0], [])
    assert torch.equal(images[0], pixels)
    some = files.select(torch.tensor([2, 0]))
    assert list(some.names) == ["a/0.tar/000001.png", "1.tar/000002.png"]
    assert [some.content(i) for i in range(2)] == [image(1), image(2)]
    assert [some.size(i) for i in range(2)] == [len(image(1)), len(image(2))]


def test_a_corrupt_image_is_told_without_an_address_in_memory(tmp_path: Path) -> None:
    """The same text in every run: a cache keeps it."""
    path = write(tmp_path / "0.tar", [("x", {"png": b"no image"})])
    files = shard_images(tmp_path, ["0.tar"], [read(path, None)], 8, 3)
    assert files.__getitems__([0])[2] == [(0, "cannot identify image file")]
    path.unlink()
    assert files.__getitems__([0])[2] == [(0, f"[Errno 2] No such file or directory: '{path}'")]


# --- what is wrong with a tar ---


def problem(path: Path, label: str | None = "cls") -> str:
    with pytest.raises(DataError) as caught:
        read(path, label)
    return str(caught.value).replace(str(path), "TAR")


@pytest.mark.parametrize(
    ("compress", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_a_compressed_tar(tmp_path: Path, compress: Callable[[bytes], bytes], name: str) -> None:
    """Whatever it is named."""
    path = write(tmp_path / "0.tar", samples([0]))
    path.write_bytes(compress(path.read_bytes()))
    assert problem(path) == (
        f"TAR is compressed ({name}), and images are read from the middle of a tar: uncompress it"
    )


CUT_OFF = (
    "TAR is damaged or cut off after 2 samples: no tar's end is where it should be; copy or write it again"
)


def test_a_tar_that_is_cut_off(tmp_path: Path) -> None:
    """Within a picture, a header, or exactly between two members, where tarfile sees nothing wrong."""
    path = write(tmp_path / "0.tar", samples([0, 1, 0]))
    with tarfile.open(path) as tar:
        picture, label = tar.getmembers()[4:]
    ends = (picture.offset_data + 5, picture.offset + 100, picture.offset)
    texts = []
    for end in ends:
        os.truncate(path, end)
        texts.append(problem(path))

    assert texts == ["TAR is no tar file, or a damaged one (unexpected end of data)", CUT_OFF, CUT_OFF]
    assert label.offset > picture.offset


def test_a_damaged_header(tmp_path: Path) -> None:
    """A flipped bit in the name of the third sample: tarfile stops there in silence."""
    path = write(tmp_path / "0.tar", samples([0, 1, 0]))
    with tarfile.open(path) as tar:
        start = tar.getmembers()[4].offset
    content = bytearray(path.read_bytes())
    content[start] ^= 1
    path.write_bytes(content)
    assert problem(path) == CUT_OFF


def test_no_tar(tmp_path: Path) -> None:
    """A text, an empty file, a file that is gone or a folder."""
    path = tmp_path / "0.tar"
    path.write_text("not a tar")
    assert problem(path) == "TAR is no tar file, or a damaged one (truncated header)"
    path.write_bytes(b"")
    assert problem(path) == "TAR is no tar file, or a damaged one (empty file)"
    path.unlink()
    assert problem(path) == "TAR cannot be read ([Errno 2] No such file or directory: 'TAR')"


@pytest.mark.parametrize(
    ("members", "text"),
    [
        (
            {"jpg": b"", "json": b"{}"},
            "has no label x.cls; its members: x.jpg x.json. dataset.label says where labels are",
        ),
        (
            {"npy": b"", "cls": b"0"},
            "has no image (.jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp); its members: x.npy x.cls",
        ),
        ({"jpg": b"", "png": b"", "cls": b"0"}, "has several images; its members: x.jpg x.png x.cls"),
    ],
)
def test_a_sample_that_lacks_something(tmp_path: Path, members: dict[str, bytes], text: str) -> None:
    """A label, an image, or one image alone: what it has is said."""
    path = write(tmp_path / "0.tar", [*samples([0]), ("x", members)])
    assert problem(path) == f"TAR: sample x {text}"


def test_a_key_twice(tmp_path: Path) -> None:
    """One of two samples would be lost."""
    path = write(tmp_path / "0.tar", [*samples([0, 1]), *samples([1])])
    assert problem(path) == "TAR: 000000.png is in it twice, but a key stands for one sample"


@pytest.mark.parametrize(
    ("label", "content", "text"),
    [
        ("cls", b" \n", "holds no label"),
        (
            "cls",
            b"\xff",
            "cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)",
        ),
        ("json.label", b"[1]", "cannot be read (no field 'label': it is no object)"),
        (
            "json.label",
            b'{"lable": 1, "b": 2}',
            "cannot be read (no field 'label': it has lable, b. Did you mean 'lable'?)",
        ),
        ("json.label", b'{"label": [1]}', "cannot be read (label=[1] is neither a whole number nor text)"),
        ("json.label", b'{"label": true}', "cannot be read (label=true is neither a whole number nor text)"),
        ("json.label", b"{", "cannot be read (Expecting property name enclosed in double quotes: line 1"),
    ],
)
def test_a_label_that_cannot_be_read(tmp_path: Path, label: str, content: bytes, text: str) -> None:
    """The member, and what is wrong with it."""
    ending = label.partition(".")[0]
    path = write(tmp_path / "0.tar", [("x", {"png": b"", ending: content})])
    assert problem(path, label).startswith(f"TAR: x.{ending} {text}")


# --- lists that are made once ---


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tars whose headers are read."""
    names: list[str] = []
    scan = shards._scan

    def counted(path: Path, label: str | None) -> Shard:
        names.append(path.name)
        return scan(path, label)

    monkeypatch.setattr(shards, "_scan", counted)
    return names


def test_a_shard_is_listed_once(tmp_path: Path, scans: list[str]) -> None:
    """The same content from the list; another label is another list, another shard adds one."""
    write(tmp_path / "0.tar", samples([0, 1]))
    write(tmp_path / "1.tar", samples([1], start=2))
    index = str(tmp_path / "runs" / "shards")

    first = read_shards(tmp_path, ["0.tar"], "cls", index)
    assert read_shards(tmp_path, ["0.tar", "1.tar"], "cls", index)[:1] == first
    assert read_shards(tmp_path, ["0.tar"], None, index)[0].labels == []
    assert scans == ["0.tar", "1.tar", "0.tar"]
    assert first == read_shards(tmp_path, ["0.tar"], "cls", None)


def test_a_changed_shard_is_listed_anew(tmp_path: Path, scans: list[str]) -> None:
    """By size or time; another version of the lists' format; a list that is damaged."""
    path, index = write(tmp_path / "0.tar", samples([0, 1])), tmp_path / "index"
    read(path, index=index)
    write(path, samples([1, 0]))
    assert read(path, index=index).labels == ["1", "0"]
    (file,) = (file for file in index.iterdir() if file.name != "lock")
    file.write_bytes(file.read_bytes()[:-1])
    assert read(path, index=index) == read(path)
    assert scans == ["0.tar"] * 4
    read(path, index=index)
    assert len(scans) == 4


def test_a_format_of_another_version(
    tmp_path: Path, scans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists that hold something else are made anew."""
    path = write(tmp_path / "0.tar", samples([0]))
    read(path, index=tmp_path / "index")
    monkeypatch.setattr(shards, "_FORMAT", 0)
    read(path, index=tmp_path / "index")
    assert len(scans) == 2


def test_lists_that_cannot_be_kept(tmp_path: Path) -> None:
    """The folder is named, and the setting that moves it."""
    path = write(tmp_path / "0.tar", samples([0]))
    (tmp_path / "index").write_text("")
    with pytest.raises(StorageError) as caught:
        read(path, index=tmp_path / "index")
    assert str(caught.value) == (
        f"cannot write to {tmp_path / 'index'}: file exists. Choose another folder with runs=DIR"
    )
