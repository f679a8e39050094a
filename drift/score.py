"""Offline grading: `python -m drift.score task=sudoku input=completions.jsonl output=graded.jsonl`.

Each input record has the data fields of the task and `completion`. Each output line, in the same
order: `line` (of the record in the input; in a JSON array its number), its `id` and `task_id` if it
has them, and the fields of a `Score`; an output that ends in .gz is packed. With
data.on_error=skip a bad record has the verdict `bad_record`, reward 0 and a `reason`; it counts in
none of the summary's figures but its own.
"""

from drift.cli.command import run_command
from drift.config.commands import ScoreConfig


def run(config: ScoreConfig) -> None:
    """Grade `input` into `output`."""
    from drift.tasks.score_file import run

    run(config)


if __name__ == "__main__":
    run_command("score", run)
