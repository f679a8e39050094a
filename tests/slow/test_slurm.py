"""Jobs of a real SLURM on this machine, sent and pre-empted as a user's are."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from drift.runs.sweep import refresh
from tests.conftest import ROOT, read_lines

pytestmark = pytest.mark.slurm
SCRIPT = ROOT / "scripts" / "slurm_one_node.sh"
JOB = ("cluster=slurm", "cluster.partition=main", "cluster.cpus_per_process=1", "debug=smoke",
       "task.train_size=200")  # fmt: skip
LONG = ("num_steps=100000", "eval.every=0", "checkpoint.every=0", "tracking=off")


def wait_for(what: str, true: Callable[[], bool], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)


def fields(record: str) -> dict[str, str]:
    """`JobId=7 JobState=RUNNING`: what scontrol says of a job."""
    return dict(re.findall(r"(\S+?)=(\S*)", record))


@dataclass
class Slurm:
    """A SLURM and an empty folder to type commands in."""

    environment: dict[str, str]
    folder: Path
    commands: list[subprocess.Popen[str]] = field(default_factory=list[Any])

    def call(self, *words: str) -> str:
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        """`python -m drift.train <overrides>`, which waits for its jobs."""
        command = subprocess.Popen(
            [sys.executable, "-m", "drift.train", *overrides],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.commands.append(command)
        return command

    def clear(self) -> None:
        """End what a test left behind."""
        for command in self.commands:
            command.kill()
            command.communicate()
        self.call("scancel", "--me")
        wait_for("cancelled jobs to end", lambda: not self.call("squeue", "-h"))

    def train(self, *overrides: str, code: int = 0) -> str:
        """What the command printed, once it and all jobs of this SLURM have ended."""
        command = self.start(*overrides)
        output = command.communicate(timeout=300)[0]
        assert command.returncode == code, output
        wait_for("the last job", lambda: not self.call("squeue", "-h"))
        return output

    def runs(self) -> list[Path]:
        """The run folders of the one sweep that was made here, by job number."""
        return sorted(self.folder.glob("outputs/sweeps/*/[0-9]*"))

    def job(self, index: int | None = None) -> dict[str, str]:
        """What SLURM says of the newest job, or of an element of the newest array."""
        records = [fields(line) for line in self.call("scontrol", "-o", "show", "job").splitlines()]
        records = [r for r in records if index is None or r.get("ArrayTaskId") == str(index)]
        return max(records, key=lambda record: int(record["JobId"]))


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    home = tempfile.mkdtemp(prefix="drift-slurm-", dir="/tmp")  # a short path: sockets lie in it
    values = os.environ | {
        "DRIFT_SLURM_HOME": home,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }

    def script(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([SCRIPT, command], env=values, capture_output=True, text=True)

    try:
        started = script("start")
        if started.returncode:
            pytest.skip(started.stderr.strip().splitlines()[-1])
        words = script("env").stdout.removeprefix("export ").split()
        found = dict(word.split("=", 1) for word in words)
        path = found["PATH"].replace("$PATH", values["PATH"])
        yield values | {"SLURM_CONF": found["SLURM_CONF"], "PATH": path}
    finally:
        script("stop")
        shutil.rmtree(home)


@pytest.fixture
def slurm(environment: dict[str, str], tmp_path: Path) -> Iterator[Slurm]:
    here = Slurm(environment, tmp_path)
    yield here
    here.clear()


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the evaluation before the first step."""
    path = folder / "metrics.jsonl"
    return [line for line in read_lines(path) if line["step"]] if path.exists() else []


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in lines(folder)]


def steps_through(slurm: Slurm, step: int) -> Path:
    """The folder of job 0, once it has logged a step."""
    wait_for(f"step {step}", lambda: any(step in steps(folder) for folder in slurm.runs()[:1]),
             timeout_s=300)  # fmt: skip
    return slurm.runs()[0]


def is_whole(folder: Path) -> None:
    """A finished run of three steps, in its folder and in MLflow."""
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"], steps(folder)) == ("finished", 3, [1, 2, 3])
    client = MlflowClient(f"sqlite:///{folder.parents[2]}/mlflow.db")
    run_id = summary["mlflow_run_id"]
    assert client.get_run(run_id).info.status == "FINISHED"
    history = client.get_metric_history(run_id, "reward/mean")
    there = [(point.step, point.value) for point in history]
    assert there == [(line["step"], line["reward/mean"]) for line in lines(folder)]


