"""metrics.jsonl and a real MLflow store."""

import sys
import time
from pathlib import Path

import pytest

from drift.common.errors import ConfigError
from drift.common.files import read_json, write_json
from drift.common.stats import wilson
from drift.config.tracking import MlflowConfig, OffConfig, WandbConfig
from drift.evals.cell import Cell, CellState
from drift.runs.stores import Card, MlflowStore, WandbStore, open_experiment
from drift.runs.tracking import MetricsFile, Tracker, sync


def config(folder: Path, uri: str | None = None) -> MlflowConfig:
    return MlflowConfig(
        uri=uri or f"sqlite:///{folder}/mlflow.db",
        system_metrics=False,
    )


def opened(folder: Path) -> MlflowStore:
    card = Card(name="run", params={}, tags={})
    return MlflowStore(config(folder), folder / "mlflow_run_id", card)


def store_of(tracker: Tracker) -> MlflowStore:
    assert isinstance(tracker.store, MlflowStore)
    return tracker.store


def points(store: MlflowStore, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in store.client.get_metric_history(store.run_id, name)]


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
    assert store_of(second).run_id == store_of(first).run_id
    assert [line["step"] for line in second.metrics.lines()] == [1, 2, 3, 4, 5]
    assert points(store_of(second), "reward/mean") == [(i, i / 10) for i in range(1, 6)]


def test_an_id_that_a_full_disk_did_not_take_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "mlflow_run_id").touch()
    run_id = opened(tmp_path).run_id
    assert (tmp_path / "mlflow_run_id").read_text() == run_id == opened(tmp_path).run_id


def test_the_same_lines_sent_twice_are_one_point_each(tmp_path: Path) -> None:
    store = opened(tmp_path)
    lines = [{"step": i, "unix_s": 1000.5 + i, "a": float(i)} for i in range(1, 4)]
    store.log(lines[:2])
    store.log(lines)
    assert points(store, "a") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    times = [m.timestamp for m in store.client.get_metric_history(store.run_id, "a")]
    assert times == [1_001_500, 1_002_500, 1_003_500]


def test_a_long_history_is_sent_in_calls_that_mlflow_allows(tmp_path: Path) -> None:
    store = opened(tmp_path)
    names = [f"m{i}" for i in range(300)]
    store.log([{"step": i, "unix_s": 1.0, **dict.fromkeys(names, i / 8)} for i in range(7)])
    assert points(store, "m299") == [(i, i / 8) for i in range(7)]


def test_a_run_goes_on_when_the_server_cannot_be_reached(tmp_path: Path) -> None:
    tracker = Tracker(config(tmp_path, "http://127.0.0.1:9"), tmp_path)
    tracker.start("run", {}, {}, done_step=-1)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.log_files([tmp_path / "tracking.json"])
    assert not tracker.finish("FINISHED")
    (line,) = tracker.metrics.lines()
    assert line == {"step": 1, "unix_s": line["unix_s"], "reward/mean": 0.5}


def test_wilson_interval_of_known_cases() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0, 10)[0] == 0
    assert round(wilson(10, 10)[1], 9) == 1
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.0, 1 / 3, 1.0])
def test_a_share_is_within_its_interval(share: float) -> None:
    for n in range(1, 3001):
        low, high = wilson(share * n, n)
        assert 0 <= low <= share * n / n <= high <= 1


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
    assert store_of(second).run_id not in (store_of(first).run_id, "0" * 32)
    assert points(store_of(second), "a") == [(1, 0.1), (2, 0.2)]


def test_a_copy_in_another_store_leaves_the_runs_own_alone(tmp_path: Path) -> None:
    tracker = Tracker(config(tmp_path), tmp_path)
    tracker.start("run", {}, {}, done_step=-1)
    tracker.log(1, {"a": 0.5})
    tracker.finish("FINISHED")
    summary = {"status": "finished", "mlflow_run_id": tracker.mlflow_run_id}
    write_json(tmp_path / "summary.json", summary)
    other = config(tmp_path, f"sqlite:///{tmp_path}/other.db")
    elsewhere = config(tmp_path)
    elsewhere.experiment = "elsewhere"
    for settings in (other, None, other, elsewhere, None):
        assert sync(tmp_path, settings) == ("up to date", 1)
    assert read_json(tmp_path / "summary.json") == summary
    for settings in (config(tmp_path), other, elsewhere):
        client, experiment = open_experiment(settings)
        (only,) = client.search_runs([experiment])
        assert (only.info.status, only.data.metrics["a"]) == ("FINISHED", 0.5)
    assert (tmp_path / "mlflow_run_id").read_text() == summary["mlflow_run_id"]


def test_an_evaluation_that_is_sent_later_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / "cells" / "protocol" / "checkpoint"
    folder.mkdir(parents=True)
    (tmp_path / "results.md").write_text("# Evaluation")
    Cell(folder, CellState(checkpoint="a", path="a", position=0, summary={"accuracy": 0.5})).save()
    tracker = Tracker(OffConfig(), folder)
    tracker.start("eval", {}, {"kind": "eval"}, done_step=-1)
    tracker.log(0, {"eval/accuracy": 0.5})
    tracker.finish("FINISHED")
    assert sync(folder, config(tmp_path)) == ("up to date", 1)
    client, experiment = open_experiment(config(tmp_path))
    (only,) = client.search_runs([experiment])
    assert only.info.status == "FINISHED"
    names = {item.path for item in client.list_artifacts(only.info.run_id)}
    assert names == {"cell.json", "metrics.jsonl", "results.md"}


def test_a_missing_wandb_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what `import` does without the package
    with pytest.raises(ConfigError, match=r"pip install 'drift\[wandb\]', or use tracking=mlflow"):
        Tracker(WandbConfig(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_long_tag_is_cut_to_what_wandb_takes(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    card = Card(name="run", params={}, tags={"sweep": "s" * 70})
    store = WandbStore(WandbConfig(), tmp_path / "wandb_run_id", card)
    assert wandb.run.tags == ("sweep=" + "s" * 58,)  # 64 characters
    store.finish("FINISHED")


def test_system_metrics_are_sampled_while_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    settings = config(tmp_path)
    settings.system_metrics = True
    tracker = Tracker(settings, tmp_path)
    tracker.start("run", {}, {}, done_step=-1)
    store = store_of(tracker)
    expected = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    deadline = time.monotonic() + 60
    while not expected <= store.client.get_run(store.run_id).data.metrics.keys():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert tracker.finish("FINISHED")
