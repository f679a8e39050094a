"""Send what a store lacks of finished runs: `python -m drift.track sync FOLDER [tracking=mlflow]`.

FOLDER is a run's or holds runs, as a sweep's does. Needed where a tracking server was down when a
run ended, where there was no network, and for runs with tracking=off.
"""

import logging
import sys
from pathlib import Path

from drift.cli.command import run_command
from drift.common.errors import ConfigError
from drift.config.commands import TrackConfig

log = logging.getLogger("drift")


def run(config: TrackConfig) -> None:
    """Sync every run under the folder; ConfigError if one is not up to date then."""
    from drift.runs.tracking import CARD, sync

    folder = Path(config.folder).expanduser()
    cards = sorted(folder.rglob(CARD))
    if not cards:
        raise ConfigError(f"{folder} holds no run: no {CARD} in it or below it")
    done = 0
    for card in cards:
        state, steps = sync(card.parent, config.tracking)
        done += state == "up to date"
        log.info("%s: %d steps, %s", card.parent, steps, state)
    if done < len(cards):
        raise ConfigError(f"{len(cards) - done} of {len(cards)} runs are not up to date")
    log.info("%d %s up to date", done, "run is" if done == 1 else "runs are")


def as_overrides(words: list[str]) -> list[str]:
    """`sync FOLDER` as Hydra writes it: `folder='FOLDER'`."""
    if len(words) >= 2 and words[0] == "sync":
        folder = words[1].replace("\\", "\\\\").replace("'", "\\'")
        return [f"folder='{folder}'", *words[2:]]
    return words


if __name__ == "__main__":
    sys.argv[1:] = as_overrides(sys.argv[1:])
    run_command("track", run)
