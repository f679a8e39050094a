r"""Mathematics: where an answer stands, what equals what, and graders that hang or die."""

import os
import subprocess
import sys

from tests.conftest import ROOT
from tests.unit.sandbox.test_sandbox_life import alive, soon


def test_workers_end_with_their_parent() -> None:
    code = """
import os, signal
from drift.graders.pool import WorkerPool
pool = WorkerPool("drift.graders.math_worker", num_workers=1, cpu_limit_s=5)
pool.map([["\\\\sqrt{8}", "2\\\\sqrt{2}"]])
print(pool.workers[0].process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert soon(lambda: not alive(int(done.stdout)))


def test_workers_import_no_torch() -> None:
    code = "import sys, drift.graders.math_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
