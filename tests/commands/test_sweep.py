"""Sweeps as a user starts them: a job that fails, an interruption, what is left to run."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

from drift.common.files import locked_shared
from drift.runs.sweep import LOCK, state
from tests.conftest import ROOT
from tests.unit.runs.test_sweep import write

HOLD = """
import sys, time
from pathlib import Path
from drift.common.files import locked_shared
with locked_shared(Path(sys.argv[1]) / ".job.lock"):
    print("here", flush=True)
    time.sleep(600)
"""


def test_a_job_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    """On this machine its lock says so; of a job on another machine nothing is known."""
    job = {"status": "running", "error": None, "host": socket.gethostname()}
    write(tmp_path / "0" / "job.json", job, when=100)
    assert state(tmp_path / "0")["status"] == "running"  # by a version that held no lock
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "0")], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    with locked_shared(tmp_path / "0" / LOCK):  # another rank
        assert state(tmp_path / "0")["status"] == "running"
    assert state(tmp_path / "0")["status"] == "running"
    process.kill()
    process.communicate()
    assert state(tmp_path / "0") == {
        "status": "killed",
        "error": "its process ended without a word",
    }
    with (tmp_path / "0" / ".lock").open("w") as lock:  # it was started again by itself
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state(tmp_path / "0")["status"] == "running"
    write(tmp_path / "0" / "job.json", job | {"host": "elsewhere"}, when=100)
    assert state(tmp_path / "0")["status"] == "running"
