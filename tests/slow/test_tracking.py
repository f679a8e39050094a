"""metrics.jsonl and a real MLflow store."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drift.config.tracking import WandbConfig
from drift.runs.stores import open_experiment
from drift.runs.tracking import MetricsFile, Tracker
from tests.conftest import ROOT
from tests.unit.runs.test_tracking import config

WRITER = """
import sys
from pathlib import Path
from drift.config.tracking import MlflowConfig, OffConfig, WandbConfig
from drift.common.errors import ConfigError
from drift.runs.tracking import Tracker
store, folder, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
folder.mkdir()
tracker = Tracker(MlflowConfig(uri=store), folder)
tracker.start(f"writer {number}", {"number": number}, {}, -1)
for step in range(1, 13):
    tracker.log(step, {"mine": 100.0 * number + step, "other": 0.5})
    tracker.upload()
sys.exit(not tracker.finish("FINISHED"))
"""


def test_ten_writers_into_one_fresh_store_lose_and_misfile_nothing(tmp_path: Path) -> None:
    """Two whole training runs and eight writers of twelve steps, all started at once."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    commands = [
        [sys.executable, "-c", WRITER, uri, str(tmp_path / f"writer{i}"), str(i)] for i in range(8)
    ]
    commands += [
        [sys.executable, "-m", "drift.train", "debug=smoke", "task.train_size=200", f"seed={seed}",
         f"tracking.uri={uri}", f"hydra.run.dir={tmp_path}/run{seed}"]
        for seed in (0, 1)
    ]  # fmt: skip
    many = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    said = [process.communicate(timeout=300)[0] for process in many]
    assert [process.returncode for process in many] == [0] * 10, said
    assert not any("tracking:" in text for text in said), said

    client, experiment = open_experiment(config(tmp_path))
    assert sorted(e.name for e in client.search_experiments()) == ["Default", "drift"]
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    assert len(runs) == 10
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for number in range(8):
        run_id = (tmp_path / f"writer{number}" / "mlflow_run_id").read_text()
        assert runs[run_id].data.params == {"number": str(number)}
        history = client.get_metric_history(run_id, "mine")
        assert [(m.step, m.value) for m in history] == [
            (step, 100.0 * number + step) for step in range(1, 13)
        ]
    for seed in (0, 1):
        run_id = (tmp_path / f"run{seed}" / "mlflow_run_id").read_text()
        assert runs[run_id].data.params["seed"] == str(seed)
        for line in MetricsFile(tmp_path / f"run{seed}" / "metrics.jsonl").lines():
            for name in line.keys() - {"step", "unix_s"}:
                history = client.get_metric_history(run_id, name)
                assert [m.value for m in history if m.step == line["step"]] == [line[name]]


def wandb_history(folder: Path) -> dict[int, dict[str, float]]:
    """What the newest offline file holds, by step; it is a log of length-prefixed records."""
    from wandb.proto import wandb_internal_pb2

    (path,) = (folder / "wandb" / "latest-run").resolve().glob("*.wandb")
    data, place, found = path.read_bytes(), 7, {}
    assert len(data) < 32_768  # one block
    while place + 7 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[place + 7 : place + 7 + length])
        place += 7 + length
        if record.WhichOneof("record_type") == "history":
            items = {(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item}
            step = int(items.pop("_step"))
            found[step] = {k: float(v) for k, v in items.items() if not k.startswith("_")}
    return found


def test_wandb_offline_has_every_step_also_after_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    settings = WandbConfig()
    for steps, done in (((1, 2, 3), -1), ((3, 4), 2)):
        tracker = Tracker(settings, tmp_path)
        tracker.start("run", {"seed": 0}, {"sweep": "s"}, done_step=done)
        for step in steps:
            tracker.log(step, {"reward/mean": step / 4})
        assert tracker.finish("FINISHED")
        ids = {(tmp_path / "wandb_run_id").read_text()}
        assert tracker.store is not None
        assert ids == {tracker.store.run_id}
        assert tracker.mlflow_run_id is None
    expected = {step: {"reward/mean": step / 4} for step in (1, 2, 3, 4)}
    deadline = time.monotonic() + 60  # wandb's own process flushes the file in its own time
    while wandb_history(tmp_path) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    assert wandb_history(tmp_path) == expected
