"""Commands by an interpreter of their own, as a user starts them; other tests fork them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from drift.config.compose import CONF, PACKAGE
from tests.conftest import Run
from tests.forkserver import ROOT, command, start

COMMANDS = sorted(p.stem for p in CONF.glob("*.yaml") if (PACKAGE / f"{p.stem}.py").exists())


def test_importing_drift_and_its_config_imports_no_torch() -> None:
    code = "import sys, drift, drift.config, drift.config.checks, drift.cli.preflight; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_the_same_by_a_fork(name: str, tmp_path: Path) -> None:
    alone = start(tmp_path, f"drift.{name}", "--help")
    assert alone.returncode == 0, alone.stderr
    assert "Groups" in alone.stdout or "Settings" in alone.stdout
    assert alone.stdout == command(tmp_path, f"drift.{name}", "--help").stdout
    assert list(tmp_path.iterdir()) == []


def test_a_smoke_run_is_the_same_by_a_fork(run: Run, run_alone: Run, tmp_path: Path) -> None:
    smoke = ("debug=smoke", "task.train_size=64")
    run("train", *smoke, "tracking=off", "hydra.run.dir=forked")
    done = run_alone("train", *smoke, "hydra.run.dir=alone")
    assert "held-out accuracy" in done.stdout
    rows = [(tmp_path / name / "rollouts").glob("*.jsonl") for name in ("forked", "alone")]
    forked, alone = ([path.read_text() for path in sorted(paths)] for paths in rows)
    assert forked == alone != []
    summary = json.loads((tmp_path / "alone" / "summary.json").read_text())
    assert (summary["status"], bool(summary["mlflow_run_id"])) == ("finished", True)


def test_a_fork_ends_as_an_interpreter_does(tmp_path: Path) -> None:
    """Exit codes, messages, exit handlers, and what is left in a buffer."""
    for body in (
        "print('said', end='')",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('a message')",
        "import sys; sys.exit(None)",
        "raise KeyError('lost')",
        "import atexit; atexit.register(print, 'late')",
        "import threading, time; threading.Thread(target=lambda: print(time.sleep(0.1))).start()",
        "import os, sys; print(os.getcwd(), sys.argv, sys.path[0], __name__, __spec__.name)",
        "import sys; print(sys.stdin.read(), sys.stdout.isatty())",
    ):
        (tmp_path / "own.py").write_text(body)
        alone = start(tmp_path, "own", "a", "b=c", stdin=b"given")
        forked = command(tmp_path, "own", "a", "b=c", stdin=b"given")
        assert (forked.returncode, forked.stdout) == (alone.returncode, alone.stdout), body
        assert forked.stderr.splitlines()[-1:] == alone.stderr.splitlines()[-1:], body
