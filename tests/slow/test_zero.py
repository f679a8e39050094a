"""ZeRO-3 on two CPU ranks, for real."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drift.policy.loading import load_policy
from tests.conftest import ROOT, Run

NAMES = ["tiny-countdown", "tiny_dream-countdown"]


def by_two_ranks(script: str, out: Path, *arguments: object) -> list[Any]:
    """What each rank of a script of this folder wrote."""
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(ROOT / "tests" / script), *map(str, arguments), str(out),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_the_samplers_of_an_adapter_are_the_policy_bit_for_bit(name: str, tmp_path: Path) -> None:
    settings = ROOT / "tests" / "strict_zero.json"
    for found in by_two_ranks("zero_sampler.py", tmp_path, ROOT / "data" / name, settings):
        assert found == {"changed": True, "Replica": True, "Gathered": True}


@pytest.mark.parametrize("stage", [1, 2])
def test_many_bfloat16_micro_batches_add_up(stage: int, tmp_path: Path) -> None:
    """Added up in bfloat16 themselves, 400 equal parts lost 6 % of their sum; here are 512."""
    model = ROOT / "data" / "tiny-countdown"
    for found in by_two_ranks("zero_gradients.py", tmp_path, model, stage):
        assert found["parts"] == pytest.approx(found["whole"], rel=1e-6)
        assert found["clipped"] == pytest.approx(0.5, rel=1e-3)


def test_ranks_may_score_in_different_numbers_of_chunks(tmp_path: Path) -> None:
    """The head's weight is gathered once a forward, however many chunks of logits a rank makes."""
    settings = ROOT / "tests" / "strict_zero.json"
    model = ROOT / "data" / "tiny-countdown"
    first, second = by_two_ranks("zero_chunks.py", tmp_path, model, settings)
    assert first == second
    assert all(norm > 0 for norm in first)


@pytest.mark.parametrize(("name", "float16"), [(NAMES[0], 0), (NAMES[0], 1), (NAMES[1], 0)])
def test_each_rank_loads_its_part_alone(name: str, float16: int, tmp_path: Path) -> None:
    """In float32, also on a CPU of which DeepSpeed believes that float16 is not its own."""
    largest = max(p.numel() for p in load_policy(ROOT / "data" / name).parameters())
    for found in by_two_ranks("zero_load.py", tmp_path, ROOT / "data" / name, float16):
        assert found["dtypes"] == ["torch.float32"]
        assert found["same"]
        assert found["held"] <= 0.51 * found["total"]
        assert found["largest"] <= largest  # never the whole model, one tensor at a time


def test_a_precision_of_deepspeeds_own_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"bf16": {"enabled": true}}')
    done = run(
        "train", "debug=smoke", "cluster=cpu", "cluster.deepspeed=ds.json", "tracking=off",
        "task.train_size=200", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    for part in ("bfloat16", "model.dtype", "float32", "bf16.enabled", "cluster.deepspeed"):
        assert part in said
