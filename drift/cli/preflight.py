"""Compose and check every job before the first one starts, queued or not.

Hydra runs a dataclass's own checks only inside a job, on SLURM after the wait in the queue. This
callback does it on the machine where the command is typed. It calls Hydra's private
`BasicSweeper.split_arguments`, hence hydra-core is pinned to 1.3.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from drift.cluster.submission import difference, refusal
from drift.common.errors import ConfigError
from drift.config.checks import validate
from drift.config.compose import typed
from drift.config.explain import explain
from drift.config.task import OwnTaskConfig
from drift.runs import sweep

SWEEP_DIR = "hydra.sweep.dir"
LABELS = ("model.name", "task.name", "cluster.name")  # of the options, set in their files


class Preflight(Callback):
    """Hydra turns what a callback raises into a warning, so a bad job leaves by SystemExit."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        reason = fault(config)
        if reason:
            raise SystemExit(f"drift: {reason}")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        loader = GlobalHydra.instance().config_loader()
        parser = OverridesParser.create(config_loader=loader)
        params = OmegaConf.select(config, "hydra.sweeper.params") or {}  # sweeps written in conf/
        fixed = [f"{key}={value}" for key, value in params.items()]
        overrides = parser.parse_overrides([*fixed, *config.hydra.overrides.task])
        jobs: list[list[str]] = []
        composed = [config]
        if config.hydra.sweeper._target_.endswith(".BasicSweeper"):  # others choose as they go
            jobs = BasicSweeper.split_arguments(overrides, None)[0]
            composed = check_jobs(config, jobs)
        swept = [o.get_key_element().lstrip("+") for o in overrides if o.is_sweep_override()]
        folder = Path(config.hydra.sweep.dir)
        if reason := refusal(config):
            raise SystemExit(f"drift: {reason}")
        try:
            sweep.plan(folder, again(config), swept, jobs)
        except ConfigError as error:
            raise SystemExit(f"drift: {error}") from None
        sweep.make_stores([typed(job) for job in composed])

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        missing = sweep.tell(Path(config.hydra.sweep.dir))
        if missing:
            words = "1 job is" if missing == 1 else f"{missing} jobs are"
            raise SystemExit(f"drift: {words} not finished; run what is missing: {again(config)}")


def check_jobs(config: DictConfig, jobs: list[list[str]]) -> list[DictConfig]:
    """The composed config of every job; SystemExit with a line for each that cannot run."""
    loader = GlobalHydra.instance().config_loader()
    composed: list[DictConfig] = []
    bad: list[str] = []
    for job in jobs:
        try:
            composed.append(loader.load_sweep_config(config, list(job)))
            reason = fault(composed[-1]) or difference(config, composed[-1])
        except Exception as error:  # whatever Hydra raises while it composes
            reason = explain(error)
        if reason:
            bad.append(f"{' '.join(job)}: {reason}")
    if bad:
        found = "\n  ".join(bad)
        raise SystemExit(
            f"drift: {len(bad)} of {len(jobs)} jobs are wrong, nothing was started\n  {found}"
        )
    return composed


def again(config: DictConfig) -> str:
    """The command that takes the sweep up again: the one that was typed, with its folder."""
    words = [word for word in sys.argv[1:] if not word.startswith(f"{SWEEP_DIR}=")]
    words.append(f"{SWEEP_DIR}={config.hydra.sweep.dir}")
    return f"python -m drift.{config.hydra.job.name} {shlex.join(words)}"


def fault(config: DictConfig) -> str | None:
    """Why a composed config cannot run; None if it can."""
    try:
        if config.output_dir:
            return (
                f"output_dir={config.output_dir} is filled in when the run starts; choose it with "
                "hydra.run.dir=FOLDER, for a sweep with hydra.sweep.dir=FOLDER"
            )
        if label := written_label(config):
            return label
        validate(typed(config))
    except Exception as error:  # whatever OmegaConf raises while it resolves and converts
        return explain(error)
    return None


def written_label(config: DictConfig) -> str | None:
    """`task.name=sudoku is set by the option; write task=sudoku`; None if no label is written."""
    own = OmegaConf.get_type(config, "task") is OwnTaskConfig if "task" in config else False
    for word in config.hydra.overrides.task:
        key, _, value = word.lstrip("+~").partition("=")
        if key in LABELS and not (own and key == "task.name"):  # of an entry point
            return f"{key}={value} is set by the option; write {key.removesuffix('.name')}={value}"
    return None
