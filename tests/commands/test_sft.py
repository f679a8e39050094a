"""Supervised fine-tuning: what is kept of it, however it ends, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drift.common.files import file_digest
from drift.policy.loading import load_policy
from tests.conftest import ROOT, Run, read_lines
from tests.unit.training.test_sft import SMALL


def test_a_run_says_what_it_is_and_never_takes_anothers_place(run: Run, tmp_path: Path) -> None:
    run("sft", *SMALL, "num_steps=5", "eval.every=3")
    folder = tmp_path / "sft"
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.yaml", "manifest.json", "metrics.jsonl", "policy", "sft.log"}
    assert json.loads((folder / "manifest.json").read_text())["data"]["train"]["n"] == 50
    lines = [
        [line["step"], *sorted(line.keys() - {"step", "unix_s"})]
        for line in read_lines(folder / "metrics.jsonl")
    ]
    evaluated = ["eval/accuracy", "eval/nfe"]
    assert lines == [[2, "loss/sft"], [3, *evaluated], [4, "loss/sft"], [5, *evaluated]]
    before = file_digest(folder / "policy" / "model.safetensors")
    done = run("sft", *SMALL, "num_steps=1", "seed=1", check=False)
    assert done.returncode == 1
    words = "drift: sft/policy is there already; choose another hydra.run.dir"
    assert done.stderr.replace(f"{tmp_path}/", "").splitlines() == [words]
    assert file_digest(folder / "policy" / "model.safetensors") == before


@pytest.mark.parametrize("setting", ["num_processes=2", "num_machines=2", "zero_stage=1"])
def test_more_than_one_process_is_refused(run: Run, tmp_path: Path, setting: str) -> None:
    done = run("sft", f"cluster.{setting}", "hydra.run.dir=sft", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("drift: drift.sft runs in one process; set cluster.num_processes")
    assert len((done.stdout + done.stderr).splitlines()) == 1
    assert not (tmp_path / "sft").exists()


def test_an_interrupted_run_keeps_what_it_saved(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drift.sft", *SMALL, "num_steps=100000", "eval.every=3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    metrics, limit = tmp_path / "sft" / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 6):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert output.splitlines()[-1].endswith("sft/policy")
    load_policy(tmp_path / "sft" / "policy")


def test_a_policy_that_a_kill_left_without_its_name_is_not_removed(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "run" / ".old-17-policy").mkdir(parents=True)
    (tmp_path / "run" / ".old-17-policy" / "config.json").touch()
    refused = run("sft", "hydra.run.dir=run", check=False)
    assert "policy is there already; choose another hydra.run.dir" in refused.stderr
    assert (tmp_path / "run" / "policy" / "config.json").exists()
