"""Settings of tracking, and of the commands that read what was tracked; imports no torch."""

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING

from drift.config.registry import Registry


class WandbMode(StrEnum):
    offline = "offline"  # files in the run's folder, for `wandb sync`
    online = "online"  # the server


@dataclass
class TrackingConfig:
    """Where a run's numbers go besides its folder."""


@dataclass
class MlflowConfig(TrackingConfig):
    uri: str = "sqlite:///outputs/mlflow.db"  # a SQLite file, a server's http address, a database
    experiment: str = "drift"  # MLflow's name for runs that belong together
    system_metrics: bool = True  # CPU, memory, disk, network, GPU every ten seconds


@dataclass
class WandbConfig(TrackingConfig):
    project: str = "drift"  # of Weights & Biases
    entity: str | None = None  # a team; null = your own
    mode: WandbMode = WandbMode.offline  # where the numbers go at once


@dataclass
class OffConfig(TrackingConfig):
    """Nowhere else."""


TRACKINGS = Registry[TrackingConfig](
    "tracking", {"mlflow": MlflowConfig, "wandb": WandbConfig, "off": OffConfig}
)


@dataclass
class TrackConfig:
    """`python -m drift.track sync FOLDER`."""

    folder: str = MISSING  # of a run, or of several, as of a sweep
    tracking: TrackingConfig | None = None  # null = where each run's own settings say
    output_dir: str = ""  # as in BaseConfig


@dataclass
class CompareConfig:
    """`python -m drift.compare`."""

    tracking: TrackingConfig = MISSING  # without `sweep`: the MLflow experiment to read
    sweep: str | None = None  # a sweep's folder
    output: str | None = None  # a folder; null = compare/ in the sweep's, or outputs/compare/NAME
    output_dir: str = ""  # as in BaseConfig
