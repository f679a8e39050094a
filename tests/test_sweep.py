"""Sweeps as a user starts them: a job that fails, an interruption, what is left to run."""

import errno
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from drift.common.errors import ConfigError, DataError
from drift.common.files import in_use, is_locked, locked, locked_shared, read_json, sole_user
from drift.runs.sweep import LOCK, by_key, plan, refresh, state, what_is_left
from tests.conftest import ROOT, Run

TINY = (
    "debug=smoke",
    "num_steps=2",
    "rollout.prompts_per_step=2",
    "eval.max_examples=10",
)


def statuses(sweep: Path) -> list[str]:
    return [job["status"] for job in read_json(sweep / "sweep.json")["jobs"]]


def test_overrides_by_key() -> None:
    assert by_key(["masking=all", "+task.settings.x=a=b", "~debug"]) == {
        "masking": "all",
        "task.settings.x": "a=b",
    }


def write(path: Path, content: dict[str, Any], when: float) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    os.utime(path, (when, when))


def test_the_newer_file_of_a_job_knows_its_status(tmp_path: Path) -> None:
    """A job that failed, was run again by itself and is now finished; and the other way round."""
    summary = {"status": "finished", "steps": 3, "wall_s": 1.5, "eval": {"last": {"accuracy": 0.5}}}
    summary["mlflow_run_id"] = "abc"
    write(tmp_path / "0" / "job.json", {"status": "failed", "error": "no room"}, when=100)
    assert state(tmp_path / "0") == {"status": "failed", "error": "no room"}
    write(tmp_path / "0" / "summary.json", summary, when=200)
    told = state(tmp_path / "0")
    assert (told["status"], told["error"], told["accuracy"]) == ("finished", None, 0.5)
    write(tmp_path / "0" / "job.json", {"status": "running", "error": None}, when=300)
    assert state(tmp_path / "0")["status"] == "running"
    assert state(None) == {"status": "waiting"}


