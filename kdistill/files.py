"""Files that survive a kill: written aside, flushed to the disk, renamed into place; and their checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdistill.errors import StorageError

log = logging.getLogger("kdistill")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content: after a kill at any moment there is the old file or the new one.

    Several processes may write the same file: one of them is the last.
    """
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)  # on a full disk, the next attempt needs this space
        raise


def write_json(path: Path, content: Any) -> None:
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which may not be there yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    return usage.free if usage.total else sys.maxsize  # some file systems have no size, such as Linux's /proc


def size_text(size: int) -> str:
    """A number of bytes for the reader: `2.56 GB`, `0.04 MB`."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Save tensors, numbers and dicts of them behind their own checksum, in one atomic write."""
    write_bytes(path, state_bytes(state))


def state_bytes(state: dict[str, Any]) -> bytes:
    """The content of the file that `save_state` writes."""
    import torch  # here: tables of results are written without it

    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    return hashlib.sha256(payload).digest() + payload


def load_state(path: Path) -> dict[str, Any] | None:
    """Read what `save_state` wrote; None when the file is not there or does not match its checksum.

    Nothing is unpickled but tensors and plain values (`weights_only=True`).
    """
    import torch

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


@contextlib.contextmanager
def locked(path: Path, what: str, setting: str = "runs") -> Iterator[None]:
    """Hold the lock of this path; waits, and says so, while another process is making `what`."""
    with storage_errors(path.parent, setting):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("another process is making %s: waiting for it", what)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def storage_errors(folder: Path, setting: str = "runs") -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into a `StorageError` that says what to do.

    `setting` names the folder.
    """
    try:
        yield
    except OSError as ex:
        problem = storage_problem(ex, folder, setting)
        if problem is None:
            raise
        raise problem from ex


def storage_problem(ex: OSError, folder: Path, setting: str = "runs") -> StorageError | None:
    """The message for an `OSError` of the file system under `folder`; None for any other error."""
    if ex.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(
            f"the disk is full: cannot write to {folder}. What was finished is kept; free some space"
            f" (`kdistill artifacts gc`) or choose another folder with {setting}=DIR, and give the same command again"
        )
    if ex.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return StorageError(
            f"cannot write to {folder}: {os.strerror(ex.errno).lower()}. Choose another folder with {setting}=DIR"
        )
    return None
