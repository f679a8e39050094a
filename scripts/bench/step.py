"""How an RL step divides into rollout, reward, update and sync; runs drift.train.

python scripts/bench/step.py                               # the tiny model, 30 seconds
python scripts/bench/step.py model=llada model.path=FOLDER model.lora.rank=8 rollout.cache=dual
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import gpu_names, machine, show

PHASES = ("rollout", "reward", "update", "sync")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="of drift.train")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.steps < 3:
        parser.error("--steps must be at least 3: the first two warm up")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "drift.train",
            f"num_steps={options.steps}",
            "tracking=off",
            "eval.every=0",
            "eval.max_examples=8",
            "checkpoint.every=0",
            f"hydra.run.dir={folder}/run",
            *options.overrides,
        ]
        subprocess.run(command, check=True)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines][2:]
    total = sum(step[f"time/{phase}_s"] for step in steps for phase in PHASES)
    row: dict[str, float] = {"seconds a step": total / len(steps)}
    for phase in PHASES:
        row[phase] = sum(step[f"time/{phase}_s"] for step in steps) / total
    for name in ("rollout/tokens_per_s", "rollout/nfe", "gap/kl"):
        row[name] = sum(step[name] for step in steps) / len(steps)
    about = {
        "machine": machine("gpu" if gpu_names() else "cpu"),
        "overrides": " ".join(options.overrides) or "none",
    }
    show("an RL step", [row], options.json, about)


if __name__ == "__main__":
    main()