def test_sweep_json_is_computed_from_what_the_jobs_wrote(tmp_path: Path) -> None:
    plan(tmp_path, "again", ["seed"], [["seed=0"], ["seed=1"]])
    assert statuses(tmp_path) == ["waiting", "waiting"]
    content = read_json(tmp_path / "sweep.json")
    content["jobs"][1]["folder"] = "1"
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    write(tmp_path / "1" / "job.json", {"status": "failed", "error": "no room"}, when=100)
    assert [job["status"] for job in refresh(tmp_path)["jobs"]] == ["waiting", "failed"]
    plan(tmp_path, "again", ["seed"], [["seed=0"], ["seed=1"]])  # taken up: nothing is forgotten
    assert statuses(tmp_path) == ["waiting", "failed"]


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ([["seed=0"], ["seed=2"]], "its job 1 is `seed=1`, not `seed=2`"),
        ([["seed=0"]], "holds a sweep of 2 jobs, not 1"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(
    tmp_path: Path, jobs: list[list[str]], words: str
) -> None:
    plan(tmp_path, "again", ["seed"], [["seed=0"], ["seed=1"]])
    with pytest.raises(ConfigError, match="choose another folder") as caught:
        plan(tmp_path, "again", ["seed"], jobs)
    assert words in str(caught.value)


@pytest.mark.slow
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
        "python -m drift.train -m debug=smoke num_steps=2 rollout.prompts_per_step=2 "
        "eval.max_examples=10 task.files.train=null,data.jsonl seed=0,1 hydra.sweep.dir=sweep"
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


def test_locks_ask_for_no_more_than_their_file_was_opened_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS makes flock a lock of byte ranges, which needs reading to share and writing to own."""
    monkeypatch.setattr("fcntl.flock", fcntl.lockf)
    for hold in (locked, locked_shared):
        with hold(tmp_path / "lock"):
            assert not is_locked(tmp_path / "lock")  # such a lock does not hold its own process


FORK = """
import os, sys, time
from pathlib import Path
from drift.files import sole_user
with sole_user(Path(sys.argv[1]), ""):
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    print(pid, flush=True)
    time.sleep(600)
"""


def test_a_folder_is_free_when_its_user_was_killed_whatever_process_it_forked(
    tmp_path: Path,
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", FORK, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert holder.stdout is not None
    forked = int(holder.stdout.readline())
    try:
        assert in_use(tmp_path)
        with pytest.raises(ConfigError, match="taken"), sole_user(tmp_path, "taken"):
            pass
        assert in_use(tmp_path)
        holder.kill()
        holder.wait()
        assert not in_use(tmp_path)
        with sole_user(tmp_path, "taken"):
            assert in_use(tmp_path)
    finally:
        os.kill(forked, signal.SIGKILL)
        holder.kill()
        holder.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_was_removed_locks_nothing(tmp_path: Path) -> None:
    """Who opened it before its holder removed it makes a new one, and others see that."""
    opened = os.open

    def removed_meanwhile(path: Any, *arguments: Any) -> int:
        descriptor = opened(path, *arguments)
        if path == str(tmp_path / "lock") and not removed:
            removed.append(path)
            Path(path).unlink()
        return descriptor

    removed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.open", removed_meanwhile)
        with locked(tmp_path / "lock"):
            assert removed and is_locked(tmp_path / "lock")


def test_where_there_are_no_locks_one_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_lock(*_: object) -> None:
        """Lustre without -o flock."""
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_lock)
    with sole_user(tmp_path, ""), locked(tmp_path / "lock"):
        assert is_locked(tmp_path / "lock")  # nobody is taken for dead
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path}: its file system has no locks (Function not")


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "is not JSON: "), ("[]", "is not a JSON object")]
)
def test_a_torn_file_of_a_sweep_is_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(DataError) as caught:
        refresh(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'sweep.json'} {reason}")


@pytest.mark.slow
def test_a_job_that_fails_in_the_loop_leaves_nothing_that_ends_the_next(
    run: Run, tmp_path: Path
) -> None:
    """Its watchdog, which would have waited for it, is gone."""
    lasts = ("num_steps=100000", "max_training_s=14", "cluster.timeout_s=10", "eval.every=0")
    sweep = ("-m", *TINY, *lasts, "checkpoint.every=0", "optim.lr=1e30,1e-9", "hydra.sweep.dir=s")
    run("train", *sweep, check=False)
    assert statuses(tmp_path / "s") == ["failed", "finished"]


@pytest.mark.slow
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


HOLD = """
import sys, time
from pathlib import Path
from drift.files import locked_shared
with locked_shared(Path(sys.argv[1]) / ".job.lock"):
    print("here", flush=True)
    time.sleep(600)
"""


def test_a_job_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    """On this machine its lock says so; of a job on another machine nothing is known."""
    job = {"status": "running", "error": None, "host": socket.gethostname()}
    write(tmp_path / "0" / "job.json", job, when=100)
    assert state(tmp_path / "0")["status"] == "running"  # by a version that held no lock
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "0")], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    with locked_shared(tmp_path / "0" / LOCK):  # another rank
        assert state(tmp_path / "0")["status"] == "running"
    assert state(tmp_path / "0")["status"] == "running"
    process.kill()
    process.communicate()
    assert state(tmp_path / "0") == {
        "status": "killed",
        "error": "its process ended without a word",
    }
    with (tmp_path / "0" / ".lock").open("w") as lock:  # it was started again by itself
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state(tmp_path / "0")["status"] == "running"
    write(tmp_path / "0" / "job.json", job | {"host": "elsewhere"}, when=100)
    assert state(tmp_path / "0")["status"] == "running"


def test_what_is_left_of_a_sweep_is_told_when_a_job_starts(tmp_path: Path) -> None:
    jobs: list[dict[str, Any]] = [
        {"folder": "0", "status": "finished"},
        {"folder": "1", "status": "failed"},
        {"folder": "2", "status": "running"},
        *({"folder": None, "status": "waiting"} for _ in range(3)),
    ]
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps({"jobs": jobs}))
    write(tmp_path / "2" / "job.json", {"started": 300.0, "ended": None}, when=300)
    assert what_is_left(tmp_path) == "3 more wait"
    write(tmp_path / "0" / "job.json", {"started": 100.0, "ended": 130.0}, when=130)
    write(tmp_path / "1" / "job.json", {"started": 130.0, "ended": 140.0}, when=140)
    assert what_is_left(tmp_path) == "3 more wait, 1:20 left"  # four jobs of 20 s
    jobs[3] = {"folder": None, "status": "running"}  # two at the same time
    sweep.write_text(json.dumps({"jobs": jobs}))
    assert what_is_left(tmp_path) == "2 more wait, 0:40 left"
    sweep.write_text(json.dumps({"jobs": jobs[:4]}))
    assert what_is_left(tmp_path) == ""


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
