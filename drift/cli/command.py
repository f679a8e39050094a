"""How a command starts: Hydra composes, one line says what is wrong, dataclasses go to the code."""

import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig

from drift.cli import help
from drift.cluster.submission import lost_job
from drift.common import ranks
from drift.common.errors import DriftError
from drift.config import register
from drift.config.commands import BaseConfig
from drift.config.compose import CONF, typed
from drift.config.explain import USER_ERRORS, explain, first_line, group_not_chosen, no_option
from drift.runs import sweep

SAVE_MEMORY = "lower rollout.max_rows, optim.tokens_per_forward or rollout.gen_length"


def settle_streams() -> None:
    """A closed stream is an empty one; a character that one cannot show is written as \\xe9."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command(name: str, run: Callable[[Any], None]) -> None:
    """Compose conf/<name>.yaml with the command line and call `run` with the typed config.

    Exit codes: 0, 1 for a user's mistake (one line, no traceback), 2 for a malformed override.
    """
    settle_streams()
    register()
    help.register()
    help.refuse_wrong_flags(sys.argv[1:])
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a closed pipe (`| head`) is no reason for a traceback
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; `explain` prints

    def job(config: DictConfig) -> float | None:
        typed_config: BaseConfig = typed(config)
        typed_config.output_dir = HydraConfig.get().runtime.output_dir
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return sweep.attempt(sweep.job_card(HydraConfig.get()), typed_config, run, run_fault)
        try:
            run(typed_config)
        except BrokenPipeError:
            raise
        except (*USER_ERRORS, MemoryError, RuntimeError) as error:
            fault = run_fault(error)
            if fault is None:
                raise
            remove_if_empty(Path(typed_config.output_dir))
            place = ranks.find()
            which = f"rank {place.rank}: " if place.number > 1 else ""
            print(f"drift: {which}{fault}", file=sys.stderr)
            sys.exit(exit_code(error))
        return None

    if ranks.find().rank:  # the first rank's folder is the run's
        quiet = ("handlers.file.filename=/dev/null", "root.level=WARNING")
        sys.argv += ["hydra.run.dir=.", *(f"hydra.job_logging.{setting}" for setting in quiet)]
    enter(hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job))


def enter(entry: Callable[[], object]) -> None:
    """Run Hydra; what it raises is told in one line, with the exit code that goes with it."""
    try:
        entry()
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except USER_ERRORS as error:
        print(f"drift: {explain(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
    except (ValueError, AssertionError) as error:
        if (words := no_option(error) or group_not_chosen(error)) is None:
            raise
        sys.exit(f"drift: {words}")
    except RuntimeError as error:
        if (words := lost_job(error)) is None:
            raise
        sys.exit(f"drift: {words}{sweep.tell_begun()}")
    except KeyboardInterrupt:
        sys.exit(130)


def exit_code(error: BaseException) -> int:
    if isinstance(error, OverrideParseException):
        return 2
    return error.exit_code if isinstance(error, DriftError) else 1


def run_fault(error: BaseException) -> str | None:
    """One line for a fault of a running job that a user can mend; None for a bug."""
    if isinstance(error, USER_ERRORS):
        return explain(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return f"{first_line(error)}; {SAVE_MEMORY}"
    return None


def remove_if_empty(folder: Path) -> None:
    """Leave no empty run folder behind a mistake; a command without one runs in the user's own."""
    if folder == Path.cwd():
        return
    ours = folder.parent.parent.name == "outputs"  # outputs/<experiment>/<time>
    for path in (folder, folder.parent) if ours else (folder,):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
