"""Stored soft targets at the size of ImageNet: `python scripts/bench/store.py [--samples N] [--folder DIR]`.

Synthetic logits of 1,281,167 samples and 1,000 classes, no teacher: all of them in float16, and the 10 largest with
the rest as one number. Each is written once, and read in random batches of 256 by a process of its own, at a tenth of
the samples and at all of them:

    mapped    from the memory-mapped file, once it is in the system's cache
    cold      the same after the file was dropped from the cache: the first epoch of a file larger than memory
    held      from memory, as files of up to 64 MiB are read by default

Memory is the largest growth of the reader's anonymous resident memory (RssAnon in /proc/self/status, asked for after
each batch) since before the file was opened: the system's cache is not in it. CPU is the processor's time for each
sample, which other work on the machine does not change. Prints one JSON line for each row and a Markdown table at the
end. The file is removed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from kdistill.stored import IN_MEMORY_BYTES, Layout, Reader, Writer, layout_of

SAMPLES, CLASSES, BATCH = 1_281_167, 1_000, 256
#: name -> how it is stored
LAYOUTS = {"all": None, "top 10": 10}
READ_SECONDS = 3.0
#: images/s that reading keeps up with, and seconds to open, on 2 cores
TARGETS = "at least 20,000 samples/s read, opened in less than 0.1 s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="samples of the larger size")
    parser.add_argument("--folder", help="where the file is written; default: the system's temporary folder")
    args = parser.parse_args()
    rows = []
    for name, top_k in LAYOUTS.items():
        for samples in (args.samples // 10, args.samples):
            layout = layout_of({"shape": (1, samples, CLASSES), "dtype": "float16", "top_k": top_k})
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                rows += measure(name, layout, Path(folder) / layout.file)
    print(table(rows))


def measure(name: str, layout: Layout, path: Path) -> list[dict[str, float | str]]:
    """The rows of one file: it is written, and read in each way."""
    samples = layout.shape[1]
    written = write(layout, path)
    ways = ["mapped", "cold", *(["held"] if layout.bytes <= IN_MEMORY_BYTES else [])]
    rows = []
    for way in ways:
        alone = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=alone) as process:
            found = process.submit(read, layout, path, way).result()
        row = {
            "stored": name,
            "samples": samples,
            "bytes/sample": layout.row.itemsize,
            "MB": round(path.stat().st_size / 1e6, 1),
            **written,
            "read": way,
            **found,
        }
        print(json.dumps({"bench": "store", **row}), flush=True)
        rows.append(row)
    return rows


def write(layout: Layout, path: Path) -> dict[str, float]:
    """Write all samples in order and flush them to the disk."""
    logits = 3 * torch.randn(32 * BATCH, CLASSES, generator=torch.Generator().manual_seed(0))
    start, cpu = time.perf_counter(), time.process_time()
    writer = Writer.create(path, layout)
    for indices in torch.arange(layout.shape[1]).split(BATCH):
        first = int(indices[0]) % len(logits)
        writer.write(0, indices, logits[first : first + len(indices)])
    writer.flush()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    samples = layout.shape[1]
    return {"written/s": round(samples / seconds), "write CPU us": round(1e6 * cpu / samples, 1)}


def read(layout: Layout, path: Path, way: str) -> dict[str, float]:
    """Open the file and read random batches for some seconds."""
    torch.arange(BATCH).float().exp()  # what torch sets up once is not the file's
    batches = torch.randperm(layout.shape[1]).split(BATCH)
    cached(path, way != "cold")
    before, peak, done = anonymous_bytes(), 0, 0
    start = time.perf_counter()
    reader = Reader(path, layout, torch.device("cpu"), IN_MEMORY_BYTES if way == "held" else 0)
    opened = time.perf_counter() - start
    seconds = cpu = 0.0
    while seconds < READ_SECONDS and (way != "cold" or not done):
        for indices in batches:
            start, cpu_start = time.perf_counter(), time.process_time()
            reader.logits(0, indices)
            seconds += time.perf_counter() - start
            cpu += time.process_time() - cpu_start
            done += len(indices)
            peak = max(peak, anonymous_bytes())
            if seconds > READ_SECONDS:
                break
    return {
        "opened ms": round(1000 * opened, 2),
        "read/s": round(done / seconds),
        "read CPU us": round(1e6 * cpu / done, 1),
        "memory MB": round((peak - before) / 1e6, 1),
    }


def cached(path: Path, wanted: bool) -> None:
    """Have the file in the system's cache, or none of it."""
    with path.open("rb") as file:
        if wanted:
            while file.read(2**24):
                pass
        else:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def table(rows: list[dict[str, float | str]]) -> str:
    """Markdown, one line for each file and way of reading."""
    lines = [f"| {' | '.join(rows[0])} |", "|--" * len(rows[0]) + "|"]
    for row in rows:
        cells = [f"{value:,}" if isinstance(value, int | float) else value for value in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"Targets: {TARGETS}.", "", *lines])


if __name__ == "__main__":
    main()
