"""What a run is said to need: counted by other means, or by hand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from drift.config.model import Dtype
from tests.conftest import ROOT, Run


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(1, Dtype.bfloat16), (2, Dtype.bfloat16), (3, Dtype.bfloat16), (3, Dtype.float32)],
)
def test_a_rank_of_two_holds_what_is_said(stage: int, dtype: Dtype, tmp_path: Path) -> None:
    settings = tmp_path / "deepspeed.json"
    eager = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance")
    strict = {f"stage3_{name}": 0 for name in (*eager, "prefetch_bucket_size")}
    settings.write_text(json.dumps({"zero_optimization": strict}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node=2", ROOT / "tests/held.py", str(stage), dtype, settings],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["held"] == pytest.approx(sum(found["said"].values()), rel=0.03)


def test_the_tables_of_the_docs_are_what_the_command_prints(run: Run) -> None:
    """Every `python -m drift.plan model=... task=math rollout...` of docs/scaling.md."""
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    blocks = list(re.finditer(r"```bash\npython -m drift.(plan .*?)\n```\n", text, flags=re.S))
    assert len(blocks) == 11
    for block in blocks:
        done = run(*block[1].replace("\\\n", " ").split())
        printed = "\n".join(line.rstrip() for line in done.stdout.splitlines())
        assert text[block.end() :].strip().startswith(printed), block[1]
