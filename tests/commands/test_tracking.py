"""metrics.jsonl and a real MLflow store."""

from pathlib import Path

from drift.config.tracking import OffConfig
from drift.runs.stores import open_experiment
from drift.runs.tracking import Tracker
from tests.conftest import Run
from tests.unit.runs.test_tracking import config


def test_a_run_that_was_not_tracked_can_be_sent_to_a_store_later(run: Run, tmp_path: Path) -> None:
    tracker = Tracker(OffConfig(), tmp_path / "a")
    (tmp_path / "a").mkdir()
    tracker.start("run", {"seed": 3}, {"mine": "yes"}, done_step=-1)
    tracker.log(1, {"reward/mean": 0.5})
    tracker.finish("FINISHED")
    refused = run("track", "sync", "a", check=False)
    assert "drift: a was run with tracking=off; add tracking=mlflow or wandb" in refused.stderr
    for _ in range(2):  # the second time there is nothing left to send
        done = run("track", "sync", str(tmp_path), "tracking=mlflow", "tracking.uri=sqlite:///m.db")
        assert "1 run is up to date" in done.stdout
    client, experiment = open_experiment(config(tmp_path, f"sqlite:///{tmp_path}/m.db"))
    (only,) = client.search_runs([experiment])
    (id_file,) = (tmp_path / "a").glob("mlflow_run_id*")
    assert only.info.run_id == id_file.read_text()
    assert (only.data.params, only.data.tags["mine"]) == ({"seed": "3"}, "yes")
    assert only.info.status == "KILLED"  # it wrote no summary.json
    assert only.data.metrics == {"reward/mean": 0.5, "step": 1.0}
    nothing = run("track", "sync", "b", check=False)
    assert "drift: b holds no run: no tracking.json in it or below it" in nothing.stderr
