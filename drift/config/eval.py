"""Settings of evaluation and of trace pages; re-exported by config.py."""

from dataclasses import dataclass


@dataclass
class EvalConfig:
    """Evaluation along a run."""

    every: int = 20  # steps between evaluations on the validation split; 0 = at the start only
    max_examples: int | None = None  # problems of validation and of test; null = all


@dataclass
class GridConfig:
    """Evaluation by `python -m drift.eval`."""

    max_examples: int | None = None  # problems of the split; null = all
    samples: int = 1  # completions of a problem; more need rollout.temperature above 0
    chunk_size: int = 256  # problems between two saves: what an interruption costs at most
    trace_problems: int = 8  # problems of the trace page; 0 = no page


@dataclass
class TracePagesConfig:
    """Pages that show what a step sampled and what it was trained on: traces/step_*.html."""

    every: int = 20  # steps between pages, the first step has one; 0 = no pages
    rows: int = 8  # completions of a page
