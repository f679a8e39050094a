"""`python -m drift.eval`: what it writes, and what an interruption costs."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.test_eval import FEW, cells, results
from tests.conftest import Run, read_lines
from tests.forkserver import environment
from tests.unit.evals.test_eval import TINY

SAMPLED = ("eval.samples=4", "rollout.temperature=1.5", "eval.chunk_size=5", "model.path=" + TINY)


def completions(folder: Path) -> bytes:
    """Every completion of the only cell."""
    (cell,) = cells(folder)
    return (cell / "completions.jsonl").read_bytes()


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "drift.eval", *FEW, *overrides]


def test_an_interrupted_cell_goes_on_at_its_last_whole_chunk(run: Run, tmp_path: Path) -> None:
    settings = ("eval.samples=2", "rollout.temperature=1", "eval.max_examples=600",
                "eval.chunk_size=20", f"model.path={TINY}")  # fmt: skip
    process = subprocess.Popen(
        command(*settings, "hydra.run.dir=killed"), cwd=tmp_path, env=environment(),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not cells(tmp_path / "killed"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (cell,) = cells(tmp_path / "killed")
    before = json.loads((cell / "cell.json").read_text())
    assert 0 < before["done"] < 600
    assert before["done"] % 20 == 0
    with (cell / "completions.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # what a kill leaves of a chunk
    kept = (cell / "completions.jsonl").read_bytes()[: before["size"]]
    run("eval", *FEW, *settings, "hydra.run.dir=killed")
    run("eval", *FEW, *settings, "hydra.run.dir=whole")
    assert completions(tmp_path / "killed") == completions(tmp_path / "whole")
    assert completions(tmp_path / "killed").startswith(kept)
    mine, theirs = (results(tmp_path / name)[0]["cells"][0] for name in ("killed", "whole"))
    assert mine["accuracy"] == theirs["accuracy"]
    assert mine["pass_at"] == theirs["pass_at"]
    assert mine["decode_s"] > before["decode_s"] > 0


def test_a_full_disk_is_one_line_and_no_completion_is_lost(run: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    settings = ("tracking=off", "eval.max_examples=600", "eval.chunk_size=20",
                "eval.trace_problems=1", f"hydra.run.dir={disk}/ev")  # fmt: skip
    try:
        done = run("eval", *settings, check=False)
        assert done.returncode == 1
        assert done.stderr.endswith("the same command goes on behind it\n")
        assert "completions.jsonl: No space left on device" in done.stderr
        (cell,) = cells(disk / "ev")
        known = json.loads((cell / "cell.json").read_text())
        assert 0 < known["done"] < 600
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        run("eval", *settings)
        assert completions(disk / "ev").count(b"\n") == results(disk / "ev")[0]["cells"][0]["n"]
        run("eval", *settings, "eval.chunk_size=256", "hydra.run.dir=whole")
        assert completions(disk / "ev") == completions(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_ranks_find_what_one_finds_in_chunks_of_any_size(run: Run, tmp_path: Path) -> None:
    run("eval", *FEW, *SAMPLED, "hydra.run.dir=one")
    run("eval", *FEW, *SAMPLED, "cluster.num_processes=2", "cluster.threads=1", "hydra.run.dir=two")
    run("eval", *FEW, *SAMPLED, "eval.chunk_size=256", "rollout.max_rows=3", "hydra.run.dir=whole")
    assert completions(tmp_path / "one") == completions(tmp_path / "two")
    assert completions(tmp_path / "one") == completions(tmp_path / "whole")
    drawn = {
        row["completion"] for row in read_lines(cells(tmp_path / "one")[0] / "completions.jsonl")
    }
    assert len(drawn) > 21  # the samples of a problem differ
