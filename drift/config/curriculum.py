"""Settings of the choice of prompts. Imports no torch."""

from dataclasses import dataclass

from drift.config.bounds import positive, share
from drift.config.registry import Registry


@dataclass
class CurriculumConfig:
    # of sampling, until prompts_per_step groups vary; 1: no dynamic sampling
    max_rounds: int = positive(1)


@dataclass
class EpochConfig(CurriculumConfig):
    """Each prompt once in each epoch, in a random order."""


@dataclass
class InformativeConfig(CurriculumConfig):
    """Prompts are drawn in proportion to the expected p (1 - p), p their pass rate."""

    # of what a prompt's completions count, each time it is completed again
    decay: float = share(0.5)
    # added to a prompt's expected p (1 - p), which is at most 0.25
    floor: float = positive(0.02, finite=True)


CURRICULA = Registry[CurriculumConfig](
    "curriculum", {"epoch": EpochConfig, "informative": InformativeConfig}
)
