"""How a command starts: Hydra composes, one line says what is wrong, dataclasses go to the code."""

import dataclasses
import difflib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from drift.config import BaseConfig, register
from drift.errors import DriftError

PACKAGE = Path(__file__).resolve().parent
CONF = next(p for p in (PACKAGE / "conf", PACKAGE.parent / "conf") if p.is_dir())


def typed(config: DictConfig) -> Any:
    """The dataclasses behind a composed config."""
    config = config.copy()
    with open_dict(config):
        config.pop("hydra", None)
    return OmegaConf.to_object(config)


def explain(error: BaseException) -> str:
    """One line for a user: the key, the value, what is allowed."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for link in chain:
        if isinstance(link, DriftError):
            return str(link)
    for link in chain:
        if isinstance(link, (ConfigKeyError, ConfigAttributeError)) and link.full_key:
            return unknown_option(link)
    for link in chain:
        if isinstance(link, MissingConfigException):
            return unknown_choice(link)
    for link in reversed(chain):
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            return f"{link.full_key}: {first_line(link)}"
    return first_line(error)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def unknown_option(error: OmegaConfBaseException) -> str:
    """`rollout.gen_lenght: no such option; did you mean gen_length; options: ...`"""
    group, _, name = str(error.full_key).rpartition(".")
    schema = error.object_type
    allowed: list[str] = []
    if isinstance(schema, type) and dataclasses.is_dataclass(schema):
        allowed = [field.name for field in dataclasses.fields(schema)]
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean {group + '.' if group else ''}{near[0]}" if near else ""
    known = f"; options here: {', '.join(allowed)}" if allowed else ""
    return f"{error.full_key}: no such option{hint}{known}"


def unknown_choice(error: MissingConfigException) -> str:
    """`model=lada: no such option of the group; did you mean llada; options: dream, llada, tiny`"""
    choice = str(error.missing_cfg_file or "")
    group, _, name = choice.rpartition("/")
    options = sorted(error.options or [])
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"; did you mean {near[0]}" if near else ""
    return f"{group}={name}: no such option of the group{hint}; options: {', '.join(options)}"


def run_command(name: str, run: Callable[[Any], None]) -> None:
    """Compose conf/<name>.yaml with the command line and call `run` with the typed config.

    Exit codes: 0, 1 for a user's mistake (one line, no traceback), 2 for a malformed override.
    """
    register()
    logging.captureWarnings(True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; `explain` prints

    def job(config: DictConfig) -> None:
        typed_config: BaseConfig = typed(config)
        typed_config.output_dir = HydraConfig.get().runtime.output_dir
        try:
            run(typed_config)
        except DriftError as error:
            remove_if_empty(Path(typed_config.output_dir))
            sys.exit(f"drift: {error}")

    entry = hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)
    try:
        entry()
    except OverrideParseException as error:
        print(f"drift: {explain(error)}; write overrides as key=value", file=sys.stderr)
        sys.exit(2)
    except (DriftError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"drift: {explain(error)}")


def remove_if_empty(folder: Path) -> None:
    """Leave no empty run folder behind a mistake."""
    for path in (folder, folder.parent):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
