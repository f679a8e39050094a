"""Files that are either whole or absent, their digests, and who may write."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from glob import escape
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from drift.common.errors import ConfigError, DataError

LOCK = ".lock"  # in a folder, held by its `sole_user`
ASKED_S = 0.5  # who asks `is_locked` has the lock for a moment
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
log = logging.getLogger("drift")


def file_digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def digest(value: object) -> str:
    """8 letters of the SHA-256 of a value as JSON, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def flush(path: Path) -> None:
    """Make the kernel write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path of a file to write, which takes the place of `path` when the block ends.

    An error in the block leaves nothing of it; a kill leaves `.writing-NAME`.
    """
    beside = path.with_name(f".writing-{path.name}")
    try:
        yield beside
        flush(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(
    path: Path, error: type[Exception] = DataError, *, missing_ok: bool = False
) -> dict[str, Any]:
    """A JSON object; with `missing_ok` empty where there is no such file.

    Raises:
        Exception: `error`: there is no such file, or it is torn or no object.
    """
    if missing_ok and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path.parent} has no {path.name}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise error(f"{path} is not JSON: {fault}") from None
    if not isinstance(content, dict):
        raise error(f"{path} is not a JSON object")
    return content


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write in, which takes the place of `folder` when the block ends.

    What a kill has left is removed when the same folder is written again.
    """
    beside = folder.with_name(f".writing-{folder.name}")
    make_room(beside, escape(folder.name))
    yield beside
    for file in beside.iterdir():
        flush(file)
    publish(beside, folder)


def make_room(beside: Path, named: str = "step_*") -> None:
    """Create a folder to write in, and remove what was left of folders whose names match."""
    for pattern in (f".writing-{named}", f".old-*-{named}"):  # after a kill, or held at the time
        for leftover in beside.parent.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
    if beside.exists():
        out_of_the_way(beside)
    beside.mkdir(parents=True)


def publish(beside: Path, target: Path) -> None:
    """Give a folder that is written whole its name, and remove what stood there."""
    flush(beside)
    replaced = out_of_the_way(target) if target.exists() else None
    beside.rename(target)
    flush(target.parent)
    if replaced:
        shutil.rmtree(replaced, ignore_errors=True)


def give_back(target: Path) -> None:
    """Its name to a folder that a kill in `publish` has left without one."""
    taken = sorted(target.parent.glob(f".old-*-{target.name}"))
    if taken and not target.exists():
        taken[-1].rename(target)


def out_of_the_way(folder: Path) -> Path:
    """Take its name from a folder that is to be removed: a kill then leaves no half one."""
    return folder.rename(folder.with_name(f".old-{time.time_ns()}-{folder.name}"))


def lock(file: IO[str], kind: int) -> bool:
    """Lock an open file as `fcntl.flock`; False, after a warning, where there are no locks.

    Lustre has them if it is mounted with -o flock.

    Raises:
        BlockingIOError: another process has the lock, and `kind` says not to wait.
    """
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn_of_no_locks(Path(file.name).absolute().parent, error.strerror)
        return False
    return True


@cache
def warn_of_no_locks(folder: Path, reason: str) -> None:
    """Once of each folder."""
    log.warning(
        "%s: its file system has no locks (%s); start no two commands that write there",
        folder,
        reason,
    )


@contextmanager
def locked(path: Path, *, timeout_s: float = -1) -> Iterator[None]:
    """Wait until no other process of this machine is in a block with the same lock file.

    A lock ends with its process, however that ends; a process forked from it does not have it.

    timeout_s: to wait; by default as long as it takes.

    Raises:
        Timeout: another process still has the lock.
    """
    held = FileLock(path, timeout_s, fallback_to_soft=False)
    try:
        held.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn_of_no_locks(path.absolute().parent, os.strerror(error.errno))
    try:
        yield
    finally:
        held.release()


@contextmanager
def locked_shared(path: Path) -> Iterator[None]:
    """Hold a lock with others that share it; filelock has none of that kind."""
    with path.open("a+") as file:  # NFS: a shared lock needs reading
        lock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def sole_user(folder: Path, refusal: str) -> Iterator[None]:
    """Make a folder this process's own while the block runs; no lock file is left.

    Raises:
        ConfigError: `refusal`: another process has the folder.
    """
    path = folder / LOCK
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, timeout_s=ASKED_S))
        except Timeout:
            raise ConfigError(refusal) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # who waits for it sees that, and makes a new one


def in_use(folder: Path) -> bool:
    """Whether a process of this machine is the folder's `sole_user`."""
    return is_locked(folder / LOCK)


def is_locked(path: Path) -> bool:
    """Whether a process of this machine holds a lock on a file; one that is not there has none.

    Where there are no locks, one may.
    """
    if not path.exists():
        return False
    mode = "r+" if os.access(path, os.W_OK) else "r"  # NFS: a lock for one alone needs writing
    with path.open(mode) as file:  # filelock cannot ask where it may not write
        try:
            return not lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True


@contextmanager
def survives_a_full_disk(path: Path) -> Iterator[None]:
    """Training is worth more than a file about it: one that cannot be written is named."""
    try:
        yield
    except OSError as error:
        log.warning("%s is not written: %s", path, error.strerror)
