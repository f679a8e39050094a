"""Compose and check every job before the first one starts, queued or not.

Hydra runs a dataclass's own checks only inside a job, on SLURM after the wait in the queue. This
callback does it on the machine where the command is typed. It calls Hydra's private
`BasicSweeper.split_arguments`, hence hydra-core is pinned to 1.3.
"""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from drift.cli import explain, typed
from drift.submission import difference, refusal
from drift.validate import validate


class Preflight(Callback):
    """Hydra turns what a callback raises into a warning, so a bad job leaves by SystemExit."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        reason = fault(config)
        if reason:
            raise SystemExit(f"drift: {reason}")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        loader = GlobalHydra.instance().config_loader()
        parser = OverridesParser.create(config_loader=loader)
        overrides = parser.parse_overrides(list(config.hydra.overrides.task))
        jobs = BasicSweeper.split_arguments(overrides, None)[0]
        bad = []
        for job in jobs:
            try:
                composed = loader.load_sweep_config(config, list(job))
                reason = fault(composed) or difference(config, composed)
            except Exception as error:  # whatever Hydra raises while it composes
                reason = explain(error)
            if reason:
                bad.append(f"{' '.join(job)}: {reason}")
        if bad:
            found = "\n  ".join(bad)
            raise SystemExit(
                f"drift: {len(bad)} of {len(jobs)} jobs are wrong, nothing was started\n  {found}"
            )
        reason = refusal(config)
        if reason:
            raise SystemExit(f"drift: {reason}")


def fault(config: DictConfig) -> str | None:
    """Why a composed config cannot run; None if it can."""
    try:
        validate(typed(config))
    except Exception as error:  # whatever OmegaConf raises while it resolves and converts
        return explain(error)
    return None
