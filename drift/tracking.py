"""Where a run's numbers go: metrics.jsonl first, MLflow from there.

`metrics.jsonl` is the truth: one line per step, flushed. MLflow gets the lines that it does not
have yet, so a resumed run leaves neither a gap nor a double step, and a tracking server that
cannot be reached costs nothing but a warning.
"""

import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drift.config import TrackingBackend, TrackingConfig

UPLOAD_EVERY_S = 3.0
MAX_PAUSE_S = 300.0  # between two tries to reach a store that fails
MAX_PARAMS, MAX_PARAM_CHARS = 100, 6000  # MLflow's limits for one call and one value
log = logging.getLogger("drift")


class MetricsFile:
    """metrics.jsonl: a JSON object per line with `step` and the metrics of that step."""

    def __init__(self, path: Path):
        self.path = path
        self._unwritten = ""  # lines that a full disk did not take

    def lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break  # a line that was being written when the run was killed
        return lines

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Write a line and what is still to be written; a full disk only delays them."""
        self._unwritten += json.dumps({"step": step, **metrics}) + "\n"
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
        kept = [line for line in self.lines() if line["step"] <= step]
        beside = self.path.with_suffix(".tmp")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        beside.replace(self.path)


class Tracker:
    """Writes metrics.jsonl and, with `tracking=mlflow`, the same numbers to MLflow."""

    def __init__(self, config: TrackingConfig, folder: Path):
        self.config = config
        self.folder = folder
        self.metrics = MetricsFile(folder / "metrics.jsonl")
        self.run_id: str | None = None  # None while MLflow is off or was never reached
        self.client: Any = None
        self._waiting: list[tuple[int, dict[str, float], int]] = []  # step, metrics, ms
        self._known_through = -1  # the last step that MLflow has
        self._pause_s = UPLOAD_EVERY_S
        self._last_try = time.monotonic()

    def start(
        self, name: str, params: dict[str, Any], tags: dict[str, str], done_step: int
    ) -> None:
        """Open the run's MLflow run, the same one after a restart, and bring it up to date.

        Args:
            name: shown in the MLflow UI.
            params: flat settings.
            tags: shown in the MLflow UI.
            done_step: the last step of the checkpoint that is resumed, -1 for a new run.
        """
        self.metrics.keep_through(done_step)
        if self.config.backend == TrackingBackend.mlflow:
            with self._tolerant():
                self._open(name, params, tags)

    def _open(self, name: str, params: dict[str, Any], tags: dict[str, str]) -> None:
        quiet_mlflow()
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        self.client, experiment = open_store(self.config)
        id_file = self.folder / "mlflow_run_id"
        run_id = id_file.read_text().strip() if id_file.exists() else None
        try:
            if run_id is not None:
                self.client.update_run(run_id, status="RUNNING")
        except MlflowException:
            log.warning("MLflow has no run %s any more; a new one is made", run_id)
            run_id = None
        if run_id is None:
            run_id = str(self.client.create_run(experiment, run_name=name).info.run_id)
            id_file.write_text(run_id)
            entries = [Param(key, str(value)[:MAX_PARAM_CHARS]) for key, value in params.items()]
            for start in range(0, len(entries), MAX_PARAMS):
                self.client.log_batch(run_id, params=entries[start : start + MAX_PARAMS])
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        known: list[Metric] = self.client.get_metric_history(run_id, "step")
        self._known_through = max((metric.step for metric in known), default=-1)
        now = int(time.time() * 1000)
        for line in self.metrics.lines():
            values = {key: value for key, value in line.items() if key != "step"}
            self._waiting.append((line["step"], values, now))
        self.run_id = run_id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record one step; a step that MLflow already has (a resumed run) is not sent again."""
        self.metrics.append(step, metrics)
        if self.run_id is not None:
            self._waiting.append((step, metrics, int(time.time() * 1000)))
            if time.monotonic() - self._last_try > self._pause_s:
                self.upload()

    def upload(self) -> None:
        """Send the steps that are waiting, each in one call; after a failure wait longer."""
        if self.run_id is None:
            return
        from mlflow.entities import Metric

        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        with self._tolerant():
            while self._waiting:
                step, metrics, timestamp = self._waiting[0]
                if step > self._known_through:
                    values = {**metrics, "step": float(step)}
                    self.client.log_batch(
                        self.run_id,
                        metrics=[
                            Metric(name, value, timestamp, step)
                            for name, value in values.items()
                            if math.isfinite(value)
                        ],
                    )
                    self._known_through = step
                del self._waiting[0]
            self._pause_s = UPLOAD_EVERY_S
        self._last_try = time.monotonic()

    def log_table(self, name: str, columns: dict[str, list[Any]]) -> None:
        """A table in the MLflow UI, for example of sampled completions."""
        if self.run_id is not None:
            with self._tolerant():
                self.client.log_table(self.run_id, columns, f"{name}.json")

    def log_files(self, files: list[Path]) -> None:
        """Copy files of the run's folder to MLflow."""
        if self.run_id is not None:
            with self._tolerant():
                for path in files:
                    self.client.log_artifact(self.run_id, str(path))

    def finish(self, status: str) -> None:
        """Send the rest, and how the run ended (FINISHED, FAILED or KILLED)."""
        self.upload()
        if self.run_id is not None:
            with self._tolerant():
                self.client.set_terminated(self.run_id, status)

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a tracking store may fail in any way; training goes on
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("MLflow: %s; the numbers are in %s", reason, self.metrics.path)


def quiet_mlflow() -> None:
    """Before mlflow is imported: no migration log on the terminal, no minutes of retries."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)


def local_folder(uri: str) -> Path:
    """The folder of a SQLite store, for its lock and its artifacts; outputs/ for a server."""
    prefix = "sqlite:///"
    path = Path(uri.removeprefix(prefix)) if uri.startswith(prefix) else Path("outputs/mlflow.db")
    return path.absolute().parent


def open_store(config: TrackingConfig) -> tuple[Any, str]:
    """An MLflow client and the experiment's id; a new store is made by one process at a time."""
    from mlflow import MlflowClient

    folder = local_folder(config.uri)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(tracking_uri=config.uri)
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is not None:
            return client, experiment.experiment_id
        location = None
        if config.uri.startswith("sqlite:"):
            location = (folder / "mlflow-artifacts" / config.experiment).as_uri()
        return client, client.create_experiment(config.experiment, artifact_location=location)