def test_a_sweep_of_four_jobs_runs_as_an_array_to_its_end(slurm: Slurm) -> None:
    slurm.train("-m", "masking=all,random", "seed=0,1", *JOB)
    folders = slurm.runs()
    assert [folder.name for folder in folders] == ["0", "1", "2", "3"]
    for folder in folders:
        is_whole(folder)
    assert [slurm.job(i)["JobState"] for i in range(4)] == ["COMPLETED"] * 4
    assert len({slurm.job(i)["ArrayJobId"] for i in range(4)}) == 1
    rewards = [[line["reward/mean"] for line in lines(folder)] for folder in folders]
    assert rewards[0] != rewards[1]  # of two seeds


def test_every_setting_reaches_slurm_also_without_m(slurm: Slurm) -> None:
    slurm.train(
        *JOB, "tracking=off", "cluster.gpus_per_node=1", "cluster.account=reasoning",
        "cluster.qos=normal", "cluster.memory_gb=1", "cluster.time_limit_min=30",
        "cluster.signal_delay_s=77", "cluster.max_restarts=3",
        "cluster.setup='env > slurm_env; cp $0 batch'",
    )  # fmt: skip
    said = slurm.job()
    asked = {
        "Account": "reasoning", "Partition": "main", "TimeLimit": "00:30:00",
        "NumNodes": "1", "NumTasks": "1", "CPUs/Task": "1", "MinMemoryNode": "1G",
        "TresPerNode": "gres:gpu:1", "JobName": "train", "JobState": "COMPLETED",
    }  # fmt: skip
    assert {key: said[key] for key in asked} == asked
    environment = (slurm.folder / "slurm_env").read_text().splitlines()
    assert {"SLURM_KILL_BAD_EXIT=1", "SRUN_CPUS_PER_TASK=1"} <= set(environment)
    batch = (slurm.folder / "batch").read_text()
    assert "#SBATCH --signal=USR2@77" in batch and "#SBATCH --qos=normal" in batch
    assert steps(slurm.runs()[0]) == [1, 2, 3]


def test_what_is_null_is_left_to_slurm(slurm: Slurm) -> None:
    slurm.train("cluster=slurm", *JOB[2:], "tracking=off", "cluster.setup='cp $0 batch'")
    batch = (slurm.folder / "batch").read_text()
    for flag in ("partition", "account", "qos", "gpus", "mem"):
        assert f"--{flag}" not in batch


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["cluster.partition=nowhere"], "Invalid partition name specified"),
        (["cluster.cpus_per_process=9999"], "Requested node configuration is not available"),
        (["cluster.gpus_per_node=8"], "cluster.gpus_per_node=8 and cluster.num_processes=1 must"),
        (["cluster.num_processes=null"], "cluster.num_processes=null"),
        (["cluster.time_limit_min=5"], "cluster.signal_delay_s=300 must be below"),
        (["cluster.partition=low,high"], "hydra.launcher.partition=low, but null for the whole"),
        (["cluster.time_limit_min=0"], "cluster.time_limit_min=0 must be a whole number of"),
    ],
)
def test_what_slurm_cannot_run_is_refused_before_anything_is_submitted(
    slurm: Slurm, overrides: list[str], reason: str
) -> None:
    before = slurm.call("scontrol", "-o", "show", "job")
    output = slurm.train("-m", "cluster=slurm", "cluster.cpus_per_process=1", *overrides, code=1)
    assert reason in output and "Traceback" not in output
    assert slurm.call("scontrol", "-o", "show", "job") == before
    assert not (slurm.folder / "outputs").exists()


def test_elements_that_fail_do_not_hide_the_others(slurm: Slurm) -> None:
    command = slurm.start(
        "-m",
        "model.path=data/tiny-countdown,nowhere",
        "num_steps=100000,3",
        *JOB,
        "tracking=mlflow",
    )
    steps_through(slurm, 1)
    slurm.call("scancel", "--signal=KILL", slurm.job(0)["JobId"])  # it dies without a word
    output = command.communicate(timeout=300)[0]
    wait_for("the last job", lambda: not slurm.call("squeue", "-h"))
    assert command.returncode == 1 and "Traceback" not in output, output
    killed, finished = slurm.job(0), slurm.job(1)
    assert [killed["JobState"], finished["JobState"]] == ["CANCELLED", "COMPLETED"]
    assert f"job {killed['ArrayJobId']}_0 ended without a result (CANCELLED)" in output
    is_whole(slurm.runs()[1])
    jobs = refresh(slurm.runs()[0].parent)["jobs"]
    assert [job["status"] for job in jobs[1:]] == ["finished", "failed", "failed"]
    assert jobs[2]["error"].startswith("model.path=nowhere is not a folder")


