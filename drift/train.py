"""RL from verifiable rewards: `python -m drift.train [overrides]`."""

from drift.cli.command import run_command
from drift.cluster.launch import in_ranks
from drift.config.commands import RunConfig


def run(config: RunConfig) -> None:
    """Train, or go on where the run folder's newest checkpoint is."""
    from drift.training.run import run

    run(config)


if __name__ == "__main__":
    run_command("train", in_ranks("train", run))
