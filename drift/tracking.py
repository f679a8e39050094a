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
MAX_BATCH = 1000  # metrics of one MLflow call
log = logging.getLogger("drift")


class MetricsFile:
    """metrics.jsonl: a JSON object per line with `step` and the metrics of that step."""

    def __init__(self, path: Path):
        self.path = path

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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

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
        self.run_id: str | None = None
        self._waiting: list[tuple[int, dict[str, float], int]] = []
        self._last_upload = time.monotonic()

    @property
    def _online(self) -> bool:
        return self.config.backend == TrackingBackend.mlflow

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
        if not self._online:
            return
        with self._tolerant():
            self._open(name, params, tags)
            self._catch_up()

    def _open(self, name: str, params: dict[str, Any], tags: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        quiet_mlflow()
        self.client = open_store(self.config)
        id_file = self.folder / "mlflow_run_id"
        if id_file.exists():
            self.run_id = id_file.read_text().strip()
            self.client.update_run(self.run_id, status="RUNNING")
            return
        experiment = experiment_id(self.client, self.config.experiment)
        run = self.client.create_run(experiment, run_name=name)
        run_id: str = run.info.run_id
        self.client.log_batch(
            run_id,
            params=[Param(key, str(value)[:6000]) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        id_file.write_text(run_id)
        self.run_id = run_id

    def _catch_up(self) -> None:
        assert self.run_id is not None
        known = [m.step for m in self.client.get_metric_history(self.run_id, "step")]
        last = max(known, default=-1)
        now = int(time.time() * 1000)
        for line in self.metrics.lines():
            if line["step"] > last:
                values = {key: value for key, value in line.items() if key != "step"}
                self._waiting.append((line["step"], values, now))
        self._skip_through = last

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record one step; a step that MLflow already has (a resumed run) is not sent again."""
        self.metrics.append(step, metrics)
        if self.run_id is not None and step > self._skip_through:
            self._waiting.append((step, metrics, int(time.time() * 1000)))
            if time.monotonic() - self._last_upload > UPLOAD_EVERY_S:
                self.upload()

    def upload(self) -> None:
        """Send what is waiting to MLflow."""
        from mlflow.entities import Metric

        if self.run_id is None:
            return
        entries = [
            Metric(name, value, timestamp, step)
            for step, metrics, timestamp in self._waiting
            for name, value in (*metrics.items(), ("step", float(step)))
            if math.isfinite(value)
        ]
        with self._tolerant():
            for start in range(0, len(entries), MAX_BATCH):
                self.client.log_batch(self.run_id, metrics=entries[start : start + MAX_BATCH])
            self._waiting.clear()
        self._last_upload = time.monotonic()

    def log_table(self, name: str, columns: dict[str, list[Any]]) -> None:
        """A table in the MLflow UI, for example of sampled completions."""
        if self.run_id is not None:
            with self._tolerant():
                self.client.log_table(self.run_id, columns, f"{name}.json")

    def finish(self, status: str, files: list[Path]) -> None:
        """Send the rest, the run's files, and how it ended (FINISHED, FAILED or KILLED)."""
        self.upload()
        if self.run_id is not None:
            with self._tolerant():
                for path in files:
                    if path.exists():
                        self.client.log_artifact(self.run_id, str(path))
                self.client.set_terminated(self.run_id, status)

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a tracking store may fail in any way; training goes on
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("MLflow: %s; the numbers are in %s", reason, self.metrics.path)


def quiet_mlflow() -> None:
    """Keep the schema's migration log out of the user's terminal."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)


def local_folder(uri: str) -> Path:
    """The folder of a SQLite store, for its lock and its artifacts; outputs/ for a server."""
    prefix = "sqlite:///"
    path = Path(uri.removeprefix(prefix)) if uri.startswith(prefix) else Path("outputs/mlflow.db")
    return path.absolute().parent


def open_store(config: TrackingConfig) -> Any:
    """An MLflow client; a new SQLite store is made by one process at a time."""
    from mlflow import MlflowClient

    folder = local_folder(config.uri)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(tracking_uri=config.uri)
        if client.get_experiment_by_name(config.experiment) is None:
            location = None
            if config.uri.startswith("sqlite:"):
                location = (folder / "mlflow-artifacts" / config.experiment).as_uri()
            client.create_experiment(config.experiment, artifact_location=location)
    return client


def experiment_id(client: Any, name: str) -> str:
    return client.get_experiment_by_name(name).experiment_id
