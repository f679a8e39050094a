"""Shipped configs, each composed once: Hydra takes 0.15 s for one."""

import functools

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from drift.config import register
from drift.config.compose import CONF

register()


def composed(*overrides: str, config: str = "train") -> DictConfig:
    """A copy, so that a test may change it."""
    return _composed(overrides, config).copy()


@functools.cache
def _composed(overrides: tuple[str, ...], config: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, overrides=list(overrides))
