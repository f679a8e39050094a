"""A public data set in the data format: `python -m drift.prepare dataset=gsm8k [source=PATH]`.

Writes output/{train,validation,test}.jsonl, as far as the set has them, and manifest.json. Where
there is a training set without a validation set, one is held out from it (never from test); what
of train is also in test, in validation or in a file of `exclude` (contamination.py says when two
problems are the same) is left out of train.
"""

from drift.cli.command import run_command
from drift.config.commands import PrepareConfig


def run(config: PrepareConfig) -> None:
    """Convert, split and write a data set."""
    from drift.datasets.prepare import run

    run(config)


if __name__ == "__main__":
    run_command("prepare", run)
