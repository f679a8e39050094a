"""Files that are either whole or absent, their digests, and who may write."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def file_digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def flush(path: Path) -> None:
    """Make the kernel write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that the file is either the old one or the new one, never a part."""
    beside = path.with_suffix(path.suffix + ".tmp")
    beside.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    flush(beside)
    beside.replace(path)


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def publish(beside: Path, target: Path) -> None:
    """Give a folder that is written whole its name, and remove what stood there."""
    flush(beside)
    replaced = out_of_the_way(target) if target.exists() else None
    beside.rename(target)
    flush(target.parent)
    if replaced:
        shutil.rmtree(replaced, ignore_errors=True)


def out_of_the_way(folder: Path) -> Path:
    """Take its name from a folder that is to be removed: a kill then leaves no half one."""
    return folder.rename(folder.with_name(f".old-{folder.name}"))


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait until no other process of this machine is in a block with the same lock file.

    shared: other shared blocks do not count. A lock ends with its process, however that ends.
    """
    with path.open("a+") as lock:  # NFS: a shared lock needs reading, one for one alone writing
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process of this machine holds a lock on a file; one that is not there has none."""
    if not path.exists():
        return False
    mode = "r+" if os.access(path, os.W_OK) else "r"  # NFS: a lock for one alone needs writing
    with path.open(mode) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
