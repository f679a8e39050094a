"""Runs beside each other: `python -m drift.compare sweep=FOLDER` or `experiment=NAME`.

Prints a table and writes a report: report.html (one file, no network), PNG sheets, table.md and
results.json. Runs that differ in their seed alone are one setting, shown with 95 % intervals.
"""

import sys

from drift.cli.command import run_command
from drift.config.commands import CompareConfig


def run(config: CompareConfig) -> None:
    """Compare the runs of a sweep or of an MLflow experiment."""
    from drift.comparison.report import run

    run(config)


def as_overrides(words: list[str]) -> list[str]:
    """`experiment=NAME` as Hydra has to read it: `experiment` is a config group of training."""
    keys = [word.partition("=")[0] for word in words]
    if "sweep" in keys and "experiment" in keys:
        sys.exit("drift: give sweep=FOLDER or experiment=NAME, not both")
    return [
        f"tracking.{word}" if key == "experiment" else word
        for key, word in zip(keys, words, strict=True)
    ]


if __name__ == "__main__":
    sys.argv[1:] = as_overrides(sys.argv[1:])
    run_command("compare", run)
