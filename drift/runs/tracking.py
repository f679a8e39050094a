"""Where a run's numbers go: metrics.jsonl first, a store (MLflow, Weights & Biases) from there.

`metrics.jsonl` is the truth: one line per step, flushed. The store gets the lines that it does not
have yet, so a resumed run leaves neither a gap nor a double step. A store that cannot be reached
costs a warning; it gets what it lacks when it can be reached again, while the run goes on or later
by `python -m drift.track sync FOLDER`, which needs nothing but the run's folder.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drift.common.errors import ConfigError, DataError
from drift.common.files import digest, in_use, read_json, write_json, write_text
from drift.config.tracking import TRACKINGS, MlflowConfig, OffConfig, TrackingConfig, WandbConfig
from drift.runs.stores import STEP, TIME, Card, Line, Store, absolute, import_wandb, open_store

PHASES = ("rollout", "reward", "update", "sync", "eval", "checkpoint")  # of a run's time
TRAINING = PHASES[:4]  # how often a run evaluates and saves is not what runs are compared by
UPLOAD_EVERY_S = 3.0
MAX_PAUSE_S = 300.0  # between two tries to reach a store that fails
CARD = "tracking.json"  # in a run's folder: its card and its store
JOB = "job.json"  # in the folder of a sweep's job
CELL, SUMMARY = "cell.json", "summary.json"  # how an evaluation, and how a training run ended
SYNCED = ("config.yaml", "manifest.json", "metrics.jsonl", SUMMARY, CELL)
log = logging.getLogger("drift")


class MetricsFile:
    """metrics.jsonl: a JSON object per line with `step`, `unix_s` and the metrics of that step."""

    def __init__(self, path: Path):
        self.path = path
        self._unwritten = ""  # lines that a full disk did not take

    def lines(self) -> list[Line]:
        if not self.path.exists():
            return []
        lines: list[Line] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break  # a line that was being written when the run was killed
        return lines

    def append(self, line: Line) -> None:
        """Write a line and what is still to be written; a full disk only delays them."""
        self._unwritten += json.dumps(line) + "\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._unwritten)
            self._unwritten = ""
        except OSError as error:
            log.warning("%s: %s; its lines are kept for later", self.path, error.strerror)
            os.truncate(self.path, size)

    def keep_through(self, step: int) -> None:
        """Drop the lines after a step: a resumed run does them again."""
        kept = [line for line in self.lines() if line[STEP] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))


class Tracker:
    """Writes metrics.jsonl and, unless `tracking=off`, the same numbers to a store."""

    def __init__(self, config: TrackingConfig, folder: Path):
        """Raises ConfigError if the store's package is not installed; writes nothing."""
        self.config = absolute(config)
        self.folder = folder
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.store: Store | None = None  # None while it is off or was never reached
        self._card: Card | None = None
        self._lines: list[Line] = []  # the store lacks these
        self._calls: list[Callable[[Store], None]] = []  # and these: files and tables
        self._failed = False
        self._pause_s = UPLOAD_EVERY_S
        self._last_try = time.monotonic()
        if isinstance(config, WandbConfig):
            import_wandb()

    @property
    def mlflow_run_id(self) -> str | None:
        return self.store.run_id if self.store and isinstance(self.config, MlflowConfig) else None

    def start(
        self, name: str, params: dict[str, Any], tags: dict[str, str], done_step: int
    ) -> None:
        """Open the run in its store, the same one after a restart, and bring it up to date.

        Args:
            name: shown in the store's UI; a job of a sweep is called by its swept settings.
            params: flat settings.
            tags: shown in the store's UI, with those of the sweep.
            done_step: the last step of the checkpoint that is resumed, -1 for a new run.
        """
        self.metrics.keep_through(done_step)
        card = in_sweep(Card(name=name, params=params, tags=tags), self.folder)
        store = {"backend": TRACKINGS.name(self.config), **asdict(self.config)}
        content = {"card": asdict(card), "tracking": store}
        write_json(self.folder / CARD, content)
        self.open(card)

    def open(self, card: Card) -> None:
        """Bring the store up to date with metrics.jsonl."""
        if not isinstance(self.config, OffConfig):
            self._card = card
            self._lines = self.metrics.lines()
            self.upload()

    def forget(self) -> None:
        """Let the next start open a new run in every store; those before stay as they are."""
        for path in self.folder.glob("*_run_id*"):
            log.info("tracking: a new run; %s keeps what it has", path.read_text().strip())
            path.unlink()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record one step; a step that the store already has (a resumed run) is not sent again."""
        line = {STEP: step, TIME: round(time.time(), 3), **metrics}
        self.metrics.append(line)
        if self._card is not None:
            self._lines.append(line)
            if time.monotonic() - self._last_try > self._pause_s:
                self.upload()

    def log_table(self, name: str, columns: dict[str, list[Any]]) -> None:
        """A table in the store's UI, for example of sampled completions."""
        self._later(lambda store: store.log_table(name, columns))

    def log_files(self, files: list[Path]) -> None:
        """Copy files of the run's folder, as they are when the store is reached."""
        self._later(lambda store: store.log_files(files))

    def _later(self, call: Callable[[Store], None]) -> None:
        if self._card is not None:
            self._calls.append(call)

    def upload(self) -> bool:
        """Send what the store lacks; after a failure wait longer.

        Returns:
            Whether it lacks nothing now.
        """
        if self._card is None:
            return True
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        with self._tolerant():
            if self.store is None:
                file = id_file(self.folder, self.config)
                self.store = open_store(self.config, file, self._card)
            known = self.store.known_through
            self._lines = [line for line in self._lines if line[STEP] > known]
            if self._lines:
                self.store.log(self._lines)
                self.store.known_through = self._lines[-1][STEP]
                self._lines = []
            if self._failed:
                self._failed = False
                self.store.resume()
                log.info("tracking: the store can be reached again")
            self._pause_s = UPLOAD_EVERY_S
        if self.store is not None and not self._lines:
            self._calls = [call for call in self._calls if not self._called(call, self.store)]
        self._last_try = time.monotonic()
        return self.store is not None and not self._lines and not self._calls

    def _called(self, call: Callable[[Store], None], store: Store) -> bool:
        with self._tolerant():
            call(store)
            return True
        return False

    def finish(self, status: str) -> bool:
        """Send the rest, and how the run ended (FINISHED, FAILED or KILLED).

        Returns:
            Whether the store has everything.
        """
        self._later(lambda store: store.finish(status))
        whole = self.upload()
        if not whole:
            command = f"python -m drift.track sync {self.folder}"
            log.warning("tracking: the store lacks some of this run; send it by `%s`", command)
        return whole

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a tracking store may fail in any way; training goes on
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not self._failed:
                where = self.metrics.path
                log.warning("tracking: %s; the numbers are in %s", shortened(reason), where)
            self._failed = True


def shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def in_sweep(card: Card, folder: Path) -> Card:
    """The card of a sweep's job: the swept settings are its name, tags and, if new, params."""
    job = read_json(folder / JOB, missing_ok=True)
    if not job:
        return card
    swept: dict[str, str] = job["swept"]
    return Card(
        name=" ".join(f"{key}={value}" for key, value in swept.items()) or card.name,
        params=swept | card.params,
        tags={**card.tags, **swept, "sweep": job["sweep"], "sweep_job": str(job["num"])},
    )


def sync(folder: Path, config: TrackingConfig | None) -> tuple[str, int]:
    """Bring the store of a run that is not running up to date with the run's folder.

    Args:
        folder: of the run.
        config: another store; None for the run's own.

    Returns:
        "up to date", "running" (it sends its own numbers) or "the store cannot be reached", and
        the number of steps in metrics.jsonl.

    Raises:
        ConfigError: the run was started with tracking=off, and no store is given.
        DataError: tracking.json is not one.
    """
    card, own = read_card(folder)
    config = config or own
    if isinstance(config, OffConfig):
        raise ConfigError(f"{folder} was run with tracking=off; add tracking=mlflow or wandb")
    tracker = Tracker(config, folder)
    steps = len(tracker.metrics.lines())
    if in_use(folder):
        return "running", steps
    summary, cell = (read_json(folder / name, missing_ok=True) for name in (SUMMARY, CELL))
    files = [folder / name for name in SYNCED]
    if cell:  # in results/cells/protocol/checkpoint
        files.append(folder.resolve().parents[2] / "results.md")
    status = "finished" if cell.get("summary") else summary.get("status", "")
    tracker.open(card)
    tracker.log_files([path for path in files if path.exists()])
    whole = tracker.finish({"finished": "FINISHED", "failed": "FAILED"}.get(status, "KILLED"))
    is_own = id_file(folder, config) == id_file(folder, own)
    if whole and is_own and summary and summary["mlflow_run_id"] != tracker.mlflow_run_id:
        write_json(folder / SUMMARY, summary | {"mlflow_run_id": tracker.mlflow_run_id})
    return "up to date" if whole else "the store cannot be reached", steps


def read_card(folder: Path) -> tuple[Card, TrackingConfig]:
    """What a run's store shows, and which store that is."""
    path = folder / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings: dict[str, Any] = content["tracking"]
        config = TRACKINGS.schemas[settings.pop("backend")](**settings)
        return Card(**content["card"]), config
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not written by this version of drift: {error}") from None


def id_file(folder: Path, config: TrackingConfig) -> Path:
    """Where a run's id in a store is kept: each store has a file, the run's own the plain name."""
    name, place = f"{TRACKINGS.name(config)}_run_id", place_of(config)
    if place != place_of(read_card(folder)[1]):
        name += "-" + digest(place)
    return folder / name


def place_of(config: TrackingConfig) -> dict[str, Any]:
    """Which store it is, and where in it: the settings without those of how it is filled."""
    settings = asdict(absolute(config))
    return {key: settings[key] for key in settings.keys() - {"mode", "system_metrics"}}
