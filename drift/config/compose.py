"""Where conf/ is, and the dataclasses behind a composed config."""

import dataclasses
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from drift.common.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())


def typed(config: DictConfig) -> Any:
    """The dataclasses behind a composed config."""
    config = config.copy()
    with open_dict(config):
        config.pop("hydra", None)
    result = OmegaConf.to_object(config)
    refuse_additions(result)
    return result


def refuse_additions(config: Any, prefix: str = "") -> None:
    """Refuse what `+group.name=value` added: no code would read it."""
    known = [field.name for field in dataclasses.fields(config)]
    settings = cast(dict[str, Any], vars(config))
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"{prefix}{name}: no such option; options here: {', '.join(known)}")
        if dataclasses.is_dataclass(value):
            refuse_additions(value, f"{prefix}{name}.")
