"""What ends a run that stands still or is left alone, and what does not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.commands.test_own_task import TINY
from tests.conftest import ROOT
from tests.unit.tasks.test_own_task import block

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SHELL = """
{python} -m drift.train debug=smoke num_steps=100000 max_training_s=4 eval.every=0 tracking=off \
    task.train_size=200 hydra.run.dir=run > out 2>&1 &
until [ "$(cat run/metrics.jsonl | wc -l)" -gt 0 ]; do sleep 0.1; done 2> /dev/null
"""
STILL = """
import sys, time
from drift.common import terminal
from drift.cluster.watchdog import Watchdog
watchdog = Watchdog(1.0, 0)
watchdog.start()
time.sleep(float(sys.argv[1]))
terminal.beat()
time.sleep(5)  # it looks again 5 s after it has spoken
watchdog.stop()
"""


def wait_for(condition: Any, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_outlives_the_shell_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "go.sh"
    script.write_text(SHELL.format(python=sys.executable))
    subprocess.run(["bash", script], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=200)
    summary = tmp_path / "run" / "summary.json"
    wait_for(lambda: summary.exists() and json.loads(summary.read_text())["status"] != "running")
    assert json.loads(summary.read_text())["status"] == "finished"


@pytest.mark.parametrize(("seconds", "code"), [(4, 0), (60, 1)])
def test_what_goes_on_while_the_stacks_are_written_is_not_ended(seconds: int, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", STILL, str(seconds)], env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=200)  # fmt: skip
    assert "drift: rank 0: nothing has happened for" in done.stderr
    assert "most recent call first" in done.stderr
    assert ("goes on after all in the start" in done.stderr) == (code == 0)
    assert done.returncode == code


@pytest.fixture
def evaluation(tmp_path: Path) -> list[str]:
    """An evaluation whose grader hangs."""
    hang = "        time.sleep(600)\n        answer = last_boxed"
    code = block("python").replace("        answer = last_boxed", hang)
    (tmp_path / "ones.py").write_text("import time\n" + code)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "ones.yaml").write_text(block("yaml"))
    command = "-m drift.eval --config-dir conf task=ones eval.max_examples=4 tracking=off"
    return [sys.executable, *command.split(), TINY, "cluster.threads=1", "hydra.run.dir=run"]


def test_an_evaluation_that_stands_still_is_ended(evaluation: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*evaluation, "cluster.timeout_s=10"], cwd=tmp_path, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=200)  # fmt: skip
    assert done.returncode == 1
    assert "(cluster.timeout_s) in the evaluation of " in done.stderr
    assert 'ones.py", line' in done.stderr


def test_an_evaluation_that_is_killed_leaves_no_ranks_behind(
    evaluation: list[str], tmp_path: Path
) -> None:
    process = subprocess.Popen([*evaluation, "cluster.num_processes=2"], cwd=tmp_path,
                               env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)  # fmt: skip
    wait_for(lambda: list((tmp_path / "run").glob("cells/*/protocol.json")))
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks) >= 2
    process.send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs(ranks, timeout=60)
    for rank in left:
        rank.kill()
    assert not left
    assert "the process that started it is gone; it ends in" in process.communicate()[1]
