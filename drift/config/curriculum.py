"""Settings of the choice of prompts; re-exported by config.py. Imports no torch."""

from dataclasses import dataclass
from enum import StrEnum


class PromptOrder(StrEnum):
    epoch = "epoch"  # each once in each epoch, in a random order
    informative = "informative"  # in proportion to the expected p (1 - p) of a prompt


@dataclass
class CurriculumConfig:
    order: PromptOrder = PromptOrder.epoch  # set by curriculum=NAME
    max_rounds: int = 1  # of sampling, until prompts_per_step groups vary; 1: no dynamic sampling


@dataclass
class InformativeConfig(CurriculumConfig):
    order: PromptOrder = PromptOrder.informative  # set by curriculum=NAME
    decay: float = 0.5  # of what a prompt's completions count, each time it is completed again
    floor: float = 0.02  # added to a prompt's expected p (1 - p), which is at most 0.25
