"""Locks of files and folders: who holds one, who may take it, and file systems without any."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drift.common.errors import ConfigError
from drift.common.files import in_use, is_locked, locked, locked_shared, sole_user
from tests.conftest import ROOT


def test_locks_ask_for_no_more_than_their_file_was_opened_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS makes flock a lock of byte ranges, which needs reading to share and writing to own."""
    monkeypatch.setattr("fcntl.flock", fcntl.lockf)
    for hold in (locked, locked_shared):
        with hold(tmp_path / "lock"):
            assert not is_locked(tmp_path / "lock")  # such a lock does not hold its own process


FORK = """
import os, sys, time
from pathlib import Path
from drift.common.files import sole_user
with sole_user(Path(sys.argv[1]), ""):
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    print(pid, flush=True)
    time.sleep(600)
"""


def test_a_folder_is_free_when_its_user_was_killed_whatever_process_it_forked(
    tmp_path: Path,
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", FORK, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert holder.stdout is not None
    forked = int(holder.stdout.readline())
    try:
        assert in_use(tmp_path)
        with pytest.raises(ConfigError, match="taken"), sole_user(tmp_path, "taken"):
            pass
        assert in_use(tmp_path)
        holder.kill()
        holder.wait()
        assert not in_use(tmp_path)
        with sole_user(tmp_path, "taken"):
            assert in_use(tmp_path)
    finally:
        os.kill(forked, signal.SIGKILL)
        holder.kill()
        holder.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_was_removed_locks_nothing(tmp_path: Path) -> None:
    """Who opened it before its holder removed it makes a new one, and others see that."""
    opened = os.open

    def removed_meanwhile(path: Any, *arguments: Any) -> int:
        descriptor = opened(path, *arguments)
        if path == str(tmp_path / "lock") and not removed:
            removed.append(path)
            Path(path).unlink()
        return descriptor

    removed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.open", removed_meanwhile)
        with locked(tmp_path / "lock"):
            assert removed and is_locked(tmp_path / "lock")


def test_where_there_are_no_locks_one_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_lock(*_: object) -> None:
        """Lustre without -o flock."""
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_lock)
    with sole_user(tmp_path, ""), locked(tmp_path / "lock"):
        assert is_locked(tmp_path / "lock")  # nobody is taken for dead
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path}: its file system has no locks (Function not")
