"""Settings of data: bad records, leaks between splits. Imports no torch."""

from dataclasses import dataclass
from enum import StrEnum

from drift.config.bounds import share


class OnError(StrEnum):
    refuse = "refuse"
    skip = "skip"


@dataclass
class DataConfig:
    on_error: OnError = OnError.refuse  # what to do with a bad record


@dataclass
class TrainDataConfig(DataConfig):
    # share of an evaluation set that may be in train: drift/tasks/contamination.py
    max_overlap: float = share(0.0)
