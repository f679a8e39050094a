"""A task of one's own: the example of the docs as it stands there, entry points, and mistakes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, Run, read_lines
from tests.shown import commands_of
from tests.unit.tasks.test_own_task import PAGE, block, guide as guide

TINY = f"model.path={ROOT}/data/tiny-countdown"


def in_a_shell(command: str, folder: Path) -> None:
    """A line as somebody types it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=True, timeout=300)


def test_the_guides_commands_train_and_grade(guide: Path) -> None:
    lines = [{"bits": "0110", "completion": f"\\boxed{{{n}}}"} for n in (2, 3)]
    (guide / "completions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with_yaml, score, without = (shown.text for shown in commands_of(PAGE))
    for command, folder, size in ((with_yaml, guide / "yaml", 12), (without, guide / "none", 16)):
        in_a_shell(
            f"{command} debug=smoke num_steps=2 task.train_size=64 tracking=off "
            f"hydra.run.dir={folder}", guide,
        )  # fmt: skip
        assert json.loads((folder / "summary.json").read_text())["task"] == "ones"
        assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [0, 1, 2]
        manifest = json.loads((folder / "manifest.json").read_text())
        assert re.search(rf"\|>[01]{{{size}}}=<\|", manifest["first_prompt"])
    in_a_shell(score, guide)
    assert [line["verdict"] for line in read_lines(guide / "graded.jsonl")] == ["pass", "wrong"]


def test_a_reward_that_is_not_finite_ends_a_run_in_one_line(guide: Path, run: Run) -> None:
    code = block("python").replace("reward=", 'reward=float("nan") * ')
    (guide / "ones.py").write_text(code)
    done = run("train", "--config-dir", "conf", "task=ones", TINY, "tracking=off", check=False)
    assert done.returncode == 1
    line = r"drift: task=ones: the score of ones:[01]{12}: reward=nan is not a finite number\n"
    assert re.fullmatch(line, done.stderr)
