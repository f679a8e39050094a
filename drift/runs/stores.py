"""Where tracked numbers can be kept: MLflow, Weights & Biases. Both are imported when one is used.

A store may fail in any way, for example because its server is down; drift/runs/tracking.py copes.
"""

import json
import logging
import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import quote

from drift.common.errors import ConfigError
from drift.common.files import locked, write_text
from drift.config.tracking import TRACKINGS, MlflowConfig, TrackingConfig, WandbConfig, WandbMode

MAX_PARAMS, MAX_PARAM_CHARS, MAX_METRICS = 100, 6000, 1000  # MLflow's limits for one call
SQLITE, HTTP = "sqlite:///", ("http://", "https://")
TIME, STEP = "unix_s", "step"  # of a line: they place its point and are no metrics of their own

Line = dict[str, Any]  # of metrics.jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a store shows of a run: Card(name="seed=1", params={"seed": 1}, tags={"sweep": "s"})."""

    name: str
    params: dict[str, Any]  # flat settings
    tags: dict[str, str]


class Store(Protocol):
    """One run in a store; opened, it is shown as running."""

    run_id: str
    known_through: int  # the last step that the store has, -1 if it has none
    where: str  # what a user types, or opens, to look at it

    def log(self, lines: list[Line]) -> None:
        """Add steps; the same line sent twice is one point."""
        ...

    def log_table(self, name: str, columns: dict[str, list[Any]]) -> None: ...

    def log_files(self, files: list[Path]) -> None: ...

    def finish(self, status: str) -> None:
        """Say how the run ended: FINISHED, FAILED or KILLED."""
        ...

    def resume(self) -> None:
        """Go on after a time in which the store could not be reached."""
        ...


def read_id(id_file: Path) -> str | None:
    """A run's id in a store; None where there is none, or a full disk took nothing of it."""
    return (id_file.read_text().strip() or None) if id_file.exists() else None


class MlflowStore:
    """An MLflow run, the same one after a restart."""

    def __init__(self, config: MlflowConfig, id_file: Path, card: Card):
        from mlflow.entities import Metric, RunStatus

        self.config = config
        self.where = ui_command(config)
        self.client, experiment = open_experiment(config)
        run_id = self._known_run(id_file)
        if run_id is None:
            run_id = str(self.client.create_run(experiment, run_name=card.name).info.run_id)
            write_text(id_file, run_id)
        self.run_id = run_id
        self._describe(card)
        self.client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        known: list[Metric] = self.client.get_metric_history(run_id, STEP)
        self.known_through = max((metric.step for metric in known), default=-1)
        self._monitor: Any = None
        self.resume()

    def _known_run(self, id_file: Path) -> str | None:
        """The run of an earlier start; None if there is none, or it was deleted."""
        from mlflow.exceptions import MlflowException

        run_id = read_id(id_file)
        if run_id is None:
            return None
        try:
            stage = self.client.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise  # a server that is down has not lost the run
            stage = "lost"
        if stage == "active":
            return run_id
        logging.getLogger("drift").warning(
            "MLflow has no run %s any more; a new one is made", run_id
        )
        return None

    def _describe(self, card: Card) -> None:
        """Params that the run does not have yet (MLflow refuses to change one), and tags."""
        from mlflow.entities import Param, RunTag

        known = self.client.get_run(self.run_id).data.params
        entries = [
            Param(key, str(value)[:MAX_PARAM_CHARS])
            for key, value in card.params.items()
            if key not in known
        ]
        for start in range(0, len(entries), MAX_PARAMS):
            self.client.log_batch(self.run_id, params=entries[start : start + MAX_PARAMS])
        self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in card.tags.items()])

    def log(self, lines: list[Line]) -> None:
        from mlflow.entities import Metric

        batch: list[Metric] = []
        for line in lines:
            values = {key: value for key, value in line.items() if key != TIME}
            metrics = [
                Metric(name, float(value), round(1000 * line[TIME]), line[STEP])
                for name, value in values.items()
                if math.isfinite(value)
            ]
            if len(batch) + len(metrics) > MAX_METRICS:
                self.client.log_batch(self.run_id, metrics=batch)
                batch = []
            batch += metrics
        self.client.log_batch(self.run_id, metrics=batch)

    def log_table(self, name: str, columns: dict[str, list[Any]]) -> None:
        self.client.log_table(self.run_id, columns, f"{name}.json")

    def log_files(self, files: list[Path]) -> None:
        for path in files:
            self.client.log_artifact(self.run_id, str(path))

    def resume(self) -> None:
        """Start the sampling of CPU, memory and GPU; its thread ends when a call fails."""
        if not self.config.system_metrics:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._stop_monitor()
        self._monitor = SystemMetricsMonitor(
            self.run_id, resume_logging=True, tracking_uri=self.config.uri
        )
        self._monitor.start()

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
        self._monitor = None

    def finish(self, status: str) -> None:
        self._stop_monitor()
        self.client.set_terminated(self.run_id, status)


