"""Jobs through submitit where there is no SLURM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Run


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["cluster.num_machines=2", "cluster.main_port=29500"], "num_machines=2 must be 1"),
        (["cluster.gpus_per_node=2", "cluster.num_processes=1"], "must be equal"),
        (["cluster.partition=main"], "cluster.partition=main applies to cluster=slurm only; use"),
        (["cluster.time_limit_min=5,6"], "hydra.launcher.timeout_min=5, but 1440 for the whole"),
    ],
)
def test_what_does_not_fit_one_machine_is_refused(
    run: Run, tmp_path: Path, overrides: list[str], reason: str
) -> None:
    done = run("train", "cluster=submitit_local", *overrides, check=False)
    assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_launcher_cannot_be_swept_over(run: Run, tmp_path: Path) -> None:
    done = run("train", "-m", "cluster=local,submitit_local", check=False)
    assert done.returncode == 1 and "run one command for each value" in done.stderr
    assert not any(tmp_path.iterdir())


def test_without_sbatch_one_line_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "drift.train", "cluster=slurm"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("drift: cluster=slurm: there is no sbatch in PATH; ")
    assert len(done.stderr.splitlines()) == 1
