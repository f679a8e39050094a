"""Settings of data: bad records, leaks between splits, public data sets. Imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from drift.config.bounds import share


class OnError(StrEnum):
    refuse = "refuse"
    skip = "skip"


class Dataset(StrEnum):
    gsm8k = "gsm8k"
    math = "math"
    math500 = "math500"
    mbpp = "mbpp"
    humaneval = "humaneval"
    countdown = "countdown"
    sudoku = "sudoku"


@dataclass
class DataConfig:
    on_error: OnError = OnError.refuse  # what to do with a bad record


@dataclass
class TrainDataConfig(DataConfig):
    # share of an evaluation set that may be in train: contamination.py
    max_overlap: float = share(0.0)


@dataclass
class PrepareConfig:
    """`python -m drift.prepare`."""

    dataset: Dataset = MISSING  # which one: data/README.md has their sources
    source: str | None = None  # the raw file or a folder of them; null = from the hub
    output: str = MISSING  # a folder
    exclude: list[str] = field(default_factory=list[str])  # prepared files: not to be in train
    data: DataConfig = field(default_factory=DataConfig)
    output_dir: str = ""  # as in BaseConfig
