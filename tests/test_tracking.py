"""metrics.jsonl and a real MLflow store."""

import subprocess
import sys
from pathlib import Path

from drift.config import TrackingBackend, TrackingConfig
from drift.stats import wilson
from drift.tracking import MetricsFile, Tracker, open_store
from tests.conftest import ROOT


def config(folder: Path) -> TrackingConfig:
    return TrackingConfig(backend=TrackingBackend.mlflow, uri=f"sqlite:///{folder}/mlflow.db")


def test_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a"')
    metrics = MetricsFile(path)
    assert metrics.lines() == [{"step": 1, "a": 1.0}]
    metrics.keep_through(0)
    assert metrics.lines() == []


def test_a_restart_leaves_neither_gap_nor_double_step(tmp_path: Path) -> None:
    first = Tracker(config(tmp_path), tmp_path)
    first.start("run", {"seed": 0}, {}, done_step=-1)
    for step in (1, 2, 3, 4):
        first.log(step, {"reward/mean": step / 10})
        if step == 3:
            first.upload()  # step 4 is lost with the process
    second = Tracker(config(tmp_path), tmp_path)
    second.start("run", {"seed": 0}, {}, done_step=2)
    for step in (3, 4, 5):
        second.log(step, {"reward/mean": step / 10})
    second.finish("FINISHED")
    assert second.run_id == first.run_id
    assert [line["step"] for line in second.metrics.lines()] == [1, 2, 3, 4, 5]
    history = second.client.get_metric_history(second.run_id, "reward/mean")
    assert [(m.step, m.value) for m in history] == [(i, i / 10) for i in range(1, 6)]


def test_a_run_goes_on_when_the_server_cannot_be_reached(tmp_path: Path) -> None:
    settings = TrackingConfig(backend=TrackingBackend.mlflow, uri="http://127.0.0.1:9")
    tracker = Tracker(settings, tmp_path)
    tracker.start("run", {}, {}, done_step=-1)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.finish("FINISHED")
    assert tracker.metrics.lines() == [{"step": 1, "reward/mean": 0.5}]


def test_a_fresh_store_survives_many_processes_at_once(tmp_path: Path) -> None:
    code = (
        "from drift.config import *; from drift.tracking import *; import pathlib; "
        f"f = pathlib.Path({str(tmp_path)!r}); "
        "t = Tracker(TrackingConfig(backend=TrackingBackend.mlflow, "
        "uri=f'sqlite:///{f}/mlflow.db'), pathlib.Path(__import__('tempfile').mkdtemp())); "
        "t.start('run', {}, {}, -1); t.log(1, {'a': 1.0}); t.finish('FINISHED'); "
        "assert t.run_id"
    )
    many = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(4)]
    assert [process.wait(timeout=120) for process in many] == [0, 0, 0, 0]
    client, _ = open_store(config(tmp_path))
    names = [experiment.name for experiment in client.search_experiments()]
    assert sorted(names) == ["Default", "drift"]
    experiment = client.get_experiment_by_name("drift")
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_wilson_interval_of_known_cases() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0, 10)[0] == 0
    assert round(wilson(10, 10)[1], 9) == 1
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_store_that_was_deleted_gets_a_new_run_with_every_step(tmp_path: Path) -> None:
    first = Tracker(config(tmp_path), tmp_path)
    first.start("run", {}, {}, done_step=-1)
    first.log(1, {"a": 0.1})
    first.finish("KILLED")
    (tmp_path / "mlflow_run_id").write_text("0" * 32)
    second = Tracker(config(tmp_path), tmp_path)
    second.start("run", {}, {}, done_step=1)
    second.log(2, {"a": 0.2})
    second.finish("FINISHED")
    assert second.run_id not in (first.run_id, "0" * 32)
    assert second.run_id is not None
    assert [m.step for m in second.client.get_metric_history(second.run_id, "a")] == [1, 2]
