"""Run the recipes of docs/results.md for real and write its tables.

scripts/run python scripts/results.py [--jobs 2] [--only NAME ...] [--seeds 0 1 2] [--table-only]
scripts/run python scripts/results.py --presets [...]
Each run is one process with one thread, so that two fit on two cores; finished runs are kept. A row
of the table is made of the runs that are here; rows without one stay as they are.
--presets: every preset for the same time of training, and nothing else changed.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # found without being installed
from drift.comparison.records import mean_accuracy

FOLDER = ROOT / "outputs" / "results"
TABLE = ROOT / "docs" / "results.md"
PRESETS = {
    "reinforce": "objective=reinforce",
    **{name: f"objective={name}" for name in ("ppo_clip", "grpo", "dr_grpo", "rloo", "gspo")},
    **{
        name: f"experiment={name}"
        for name in (
            "diffu_grpo",
            "coupled_grpo",
            "wd1",
            "spg",
            "espo",
            "stable_drl",
            "bgpo",
            "tracerl",
            "tracerl_value",
        )
    },
}
TRAINING_S = {"countdown": 30, "sudoku": 45}  # of a preset's run
Rows = dict[tuple[str, str], str]  # of a table, by their first two cells
COLLAPSE = 0.1  # a run that ends so far below its best validation accuracy
RUNS: dict[str, tuple[str, ...]] = {
    "countdown, sequential": (),
    "countdown, all": ("masking=all",),
    "countdown, random": ("masking=random",),
    "countdown, coupled": ("masking=coupled",),
    "countdown, tiny_dream": ("model=tiny_dream",),
    "sudoku, sequential": ("task=sudoku",),
    "sudoku, tiny_dream": ("task=sudoku", "model=tiny_dream"),
    "arithmetic, sequential": ("task=arithmetic",),
    "one_line_code, sequential": ("task=one_line_code", "optim.lr=5e-5"),
    "one_line_code, shuffled rewards": (
        "task=one_line_code",
        "optim.lr=5e-5",
        "objective.reward_control=shuffle",
    ),
    "countdown, shuffled rewards": ("objective.reward_control=shuffle",),
    "arithmetic, shuffled rewards": ("task=arithmetic", "objective.reward_control=shuffle"),
}
PRESET_RUNS: dict[str, tuple[str, ...]] = {
    f"{task}, {name}": (
        f"task={task}",
        word,
        "num_steps=100000",
        f"max_training_s={seconds}",
        "traces.every=0",
    )
    for task, seconds in TRAINING_S.items()
    for name, word in PRESETS.items()
}


def folder_of(name: str, seed: int) -> Path:
    return FOLDER / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"


def train(name: str, seed: int) -> None:
    folder = folder_of(name, seed)
    if finished(folder):
        return
    command = [sys.executable, "-m", "drift.train", *(RUNS | PRESET_RUNS)[name], f"seed={seed}"]
    command += ["cluster.threads=1", "tracking.experiment=results", f"hydra.run.dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    print(name, seed, json.loads((folder / "summary.json").read_text())["eval"]["last"], flush=True)


def finished(folder: Path) -> bool:
    path = folder / "summary.json"
    return path.exists() and json.loads(path.read_text())["status"] == "finished"


def cell(entry: dict[str, Any]) -> str:
    low, high = entry["ci95"]
    return f"{entry['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def run_rows() -> Rows:
    """A row for each finished run."""
    rows: Rows = {}
    for name in RUNS:
        for summary in summaries_of(name):
            first, last = summary["eval"]["first"], summary["eval"]["last"]
            gain = 100 * (last["accuracy"] - first["accuracy"])
            rl_s = sum(summary["phase_s"][phase] for phase in ("rollout", "reward", "update"))
            rows[name, str(summary["seed"])] = (
                f"| {name} | {summary['seed']} | {cell(first)} | {cell(last)} | {gain:+.1f} "
                f"| {summary['steps']} | {summary['wall_s']:.0f} | {rl_s:.0f} |"
            )
    return rows


def summaries_of(name: str) -> list[dict[str, Any]]:
    """Of the finished runs of a recipe, by seed."""
    stem = folder_of(name, 0).name.removesuffix("0")
    ends = [path.name.removeprefix(stem) for path in FOLDER.glob(f"{stem}*")]
    folders = [folder_of(name, seed) for seed in sorted(int(end) for end in ends if end.isdigit())]
    return [json.loads((f / "summary.json").read_text()) for f in folders if finished(f)]


def preset_rows() -> Rows:
    """A row for each task and preset."""
    rows: Rows = {}
    for task in TRAINING_S:
        for name in PRESETS:
            if not (found := summaries_of(f"{task}, {name}")):
                continue
            last = mean_accuracy([summary["eval"]["last"] for summary in found])
            best = [summary["eval"]["best"]["accuracy"] for summary in found]
            each = [summary["eval"]["last"]["accuracy"] for summary in found]
            fallen = sum(high - end > COLLAPSE for high, end in zip(best, each, strict=True))
            steps = sum(summary["steps"] for summary in found) / len(found)
            rows[task, name] = (
                f"| {task} | {name} | {last} | {', '.join(f'{value:.3f}' for value in each)} "
                f"| {sum(best) / len(best):.3f}{f', then {fallen} fell' if fallen else ''} "
                f"| {steps:.0f} |"
            )
    return rows


def cells_of(row: str) -> list[str]:
    return [text.strip() for text in row.strip("|").split("|")]


def by_recipe(row: str) -> tuple[int, int]:
    name, seed, *_ = cells_of(row)
    return ([*RUNS].index(name) if name in RUNS else len(RUNS)), int(seed)


def by_accuracy(row: str) -> tuple[int, float]:
    """A task's presets, the best mean accuracy first."""
    task, _, last, *_ = cells_of(row)
    return [*TRAINING_S].index(task), -float(last.split()[0])


def update_table(name: str, new: Rows) -> str:
    """Put rows into a table of docs/results.md; those without a run here stay as they are.

    Args:
        name: what stands behind the script's name in the table's mark.
        new: take the place of the rows of the same run.

    Returns:
        The table.
    """
    begin, end = f"<!-- table: scripts/results.py{name} -->\n", "<!-- end of table -->"
    before, rest = TABLE.read_text(encoding="utf-8").split(begin)
    old, after = rest.split(end, 1)
    head, rule, *rows = old.splitlines()
    known: Rows = {(cells_of(row)[0], cells_of(row)[1]): row for row in rows}
    place = by_accuracy if name else by_recipe
    content = "\n".join([head, rule, *sorted((known | new).values(), key=place)])
    TABLE.write_text(f"{before}{begin}{content}\n{end}{after}", encoding="utf-8")
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--presets", action="store_true")
    parser.add_argument("--only", nargs="*", choices=[*RUNS, *PRESET_RUNS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    names = arguments.only or list(PRESET_RUNS if arguments.presets else RUNS)
    if not arguments.table_only:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            jobs = [pool.submit(train, name, seed) for seed in arguments.seeds for name in names]
            for job in jobs:
                job.result()
    name, rows = (" --presets", preset_rows()) if arguments.presets else ("", run_rows())
    print(update_table(name, rows))


if __name__ == "__main__":
    main()
