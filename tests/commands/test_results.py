"""scripts/results.py: the tables of docs/results.md where a checkout has only some of the runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

EVAL = {"accuracy": 0.5, "n": 1000, "ci95": [0.469, 0.531]}
SUMMARY = {
    "status": "finished", "steps": 80, "wall_s": 60.0,
    "eval": {"first": EVAL, "last": EVAL, "best": EVAL},
    "phase_s": {"rollout": 20.0, "reward": 1.0, "update": 30.0},
}  # fmt: skip


def rows(folder: Path, *words: str) -> list[str]:
    """The tables' lines after `--table-only`."""
    subprocess.run(
        [sys.executable, "scripts/results.py", "--table-only", *words], cwd=folder, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
    )  # fmt: skip
    return table_lines(folder)


def table_lines(folder: Path) -> list[str]:
    text = (folder / "docs" / "results.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("|")]


def test_rows_without_a_run_here_stay(tmp_path: Path) -> None:
    for name in ("scripts/results.py", "docs/results.md"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    published = table_lines(tmp_path)
    assert sorted(rows(tmp_path)) == sorted(rows(tmp_path, "--presets")) == sorted(published)

    for name, seed in (("countdown-all", 1), ("countdown-all", 10), ("countdown-grpo", 0)):
        folder = tmp_path / "outputs" / "results" / f"{name}-{seed}"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(SUMMARY | {"seed": seed}))
    rows(tmp_path)
    found = rows(tmp_path, "--presets")
    result = "0.500 [0.469, 0.531] | 0.500 [0.469, 0.531] | +0.0 | 80 | 60 | 51 |"
    runs = [f"| countdown, all | {seed} | {result}" for seed in (1, 10)]
    grpo = "| countdown | grpo | 0.500 [0.469, 0.531] | 0.500 | 0.500 | 80 |"
    replaced = ("| countdown, all | 1 |", "| countdown | grpo |")
    kept = [line for line in published if not line.startswith(replaced)]
    assert sorted(found) == sorted([*kept, *runs, grpo])
    of_recipe = [line for line in found if line.startswith("| countdown, all |")]
    assert [line.split("|")[2].strip() for line in of_recipe] == ["0", "1", "2", "10"]
    presets = [line for line in found if line.startswith("| countdown | ")]
    accuracies = [float(line.split("|")[3].split()[0]) for line in presets]
    assert accuracies == sorted(accuracies, reverse=True)
