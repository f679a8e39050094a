"""Settings of evaluation and of trace pages; re-exported by config.py."""

from dataclasses import dataclass

from drift.config.bounds import not_negative, positive


@dataclass
class EvalConfig:
    """Evaluation along a run."""

    # steps between evaluations on the validation split; 0 = at the start only
    every: int = not_negative(20)
    max_examples: int | None = positive(None)  # problems of validation and of test; null = all


@dataclass
class GridConfig:
    """Evaluation by `python -m drift.eval`."""

    max_examples: int | None = positive(None)  # problems of the split; null = all
    samples: int = positive(1)  # completions of a problem; more need rollout.temperature above 0
    # problems between two saves: what an interruption costs at most
    chunk_size: int = positive(256)
    trace_problems: int = not_negative(8)  # problems of the trace page; 0 = no page


@dataclass
class TracePagesConfig:
    """Pages that show what a step sampled and what it was trained on: traces/step_*.html."""

    every: int = not_negative(20)  # steps between pages, the first step has one; 0 = no pages
    rows: int = positive(8)  # completions of a page
