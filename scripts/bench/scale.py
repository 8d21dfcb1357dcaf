"""Images per second and memory of the data path alone, as samples, classes, views and image sizes grow.

    python scripts/bench/scale.py --work DIR [--quick] [--only WORD]

Reads what training would read, augmented and in batches of 128, without a network. Image files are 20,000
JPEGs of 64 to 96 pixels, made in DIR once, and the same in shards of 1,000; other rows are synthetic arrays in
memory. Each row is a process of its own, with one thread. Prints one JSON line for each and a Markdown table.
Rows of views at once read what a teacher is asked about for its soft targets, where images/s counts all views.
Seconds are until the first batch can be asked for; memory is the most that the process and its workers added to
it, without files mapped into it, which the system takes back when it needs the space. Needs Linux.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory import memory, peak
from PIL import Image, ImageDraw

BATCH_SIZE = 128
#: what a row is, beside what it changes: an in-memory array of 10,000 small images in 10 classes
SYNTHETIC = {"dataset": "synthetic", "samples": 10_000, "classes": 10, "image_size": 28, "channels": 3}
FILES = {"dataset": "image_folder", "image_size": 64, "channels": 3, "validation": 0.1, "memory_gb": 0}
#: name -> what differs from FILES; in this order, since a warm cache or a kept index is the one made before
FROM_FILES: dict[str, dict[str, Any]] = {
    "files, decoded into memory": {"memory_gb": 4},
    "files, no workers": {},
    "files, 2 workers": {"workers": 2},
    "files, 10 views at once, no workers": {"at_once": 10},
    "shards, first time, no workers": {"dataset": "webdataset", "index": "new"},
    "shards, no workers": {"dataset": "webdataset", "index": "kept"},
    "shards, 2 workers": {"dataset": "webdataset", "index": "kept", "workers": 2},
    "files, cold cache, no workers": {"cache": "new"},
    "files, cold cache, 2 workers": {"cache": "new", "workers": 2},
    "files, warm cache": {"cache": "kept"},
    "files, warm cache into memory": {"cache": "kept", "memory_gb": 4},
}
GROWING = {
    "samples": [10_000, 50_000, 200_000],
    "classes": [10, 100, 1000],
    "views": [1, 10, 30],
    "image_size": [28, 64, 128],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the images and the cache")
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples, one epoch")
    parser.add_argument("--only", default="", help="rows with this word in their name")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(json.loads(args.row))))
        return
    share = 10 if args.quick else 1
    chosen = {name: row for name, row in rows(args.work, share).items() if args.only in name}
    print(table([run(name, row, args.work) for name, row in chosen.items()]))


def rows(work: Path, share: int) -> dict[str, dict[str, Any]]:
    """What each row is, with one in `share` of the samples."""
    root = work / f"jpegs-{20_000 // share}"
    files = {name: FILES | {"root": str(root), **changes} for name, changes in FROM_FILES.items()}
    arrays = {
        f"{what} = {value:,}": SYNTHETIC | {what: value}
        for what, values in GROWING.items()
        for value in values
    }
    for row in arrays.values():
        row["samples"] = max(row["samples"] // share, 2 * row["classes"])
    return {name: row | {"seconds": 3 / share} for name, row in (files | arrays).items()}


def run(name: str, row: dict[str, Any], work: Path) -> dict[str, Any]:
    """Measure a row in a process of its own."""
    if "root" in row and not (root := Path(row["root"])).exists():
        make_images(root, int(root.name.partition("-")[2]))
    if row["dataset"] == "webdataset":
        row = row | {"root": str(make_shards(root))}
    for kept in row.keys() & {"cache", "index"}:
        if row[kept] == "new":
            shutil.rmtree(work / kept, ignore_errors=True)
        row = row | {kept: str(work / kept)}
    command = [sys.executable, __file__, "--work", str(work), "--row", json.dumps(row)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = {"row": name, **json.loads(done.stdout)}
    print(json.dumps(found), flush=True)
    return found


def make_images(root: Path, count: int) -> None:
    """Write JPEGs of a coloured shape on noise, in 10 classes."""
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for i in range(count):
        rng, label = np.random.default_rng(i), i % 10
        width, height = (int(side) for side in rng.integers(64, 97, 2))
        image = Image.fromarray(rng.integers(64, 192, (height, width, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        shape = draw.ellipse if label % 2 else draw.rectangle
        left, top = (int(place) for place in rng.integers(0, 24, 2))
        shape((left, top, left + 40, top + 40), fill=(25 * label, 255 - 25 * label, 128))
        path = partial / str(label) / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    partial.rename(root)


def make_shards(images: Path, size: int = 1000) -> Path:
    """Write the same images, in the same order, as shards of `size` samples each, once."""
    root = images.with_name(images.name.replace("jpegs", "shards"))
    if root.exists():
        return root
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    paths = sorted(images.glob("*/*.jpg"))
    for start in range(0, len(paths), size):
        with tarfile.open(partial / f"{start // size:06}.tar", "w") as tar:
            for path in paths[start : start + size]:
                tar.add(path, path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = len(path.parent.name)
                tar.addfile(label, io.BytesIO(path.parent.name.encode()))
    return partial.rename(root)


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """Load the row's data set and read it for some epochs, as many as it has views at least."""
    import torch

    from kdistill import load_config
    from kdistill.data import AllViews, Views, load_data
    from kdistill.training_data import TrainingData

    torch.set_num_threads(1)
    row = dict(row)
    name, views, seconds = row.pop("dataset"), row.pop("views", None), row.pop("seconds")
    at_once = row.pop("at_once", 0)
    how = {key: row.pop(key) for key in ("workers", "memory_gb", "cache", "index") if key in row}
    config = load_config(f"dataset={name}", *(f"dataset.{key}={value}" for key, value in row.items())).dataset
    before = memory(os.getpid())
    with peak(lambda: memory(os.getpid())) as most:
        start = time.perf_counter()
        split = load_data(config, **how).train
        loaded = time.perf_counter() - start
        shown = Views(seed=0, crop=4, flip=True)
        training = TrainingData(split, shown, order_seed=0, distinct_views=views)
        every = AllViews(split, shown, at_once)
        images, epoch, start = 0, 0, time.perf_counter()
        while epoch < (views or 1) or time.perf_counter() - start < seconds:
            if at_once:
                parts = torch.arange(len(split)).split(every.part_size(BATCH_SIZE))
                images += sum(seen.which.numel() for seen in every.read(parts))
            else:
                images += sum(len(batch.indices) for batch in training.batches(epoch, BATCH_SIZE))
            epoch += 1
        rate = images / (time.perf_counter() - start)
    return {
        "images_per_second": round(rate),
        "load_seconds": round(loaded, 2),
        "peak_mib": round(most[0] - before),
    }


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| data | images/s | seconds to load | peak MiB |", "| --- | --: | --: | --: |"]
    for row in found:
        cells = [
            row["row"],
            f"{row['images_per_second']:,}",
            f"{row['load_seconds']:.2f}",
            f"{row['peak_mib']:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
