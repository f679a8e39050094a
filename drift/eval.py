"""Evaluation of several checkpoints: `python -m drift.eval checkpoints=[a,b] task=countdown`.

With `-m` over tasks and lengths it is a grid with one table of results (docs/evaluation.md).
"""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from drift.cli.command import run_command
from drift.cluster.launch import in_ranks
from drift.config.commands import EvalRunConfig


def run(config: EvalRunConfig) -> None:
    """Evaluate every checkpoint under one protocol."""
    from drift.evals.run import run

    run(config)


def start(config: EvalRunConfig) -> None:
    """Choose where the results go, which the jobs of a sweep share, and run."""
    if config.results is None and HydraConfig.get().mode == RunMode.MULTIRUN:
        config.results = HydraConfig.get().sweep.dir
    in_ranks("eval", run)(config)


if __name__ == "__main__":
    run_command("eval", start)
