"""Sweeps as a user starts them: a job that fails, an interruption, what is left to run."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from drift.common.files import read_json
from drift.runs.sweep import by_key, refresh
from tests.conftest import ROOT, Run
from tests.unit.runs.test_sweep import statuses

TINY = (
    "debug=smoke",
    "task.train_size=200",
    "num_steps=2",
    "rollout.prompts_per_step=2",
    "eval.max_examples=10",
)


def test_a_failed_job_is_shown_and_the_others_go_on(run: Run, tmp_path: Path) -> None:
    sweep = ("-m", *TINY, "task.files.train=null,data.jsonl", "seed=0,1", "hydra.sweep.dir=sweep")
    done = run("train", *sweep, check=False)
    assert done.returncode == 1
    folder = tmp_path / "sweep"
    assert statuses(folder) == ["finished", "finished", "failed", "failed"]
    assert "this job failed, the others go on: data.jsonl: no such data file" in done.stdout
    assert "job 3: data.jsonl: no such data file" in done.stdout
    assert "compare: python -m drift.compare sweep=sweep" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    command = (
        f"python -m drift.train -m {' '.join(TINY)} "
        "task.files.train=null,data.jsonl seed=0,1 hydra.sweep.dir=sweep"
    )
    assert line == f"drift: 2 jobs are not finished; run what is missing: {command}"
    job = read_json(folder / "sweep.json")["jobs"][2]
    assert job["overrides"][-2:] == ["task.files.train=data.jsonl", "seed=0"]

    records = "".join(f'{{"numbers": [{i}, 2, 5], "target": {i + 3}}}\n' for i in range(1, 9))
    (tmp_path / "data.jsonl").write_text(records)  # the mistake is mended
    before = {path: path.read_bytes() for path in (folder / "0").rglob("*.json*")}
    done = run("train", *sweep)
    assert "job 1 is finished" in done.stdout
    assert statuses(folder) == ["finished"] * 4
    assert {path: path.read_bytes() for path in before} == before

    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'drift'")
    runs = client.search_runs([experiment.experiment_id], filter_string="tags.sweep = 'sweep'")
    assert len(runs) == 4
    one = next(run for run in runs if run.data.tags["sweep_job"] == "3")
    assert one.info.run_name == "seed=1 task.files.train=data.jsonl"
    assert one.data.tags["seed"] == one.data.params["seed"] == "1"
    assert one.data.params["task.files.train"] == "data.jsonl"
    assert "mlflow.parentRunId" not in one.data.tags
    ids = {job["mlflow_run_id"] for job in read_json(folder / "sweep.json")["jobs"]}
    assert ids == {run.info.run_id for run in runs}


def test_a_job_that_fails_in_the_loop_leaves_nothing_that_ends_the_next(
    run: Run, tmp_path: Path
) -> None:
    """Its watchdog, which would have waited for it, is gone."""
    lasts = ("num_steps=100000", "max_training_s=14", "cluster.timeout_s=10", "eval.every=0")
    sweep = ("-m", *TINY, *lasts, "checkpoint.every=0", "optim.lr=1e30,1e-9", "hydra.sweep.dir=s")
    run("train", *sweep, check=False)
    assert statuses(tmp_path / "s") == ["failed", "finished"]


def test_jobs_in_other_processes_keep_sweep_json_up_to_date(run: Run, tmp_path: Path) -> None:
    done = run(
        "train", "-m", *TINY, "tracking=off", "hydra/launcher=submitit_local",
        "task.files.train=null,nothing.jsonl", "hydra.sweep.dir=sweep", check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert statuses(tmp_path / "sweep") == ["finished", "failed"]
    assert "drift: 1 job is not finished; run what is missing: " in done.stderr
    job = read_json(tmp_path / "sweep" / "1" / "job.json")
    assert job["error"] == "nothing.jsonl: no such data file"


def job_process(lock: Path) -> int:
    """The process that holds a run's lock."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(path.readlink() == lock for path in (folder / "fd").iterdir()):
                return int(folder.name)
        except OSError:  # it ended, or is another user's
            continue
    raise AssertionError(f"no process has {lock} open")


def begin(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start a sweep in `sweep` and wait until its first job has done some steps."""
    command = [sys.executable, "-m", "drift.train", *overrides, "hydra.sweep.dir=sweep"]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = folder / "sweep" / "0" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_a_job_that_is_killed_elsewhere_is_told_in_one_line(tmp_path: Path) -> None:
    process = begin(
        tmp_path, "-m", *TINY, "tracking=off", "hydra/launcher=submitit_local",
        "num_steps=4000,2", "checkpoint.every=1000", "eval.every=0",
    )  # fmt: skip
    os.kill(job_process(tmp_path / "sweep" / "0" / ".lock"), signal.SIGKILL)
    said, error = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in said + error
    assert statuses(tmp_path / "sweep")[0] == "killed"
    assert "job 0: its process ended without a word" in said
    assert "ended without a result" in error and "the others go on" in error
    assert "run what is missing: python -m drift.train -m" in error
    deadline = time.monotonic() + 300
    while refresh(tmp_path / "sweep")["jobs"][1]["status"] != "finished":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_interrupted_sweep_is_taken_up_where_it_was(run: Run, tmp_path: Path) -> None:
    sweep = ("-m", *TINY, "tracking=off", "num_steps=400,2", "checkpoint.every=100", "eval.every=0")
    process = begin(tmp_path, *sweep)
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=60)
    assert process.returncode == 130, said
    again = shlex.join(["python", "-m", "drift.train", *sweep, "hydra.sweep.dir=sweep"])
    assert error.splitlines()[-1] == f"drift: interrupted; run what is missing: {again}"
    assert statuses(tmp_path / "sweep") == ["killed", "waiting"]
    assert "killed" in said
    changed = [word.replace("num_steps=400,2", "num_steps=3,2") for word in sweep]
    refused = run("train", *changed, "hydra.sweep.dir=sweep", check=False)
    assert "holds another sweep: its job 0 is" in refused.stderr
    run("train", *sweep, "hydra.sweep.dir=sweep")
    assert statuses(tmp_path / "sweep") == ["finished", "finished"]


def test_optuna_looks_for_the_highest_validation_accuracy(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    done = run(
        "train", "-m", *TINY, "tracking=off", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2",
        "hydra.sweeper.direction=maximize", "hydra.sweeper.n_jobs=1",
        "optim.lr=tag(log,interval(1e-5,1e-3))", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    content = read_json(tmp_path / "sweep" / "sweep.json")
    assert content["swept"] == ["optim.lr"]
    assert statuses(tmp_path / "sweep") == ["finished", "finished"]
    rates = [by_key(job["overrides"])["optim.lr"] for job in content["jobs"]]
    assert len(set(rates)) == 2
    assert all(1e-5 <= float(rate) <= 1e-3 for rate in rates)
    assert "best_value: 0." in (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    assert "Best value" in done.stdout
