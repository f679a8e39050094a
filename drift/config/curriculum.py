"""Settings of the choice of prompts; re-exported by config.py. Imports no torch."""

from dataclasses import dataclass
from enum import StrEnum

from drift.config.bounds import positive, share


class PromptOrder(StrEnum):
    epoch = "epoch"  # each once in each epoch, in a random order
    informative = "informative"  # in proportion to the expected p (1 - p) of a prompt


@dataclass
class CurriculumConfig:
    order: PromptOrder = PromptOrder.epoch  # set by curriculum=NAME
    # of sampling, until prompts_per_step groups vary; 1: no dynamic sampling
    max_rounds: int = positive(1)


@dataclass
class InformativeConfig(CurriculumConfig):
    order: PromptOrder = PromptOrder.informative  # set by curriculum=NAME
    # of what a prompt's completions count, each time it is completed again
    decay: float = share(0.5)
    # added to a prompt's expected p (1 - p), which is at most 0.25
    floor: float = positive(0.02, finite=True)