def restart_now(slurm: Slurm, restarts: int) -> None:
    """A requeued job waits for two minutes unless it is told otherwise."""
    wait_for("the requeue", lambda: int(slurm.job()["Restarts"]) == restarts)
    job = slurm.job()["JobId"]
    wait_for("the job's return to the queue", lambda: slurm.job()["JobState"] == "PENDING")
    slurm.call("scontrol", "update", f"jobid={job}", "StartTime=now")


def resumed_at(folder: Path) -> list[int]:
    """The steps at which train.log says that the run was taken up."""
    log = folder / "train.log"
    found = re.findall(r"resumed .* at step (\d+)", log.read_text()) if log.exists() else []
    return [int(step) for step in found]


def test_a_requeued_job_goes_on_from_its_newest_checkpoint(slurm: Slurm) -> None:
    slurm.start(*JOB, *LONG, "checkpoint.every=1", "tracking=mlflow")
    folder = steps_through(slurm, 3)
    slurm.call("scontrol", "requeue", slurm.job()["JobId"])
    restart_now(slurm, 1)  # SLURM kills a job that works on after its SIGTERM, then requeues it
    killed_at = steps(folder)[-1]
    steps_through(slurm, killed_at + 3)
    assert resumed_at(folder) in ([killed_at], [killed_at - 1])
    assert steps(folder)[: killed_at + 3] == list(range(1, killed_at + 4))
    client = MlflowClient(f"sqlite:///{slurm.folder}/outputs/mlflow.db")
    run_id = (folder / "mlflow_run_id").read_text()

    def sent() -> list[int]:
        return [m.step for m in client.get_metric_history(run_id, "reward/mean")]

    wait_for("the steps in MLflow", lambda: len(sent()) > killed_at + 1)
    there = sent()
    assert there == list(range(1, len(there) + 1))


def test_pre_emption_by_usr2_checkpoints_at_the_step_boundary(slurm: Slurm) -> None:
    """Nothing but the signal makes a checkpoint here, and no step is done twice."""
    slurm.start(*JOB, *LONG)
    folder = steps_through(slurm, 5)
    slurm.call("scancel", "--signal=USR2", slurm.job()["JobId"])
    restart_now(slurm, 1)
    before = (folder / "metrics.jsonl").read_text()
    last = steps(folder)[-1]
    assert (folder / "checkpoints" / f"step_{last:06d}" / "state.json").exists()
    steps_through(slurm, last + 3)
    assert resumed_at(folder) == [last]
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    assert steps(folder)[: last + 3] == list(range(1, last + 4))


def test_a_run_longer_than_the_time_limit_goes_on_after_it(slurm: Slurm) -> None:
    slurm.start(*JOB, *LONG, "cluster.time_limit_min=1", "cluster.signal_delay_s=20")
    folder = steps_through(slurm, 1)
    restart_now(slurm, 1)
    before = (folder / "metrics.jsonl").read_text()
    last = steps(folder)[-1]
    steps_through(slurm, last + 3)
    assert resumed_at(folder) == [last]
    assert (folder / "metrics.jsonl").read_text().startswith(before)


def test_the_two_tasks_of_a_job_are_two_ranks_of_one_run(slurm: Slurm) -> None:
    slurm.train("-m", "cluster.num_processes=2", "rollout.prompts_per_step=4", *JOB)
    assert slurm.job()["NumTasks"] == "2"
    (folder,) = slurm.runs()
    is_whole(folder)
    alone = slurm.folder / "alone"
    command = [sys.executable, "-m", "drift.train", *JOB[3:], "tracking=off"]
    subprocess.run(
        [*command, f"hydra.run.dir={alone}"],
        cwd=slurm.folder, env=slurm.environment, check=True, capture_output=True,
    )  # fmt: skip
    compared = {"reward/mean", "rollout/nfe", "loss/policy", "optim/grad_norm"}
    for two, one in zip(lines(folder), lines(alone), strict=True):
        for name in compared & one.keys():  # a step that teaches nothing has no loss
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
