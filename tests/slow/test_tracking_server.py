"""A real MLflow server that goes away in the middle of a run: no step is lost."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from drift.config.tracking import MlflowConfig
from drift.runs.tracking import MetricsFile, Tracker
from tests.conftest import ROOT, Run

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Server:
    """`mlflow server` on a loopback port, over a SQLite file that outlives it."""

    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers",
                   "1", "--port", str(self.port), "--artifacts-destination", "artifacts",
                   "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]  # fmt: skip
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        """End the server and its workers, which are a process group of their own."""
        if self.process is not None:
            os.killpg(self.process.pid, 15)
            self.process.wait(timeout=60)
            self.process = None

    def points(self, run_id: str, name: str) -> list[tuple[int, float]]:
        client = MlflowClient(self.uri)
        return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    yield server
    server.stop()


def train(server: Server, folder: Path, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "drift.train", "rollout.prompts_per_step=8",
               "rollout.group_size=8", "eval.every=0", "eval.max_examples=20",
               "checkpoint.every=0", f"num_steps={steps}", f"tracking.uri={server.uri}",
               f"hydra.run.dir={folder}"]  # fmt: skip
    return subprocess.Popen(
        command, cwd=folder.parent, env=ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for_steps(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if len(MetricsFile(folder / "metrics.jsonl").lines()) > count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{folder} did not reach step {count}")


def test_what_a_stopped_server_missed_is_sent_by_sync(
    server: Server, run: Run, tmp_path: Path
) -> None:
    """Stopped after some steps; the run ends without it; started again; `drift.track sync`."""
    folder = tmp_path / "run"
    process = train(server, folder, 150)
    wait_for_steps(folder, 10)
    run_id = (folder / "mlflow_run_id").read_text()
    server.stop()
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    assert said.count("tracking: ") == 2, said  # that it cannot be reached, and what to type
    assert f"python -m drift.track sync {folder}" in said
    lines = MetricsFile(folder / "metrics.jsonl").lines()
    assert [line["step"] for line in lines] == list(range(151))

    refused = run("track", "sync", str(folder), check=False)
    assert refused.returncode == 1
    assert "drift: 1 of 1 runs are not up to date" in refused.stderr
    server.start()
    known = server.points(run_id, "reward/mean")
    assert len(known) < 150
    assert "1 run is up to date" in run("track", "sync", str(folder)).stdout
    for name in ("reward/mean", "time/update_s"):
        assert server.points(run_id, name) == [(line["step"], line[name]) for line in lines[1:]]
    record = MlflowClient(server.uri).get_run(run_id)
    assert record.info.status == "FINISHED"
    names = {item.path for item in MlflowClient(server.uri).list_artifacts(run_id)}
    assert {"config.yaml", "manifest.json", "metrics.jsonl", "summary.json"} <= names
    history = MlflowClient(server.uri).get_metric_history(run_id, "reward/mean")
    assert [m.timestamp for m in history] == [round(1000 * line["unix_s"]) for line in lines[1:]]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["mlflow_run_id"] == run_id


def test_a_server_that_comes_back_gets_every_step_from_the_run(
    server: Server, tmp_path: Path
) -> None:
    settings = MlflowConfig(uri=server.uri, system_metrics=False)
    tracker = Tracker(settings, tmp_path)
    server.stop()
    tracker.start("run", {"seed": 0}, {}, done_step=-1)  # was never reached
    tracker.log_files([tmp_path / "tracking.json"])
    for step in range(1, 4):
        tracker.log(step, {"a": step / 4})
        assert not tracker.upload()
    server.start()
    tracker.log(4, {"a": 1.0})
    assert tracker.upload()
    server.stop()
    tracker.log(5, {"a": 1.25})
    assert not tracker.upload()
    server.start()
    assert tracker.finish("FINISHED")
    assert tracker.mlflow_run_id is not None
    assert server.points(tracker.mlflow_run_id, "a") == [(i, i / 4) for i in range(1, 6)]
    client = MlflowClient(server.uri)
    assert client.get_run(tracker.mlflow_run_id).info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(tracker.mlflow_run_id)] == ["tracking.json"]
    (experiment,) = client.search_experiments(filter_string="name = 'drift'")
    assert len(client.search_runs([experiment.experiment_id])) == 1
