"""Run the recipes of docs/results.md for real and write its table.

scripts/run python scripts/results.py [--jobs 2] [--only NAME ...] [--seeds 0 1 2] [--table-only]
Each run is one process with one thread, so that two fit on two cores; finished runs are kept.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "outputs" / "results"
TABLE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- table: scripts/results.py -->", "<!-- end of table -->"
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


def folder_of(name: str, seed: int) -> Path:
    return FOLDER / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"


def train(name: str, seed: int) -> None:
    folder = folder_of(name, seed)
    if finished(folder):
        return
    command = [sys.executable, "-m", "drift.train", *RUNS[name], f"seed={seed}"]
    command += ["cluster.threads=1", "tracking.experiment=results", f"hydra.run.dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    print(name, seed, json.loads((folder / "summary.json").read_text())["eval"]["last"], flush=True)


def finished(folder: Path) -> bool:
    path = folder / "summary.json"
    return path.exists() and json.loads(path.read_text())["status"] == "finished"


def cell(entry: dict[str, Any]) -> str:
    low, high = entry["ci95"]
    return f"{entry['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def table() -> str:
    lines = [
        "| run | seed | first accuracy | last accuracy | gain | steps | seconds | RL only |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in RUNS:
        for folder in sorted(FOLDER.glob(f"{folder_of(name, 0).name[:-1]}?")):
            if not finished(folder):
                continue
            seed = folder.name[-1]
            summary = json.loads((folder / "summary.json").read_text())
            first, last = summary["eval"]["first"], summary["eval"]["last"]
            gain = 100 * (last["accuracy"] - first["accuracy"])
            rl_s = sum(summary["phase_s"][phase] for phase in ("rollout", "reward", "update"))
            lines.append(
                f"| {name} | {seed} | {cell(first)} | {cell(last)} | {gain:+.1f} "
                f"| {summary['steps']} | {summary['wall_s']:.0f} | {rl_s:.0f} |"
            )
    return "\n".join(lines)


def write_table() -> None:
    text = TABLE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    TABLE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table_only:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            jobs = [
                pool.submit(train, name, seed)
                for seed in arguments.seeds
                for name in arguments.only
            ]
            for job in jobs:
                job.result()
    write_table()
    print(table())


if __name__ == "__main__":
    main()
