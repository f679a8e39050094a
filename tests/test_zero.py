"""ZeRO-3 on two CPU ranks, for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drift.policy.loading import load_policy
from tests.conftest import ROOT


@pytest.mark.parametrize("name", ["tiny-countdown", "tiny_dream-countdown"])
def test_each_rank_loads_its_part_alone(name: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(ROOT / "tests" / "zero_load.py"), str(ROOT / "data" / name), str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    largest = max(p.numel() for p in load_policy(ROOT / "data" / name).parameters())
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["same"]
        assert found["held"] <= 0.51 * found["total"]
        assert found["largest"] <= largest  # never the whole model, one tensor at a time
