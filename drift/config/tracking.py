"""Settings of tracking: where a run's numbers go. Imports no torch."""

from dataclasses import dataclass
from enum import StrEnum

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
