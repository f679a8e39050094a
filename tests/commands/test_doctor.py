"""The doctor on the embedded checkpoints, healthy and spoilt."""

import json
import shutil
from pathlib import Path

from tests.conftest import ROOT, Run


def test_the_command_prints_a_verdict_a_line_and_exits_with_one(run: Run, tmp_path: Path) -> None:
    shown = run("doctor", "model.dtype=bfloat16", "task.prompt='{numbers}={target} [/b]'").stdout
    assert shown.count("ok") >= 8
    assert " [/b]<" in shown  # no markup
    folder = tmp_path / "spoilt"
    shutil.copytree(ROOT / "data" / "tiny-countdown", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mask_token_id": 0}))
    done = run("doctor", f"model.path={folder}", check=False)
    assert done.returncode == 1
    failed = [line.split("│")[1].strip() for line in done.stdout.splitlines() if "FAILED" in line]
    assert "special tokens" in failed


def test_too_little_memory_is_said_with_the_setting_to_lower(run: Run) -> None:
    done = run("doctor", "rollout.max_rows=50000000", check=False)
    assert done.returncode == 1
    row = " ".join(done.stdout.split("rollout memory")[1].split("training memory")[0].split())
    assert "FAILED" in row
    assert "lower" in row
    assert "rollout.max_rows" in row
