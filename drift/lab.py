"""The estimator lab: `python -m drift.lab`.

Every masking estimates a likelihood that cannot be computed; on a toy (drift/toy) it can. The lab
counts the truth, measures each masking and each masking with each objective against it, averages
over random networks, and writes lab.json, lab.md and lab.png. With
`page=docs/lab.md` it also makes that page's tables and its picture anew.
"""

from drift.cli.command import run_command
from drift.config.commands import LabConfig


def run(config: LabConfig) -> None:
    """Measure every masking and objective, and write the tables."""
    from drift.toy.report import run

    run(config)


if __name__ == "__main__":
    run_command("lab", run)
