"""What the folder of a run may be resumed with."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from drift.cluster.engine import Engine
from drift.common.errors import CheckpointError, ConfigError
from drift.common.files import read_json
from drift.config.commands import RunConfig
from drift.runs import checkpoints
from drift.runs.differences import BOOKKEEPING, flat, flat_settings
from drift.runs.manifest import data_digests, settings_of
from drift.training.trainer import Trainer

log = logging.getLogger("drift")

Resumed = tuple[Path, dict[str, Any]]  # a checkpoint's folder and its state
AUTOMATIC = ("auto", "never")  # values of `resume` that are no folder
FREE = (  # settings of a run that may change on its way: nothing learns by them, or it only goes on
    *BOOKKEEPING,
    "num_steps",
    "max_training_s",
    "resume",
    "output_dir",
    "tracking",
    "rollout.max_rows",
    "optim.tokens_per_forward",
)


def digests_of(trainer: Trainer) -> dict[str, Any]:
    return data_digests({s.value: p.examples for s, p in trainer.problems.items()})


def flat_data(digests: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of the data beside flat settings."""
    return dict(flat(digests, "data."))


def changes(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What the run of this folder had otherwise, data last: `{"optim.lr": 0.0002}` is how it was.

    Args:
        folder: of the run, with what was started there before, if anything.
        now: flat settings, and digests of the data under `data`.
    """
    if not (folder / "manifest.json").exists():
        return {}
    settings: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    before = flat_settings(settings) | flat_data(read_json(folder / "manifest.json")["data"])
    keys = sorted(before.keys() | now.keys(), key=lambda key: (key.startswith("data."), key))
    return {key: before.get(key) for key in keys if before.get(key) != now.get(key)}


def is_another(folder: Path, now: dict[str, Any], *, resumed: bool) -> bool:
    """Whether the run that was in this folder had other settings or data; names the changes.

    Args:
        folder, now: as `changes` takes them.
        resumed: the run goes on, so that it stays the same if only what is `FREE` changes.
    """
    changed = changes(folder, now)
    for key, before in changed.items():
        how = "resumed" if resumed else "begun again"
        log.warning("%s with %s=%s, was %s", how, key, now.get(key), before)
    return any(not (resumed and key.startswith(FREE)) for key in changed)


def refuse_changes(config: RunConfig, trainer: Trainer) -> None:
    """A finished run's numbers are those of its own settings.

    Raises:
        ConfigError: others are asked for, or fewer steps than are done.
    """

    folder, done = Path(config.output_dir), trainer.progress.step
    now = flat_settings(settings_of(config)) | flat_data(digests_of(trainer))
    changed = {k: v for k, v in changes(folder, now).items() if not k.startswith(FREE)}
    if config.num_steps < done:
        changed = {"num_steps": done} | changed
    for key, before in changed.items():
        raise ConfigError(
            f"{folder} holds a finished run with {key}={before}, not {now.get(key)}; "
            "choose another hydra.run.dir"
        )


def checkpoint_to_resume(config: RunConfig, engine: Engine) -> Resumed | None:
    """What `resume` asks for: the newest whole checkpoint of this folder, a given one, or none.

    The same command again, by hand or by SLURM, goes on where the run is: a given checkpoint is
    where it began.

    Raises:
        CheckpointError: a given one is not there or not whole, or all of this folder are damaged.
        ConfigError: resume=never, but the folder holds a run that would be lost.
    """

    own = Path(config.output_dir) / "checkpoints"
    if config.resume == "never" and not engine.agree(is_requeued()):
        if any(own.glob("step_*")):
            raise ConfigError(
                f"resume=never, but {config.output_dir} holds a run; "
                "use resume=auto or another hydra.run.dir"
            )
        return None
    automatic = config.resume in AUTOMATIC
    if automatic or engine.agree(began_so(config)):
        found = checkpoints.newest(own, engine)
        if found or automatic:
            return found
    folder = Path(config.resume)
    if not folder.is_dir():
        raise CheckpointError(
            f"resume={config.resume} is not a folder; use auto, never or a checkpoint's folder"
        )
    return folder, checkpoints.check(folder, engine)


def began_so(config: RunConfig) -> bool:
    """Whether the run in this folder was begun with the same `resume`."""
    path = Path(config.output_dir) / "config.yaml"
    return path.exists() and OmegaConf.select(OmegaConf.load(path), "resume") == config.resume


def is_requeued() -> bool:
    """Whether SLURM has started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
