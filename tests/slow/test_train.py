"""Whole runs, as a user starts them: what they write, and what a kill costs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from mlflow import MlflowClient

from tests.commands.test_train import SMALL
from tests.conftest import ROOT, Run, read_lines

NOT_THE_SAME_TWICE = ("time/", "mem/", "rollout/tokens_per_s", "unix_s")


def steady(path: Path) -> list[dict[str, object]]:
    """metrics.jsonl without what no two runs share."""
    return [
        {k: v for k, v in line.items() if not k.startswith(NOT_THE_SAME_TWICE)}
        for line in read_lines(path)
    ]


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "drift.train", *SMALL, *overrides]
    command.append(f"hydra.run.dir={folder / 'run'}")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not reach {count} lines")


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    overrides = ("num_steps=7", "objective=ppo_clip", "objective.kl_coef=0.01")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert start(whole, *overrides).wait(timeout=300) == 0
    for lines in (2, 6):
        process = start(killed, *overrides)
        wait_for_lines(killed / "run" / "metrics.jsonl", lines)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(killed, *overrides).wait(timeout=300) == 0

    a, b = whole / "run", killed / "run"
    assert steady(a / "metrics.jsonl") == steady(b / "metrics.jsonl")
    last = "checkpoints/step_000007/policy/model.safetensors"
    assert (a / last).read_bytes() == (b / last).read_bytes()
    first, second = (json.loads((f / "summary.json").read_text()) for f in (a, b))
    assert first["eval"] == second["eval"]
    client = MlflowClient(f"sqlite:///{killed}/outputs/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'drift'")
    (only,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(only.info.run_id, "reward/mean")
    assert [m.step for m in history] == [1, 2, 3, 4, 5, 6, 7]


def test_the_batch_on_the_device_changes_nothing_that_is_sampled(run: Run, tmp_path: Path) -> None:
    for rows in (5, 256):
        run("train", *SMALL, "num_steps=1", "tracking=off", f"rollout.max_rows={rows}",
            f"optim.tokens_per_forward={32 * rows}", f"hydra.run.dir=run{rows}")  # fmt: skip
    few, many = (read_lines(tmp_path / f"run{n}/rollouts/step_000001.jsonl") for n in (5, 256))
    assert few == many


def test_shuffled_rewards_are_the_same_rewards(run: Run, tmp_path: Path) -> None:
    for control in ("none", "shuffle"):
        run("train", *SMALL, "num_steps=2", "tracking=off", f"hydra.run.dir={control}",
            f"objective.reward_control={control}")  # fmt: skip
    plain, shuffled = (read_lines(tmp_path / c / "metrics.jsonl") for c in ("none", "shuffle"))
    assert plain[1]["reward/mean"] == shuffled[1]["reward/mean"]
    assert plain[1]["loss/policy"] != shuffled[1]["loss/policy"]


def test_bfloat16_trains_away_from_where_it_began(run: Run, tmp_path: Path) -> None:
    """Before the first update the reference is the policy, rounded alike."""
    run("train", *SMALL, "num_steps=1", "tracking=off", "model.dtype=bfloat16",
        "objective.kl_coef=0.1", "hydra.run.dir=run")  # fmt: skip
    _, line = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert float(line["optim/grad_norm"]) > 0  # type: ignore[arg-type]
    assert line["kl/k3"] == 0.0


def test_other_settings_in_the_same_folder_are_another_run_in_the_store(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def again(*overrides: str) -> tuple[str, int]:
        """What was said, and how many runs the store has; the newest holds what the file holds."""
        said = run("train", *SMALL, "eval.every=0", "checkpoint.every=1", *overrides,
                   "hydra.run.dir=run").stdout  # fmt: skip
        client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
        (experiment,) = client.search_experiments(filter_string="name = 'drift'")
        newest, *others = client.search_runs([experiment.experiment_id])
        assert newest.info.run_id == (folder / "mlflow_run_id").read_text()
        wanted = dict(word.split("=") for word in overrides if not word.startswith("num_steps"))
        assert wanted.items() <= newest.data.params.items()
        for name in ("reward/mean", "optim/lr"):
            history = client.get_metric_history(newest.info.run_id, name)
            lines = read_lines(folder / "metrics.jsonl")[1:]
            assert [(m.step, m.value) for m in history] == [(m["step"], m[name]) for m in lines]
        return said, 1 + len(others)

    assert again("num_steps=2")[1] == 1
    shutil.rmtree(folder / "checkpoints" / "step_000002")
    assert again("num_steps=3")[1] == 1
    shutil.rmtree(folder / "checkpoints" / "step_000003")
    said, count = again("num_steps=3", "optim.lr=1e-05")
    assert count == 2
    assert "resumed with optim.lr=1e-05, was 0.0002" in said
    assert "tracking: a new run; " in said
    shutil.rmtree(folder / "checkpoints")
    said, count = again("num_steps=2", "optim.lr=0.001")
    assert count == 3
    assert "begun again with optim.lr=0.001, was 1e-05" in said


def test_a_sweep_runs_its_jobs_into_one_experiment(run: Run, tmp_path: Path) -> None:
    run(
        "train",
        "-m",
        *SMALL,
        "num_steps=1",
        "masking=all,coupled",
        "model.dtype=float32,bfloat16",
        "hydra.sweep.dir=sweep",
    )
    maskings = {
        json.loads((tmp_path / "sweep" / job / "summary.json").read_text())["masking"]
        for job in ("0", "1", "2", "3")
    }
    assert maskings == {"all", "coupled"}
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'drift'")
    assert len(client.search_runs([experiment.experiment_id])) == 4