@TRACKINGS.implements(WandbConfig)
class WandbStore:
    """A Weights & Biases run.

    Offline each start writes a folder of its own under wandb/ with every step so far, so that the
    newest one is whole; online the server says which steps it has.
    """

    def __init__(self, config: WandbConfig, id_file: Path, card: Card):
        wandb, folder = import_wandb(), id_file.parent
        known = read_id(id_file)
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode.value,
            dir=folder,
            id=known,
            resume="allow" if config.mode == WandbMode.online else None,
            name=card.name,
            config=card.params,
            tags=sorted(f"{key}={value}"[:64] for key, value in card.tags.items()),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._wandb = wandb
        self.run_id = str(self._run.id)
        online = config.mode == WandbMode.online
        self.where = str(self._run.url) if online else f"wandb sync {folder}/wandb/latest-run"
        write_text(id_file, self.run_id)
        self.known_through = int(self._run.step) - 1

    def log(self, lines: list[Line]) -> None:
        for line in lines:
            values = {k: v for k, v in line.items() if k not in (TIME, STEP) and math.isfinite(v)}
            self._run.log(values, step=line[STEP])

    def log_table(self, name: str, columns: dict[str, list[Any]]) -> None:
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self._run.log({name: self._wandb.Table(columns=list(columns), data=rows)})

    def log_files(self, files: list[Path]) -> None:
        for path in files:
            self._run.save(path, base_path=path.parent, policy="now")

    def resume(self) -> None:
        """wandb's own process goes on by itself."""

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)


def open_store(config: TrackingConfig, id_file: Path, card: Card) -> Store:
    """Open a run in the store of a config, the one whose id a file of the run's folder holds."""
    return TRACKINGS.function(config)(config, id_file, card)


@TRACKINGS.implements(MlflowConfig)
def open_mlflow(config: MlflowConfig, id_file: Path, card: Card) -> Store:
    quiet_mlflow()
    return MlflowStore(config, id_file, card)


def import_wandb() -> ModuleType:
    """The package wandb, an optional extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "tracking=wandb needs the package wandb; pip install 'drift[wandb]', "
            "or use tracking=mlflow or off"
        ) from None
    return wandb


def quiet_mlflow() -> None:
    """Before mlflow is imported: no migration log on the terminal, no minutes of retries."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def absolute(config: TrackingConfig) -> TrackingConfig:
    """The same store from any working directory: a SQLite file by its whole path."""
    if isinstance(config, MlflowConfig) and config.uri.startswith(SQLITE):
        path = Path(config.uri.removeprefix(SQLITE)).absolute()
        return replace(config, uri=f"{SQLITE}{path}")
    return config


def open_experiment(config: MlflowConfig) -> tuple[Any, str]:
    """An MLflow client and the experiment's id; a new SQLite file is made by one process at a time.

    Artifacts of a SQLite file or a database go beside it, or to outputs/ here; a server says where
    its own go.
    """
    quiet_mlflow()
    from mlflow import MlflowClient

    if config.uri.startswith(HTTP):
        client = MlflowClient(tracking_uri=config.uri)
        return client, experiment_id(client, config.experiment, None)
    local = config.uri.startswith(SQLITE)
    folder = Path(config.uri.removeprefix(SQLITE)).absolute().parent if local else Path("outputs")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".mlflow.lock"):
        client = MlflowClient(tracking_uri=config.uri)
        location = (folder / "mlflow-artifacts" / config.experiment).as_uri()
        return client, experiment_id(client, config.experiment, location)


def find_experiment(config: MlflowConfig) -> tuple[Any, str]:
    """An MLflow client and the id of an experiment that is there; makes nothing.

    Raises:
        ConfigError: there is no such store or experiment, or it cannot be reached.
    """
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if config.uri.startswith(SQLITE) and not Path(config.uri.removeprefix(SQLITE)).exists():
        raise ConfigError(f"tracking.uri={config.uri}: no such file")
    client = MlflowClient(tracking_uri=config.uri)
    try:
        experiment = client.get_experiment_by_name(config.experiment)
        known = [one.name for one in client.search_experiments()] if experiment is None else []
    except MlflowException as error:
        raise ConfigError(f"tracking.uri={config.uri}: {str(error).splitlines()[0]}") from None
    if experiment is None:
        raise ConfigError(
            f"experiment={config.experiment}: {config.uri} has no such experiment; "
            f"it has: {', '.join(sorted(known))}"
        )
    return client, str(experiment.experiment_id)


def experiment_id(client: Any, name: str, location: str | None) -> str:
    """The id of an experiment, which is made if there is none; two at once get the same."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)


def comparison_address(base: str, run_ids: list[str], experiments: list[str]) -> str:
    """The page of the MLflow UI that compares runs, percent-encoded for any terminal.

    Args:
        base: the server, for example http://127.0.0.1:5000.
    """

    def packed(values: list[str]) -> str:
        return quote(json.dumps(values, separators=(",", ":")), safe=",")

    chosen = list(dict.fromkeys(experiments))
    return f"{base.rstrip('/')}/#/compare-runs?runs={packed(run_ids)}&experiments={packed(chosen)}"


def ui_command(config: MlflowConfig) -> str:
    """The command, or the address, that shows a store."""
    if config.uri.startswith(HTTP):
        return config.uri
    return f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {config.uri}"
