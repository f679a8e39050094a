"""Every setting, in a file for each config group; commands.py has what each command takes.

A default is written at its field or in conf/, never in the code that reads it, and the bounds of a
number at its field. Nothing here imports torch. Checks that span groups are in checks.py,
those that need the network in network_checks.py.
"""

from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from drift.config.cluster import CLUSTERS
from drift.config.commands import COMMANDS
from drift.config.curriculum import CURRICULA
from drift.config.masking import MASKINGS
from drift.config.model import MODELS
from drift.config.objective import OBJECTIVES
from drift.config.optim import OPTIMS
from drift.config.registry import Registry
from drift.config.rollout import ROLLOUTS
from drift.config.task import TASKS
from drift.config.tracking import TRACKINGS

REGISTRIES: tuple[Registry[Any], ...] = (
    MODELS,
    TASKS,
    MASKINGS,
    ROLLOUTS,
    OBJECTIVES,
    CURRICULA,
    OPTIMS,
    TRACKINGS,
    CLUSTERS,
)

GROUPS: dict[str, dict[str, type]] = {known.group: known.schemas for known in REGISTRIES}


def either(one: object, other: object) -> object:
    """The first of two values that is set and not 0."""
    return one or other


def register() -> None:
    """Put every schema into Hydra's store, under `schema/<group>/<name>`.

    And `${drift_either:a,b}`.
    """
    OmegaConf.register_new_resolver("drift_either", either, replace=True)
    store = ConfigStore.instance()
    for name, node in COMMANDS.items():
        store.store(group="schema", name=name, node=node)
    for group, schemas in GROUPS.items():
        for name, node in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=node)
