"""Whole runs, as a user starts them: what they write, and what a kill costs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from drift.common.errors import CheckpointError
from drift.runs.checkpoints import check, newest
from drift.runs.tracking import PHASES, TRAINING
from tests.conftest import ROOT, Run, read_lines

SMALL = (
    "rollout.prompts_per_step=8",
    "rollout.group_size=4",
    "task.train_size=200",
    "rollout.temperature=1.5",  # so that a few groups hold right and wrong answers
    "eval.max_examples=20",
    "eval.every=3",
    "checkpoint.every=2",
)
ELSEWHERE = {  # metrics that the default does not log
    "kl/k1", "reward/nfe_share", "reward/kept_mean", "rollout/rounds", "rollout/drawn_prompts",
    "rollout/commits",
    "curriculum/varied_groups", "curriculum/surplus_groups", "curriculum/seen_frac",
    "curriculum/pass_rate", "curriculum/effective_frac", "value/loss", "value/mean",
    "value/explained_variance",
}  # fmt: skip


def test_a_run_writes_what_the_readme_promises(run: Run, tmp_path: Path) -> None:
    done = run("train", *SMALL, "num_steps=3", "hydra.run.dir=outputs/run")
    folder = tmp_path / "outputs" / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["model"], summary["task"], summary["masking"]) == (
        "tiny", "countdown", "sequential",
    )  # fmt: skip
    assert summary["steps"] == 3
    assert set(summary["eval"]) == {"first", "last", "best"}
    assert set(summary["eval"]["first"]) == {"accuracy", "n", "ci95", "split", "step"}
    assert set(summary["phase_s"]) == set(PHASES)
    assert Path(summary["checkpoint"]).name == "step_000003"
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert len(read_lines(folder / "rollouts" / "step_000001.jsonl")) == 32
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["data"]["test"]["n"] == 20
    assert manifest["first_prompt"].endswith("<|eot_id|><|assistant|>")
    assert manifest["data"]["train"]["n"] == 200
    assert "masking: sequential" in (folder / "config.yaml").read_text()

    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    record = client.get_run(summary["mlflow_run_id"])
    assert record.info.status == "FINISHED"
    assert record.info.artifact_uri.startswith(f"file://{tmp_path}/outputs/mlflow-artifacts")
    assert record.data.params["rollout.group_size"] == "4"
    history = client.get_metric_history(summary["mlflow_run_id"], "reward/mean")
    assert [(m.step, m.value) for m in history] == [
        (line["step"], line["reward/mean"]) for line in lines[1:]
    ]
    names = {item.path for item in client.list_artifacts(summary["mlflow_run_id"])}
    assert {"config.yaml", "manifest.json", "samples.json", "summary.json"} <= names
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/outputs/mlflow.db" in done.stdout
    assert done.stderr == ""
    logged = set().union(*(line.keys() for line in lines)) - {"step"}
    documented = (ROOT / "docs" / "metrics.md").read_text()
    assert [name for name in sorted(logged) if f"`{name}`" not in documented] == []
    assert set(re.findall(r"^\| `([^`]+)`", documented, re.MULTILINE)) - logged == ELSEWHERE


def test_the_newest_whole_checkpoint_is_taken(run: Run, tmp_path: Path) -> None:
    run("train", *SMALL, "num_steps=4", "eval.every=0", "tracking=off", "hydra.run.dir=run")
    folder = tmp_path / "run" / "checkpoints"
    weights = folder / "step_000004" / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what was written"):
        check(folder / "step_000004")
    found = newest(folder)
    assert found is not None
    assert found[0].name == "step_000002"
    (folder / ".writing-step_000006").mkdir()
    done = run("train", *SMALL, "num_steps=4", "eval.every=0", "tracking=off", "hydra.run.dir=run")
    assert "trying the checkpoint before it" in done.stdout
    assert "step_000002 at step 2" in done.stdout
    check(folder / "step_000004")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for checkpoint in (2, 4):
        (folder / f"step_{checkpoint:06d}" / "policy" / "config.json").write_text("{}")
    done = run("train", *SMALL, "num_steps=6", "hydra.run.dir=run", check=False)
    assert "step_000004 is damaged" in done.stdout
    assert re.search(r"step_000002 is damaged: .* with resume=FOLDER, or begin again", done.stderr)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_ends_when_its_training_time_is_spent(run: Run, tmp_path: Path) -> None:
    settings = (*SMALL, "tracking=off", "eval.every=0", "checkpoint.every=0", "hydra.run.dir=run")
    run("train", *settings, "num_steps=100000", "max_training_s=1.5")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    spent = [sum(line[f"time/{phase}_s"] for phase in TRAINING)
             for line in read_lines(tmp_path / "run" / "metrics.jsonl")[1:]]  # fmt: skip
    assert sum(spent[:-1]) < 1.5 <= sum(spent)
    assert summary["status"] == "finished"
    assert summary["steps"] == summary["eval"]["last"]["step"] == len(spent)
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    rows = json.loads((tmp_path / "run" / "evals" / "last.json").read_text())["completions"]
    assert last["eval/nfe"] == pytest.approx(sum(row["nfe"] for row in rows) / len(rows))
    assert "eval/accuracy" not in last  # eval.every=0
    assert "is finished" in run("train", *settings, "max_training_s=1.5").stdout
    more = (f"num_steps={len(spent) + 2}", "max_training_s=1000")
    longer = run("train", *settings, *more).stdout
    assert f"at step {len(spent)}" in longer and "is finished" not in longer


def test_a_run_taken_up_behind_its_end_is_evaluated_there(run: Run, tmp_path: Path) -> None:
    settings = (*SMALL, "tracking=off", "eval.every=0", "checkpoint.every=1", "hydra.run.dir=run")
    run("train", *settings, "num_steps=3")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000003")
    run("train", *settings, "num_steps=1")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["eval"]["last"]["step"]) == ("finished", 2)


def test_fine_tuning_lowers_the_loss_and_saves_a_policy(run: Run, tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    script = ROOT / "scripts" / "blank_tiny.py"
    subprocess.run([sys.executable, str(script), "llada", str(blank)], check=True, cwd=ROOT,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    done = run("sft", f"model.path={blank}", "task.train_size=200", "num_steps=40",
               "sft.batch_size=16", "sft.log_every=10", "eval.max_examples=5", "eval.every=0",
               "optim.lr=3e-3", "hydra.run.dir=sft")  # fmt: skip
    losses = [float(line.split("loss ")[1].split()[0]) for line in done.stdout.splitlines()
              if " loss " in line]  # fmt: skip
    assert len(losses) == 4
    assert losses[-1] < 0.6 * losses[0]
    assert (tmp_path / "sft" / "policy" / "tokenizer.json").exists()


def test_a_resumed_run_says_what_was_changed(run: Run, tmp_path: Path) -> None:
    run("train", *SMALL, "num_steps=1", "tracking=off", "hydra.run.dir=run")
    done = run("train", *SMALL, "num_steps=2", "tracking=off", "hydra.run.dir=run")
    assert "resumed with num_steps=2, was 1" in done.stdout
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2]


def test_a_finished_run_is_not_run_again_and_never_overwritten(run: Run, tmp_path: Path) -> None:
    run("train", *SMALL, "num_steps=2", "tracking=off", "hydra.run.dir=run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json*")}
    done = run("train", *SMALL, "num_steps=2", "tracking=off", "hydra.run.dir=run")
    assert "run is finished" in done.stdout
    refused = run("train", *SMALL, "resume=never", "hydra.run.dir=run", check=False)
    assert "holds a run; use resume=auto or another hydra.run.dir" in refused.stderr
    for change, words in (
        ("optim.lr=1e-3", "optim.lr=0.0002, not 0.001"),
        ("task.seed=7", "task.seed=0, not 7"),
        ("num_steps=1", "num_steps=2, not 1"),
    ):
        other = run("train", *SMALL, "num_steps=2", change, "hydra.run.dir=run", check=False)
        assert (other.returncode, len(other.stderr.splitlines())) == (1, 1)
        assert f"run holds a finished run with {words}" in other.stderr
        assert other.stderr.endswith("; choose another hydra.run.dir\n")
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_is_killed_after_its_last_step_tells_its_end_when_given_again(
    run: Run, tmp_path: Path
) -> None:
    code = """
import os, drift.train, drift.training.run
drift.training.run.follow = lambda trainer: (trainer.fit(), os.kill(os.getpid(), 9))
drift.train.run_command("train", drift.training.run.run)
"""
    settings = (*SMALL, "num_steps=2", "tracking.uri=sqlite:///db", "hydra.run.dir=run")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *settings]
    killed = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, timeout=300
    )
    assert killed.returncode == -9
    for words in ("at step 2", "run is finished"):
        assert words in run("train", *settings).stdout
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["status"] == "finished"
        client = MlflowClient(f"sqlite:///{tmp_path}/db")
        assert client.get_run(summary["mlflow_run_id"]).info.status == "FINISHED"
        history = client.get_metric_history(summary["mlflow_run_id"], "reward/mean")
        assert [point.step for point in history] == [1, 2]


def test_the_same_command_goes_on_also_where_it_began_from_a_checkpoint(
    run: Run, tmp_path: Path
) -> None:
    settings = (*SMALL, "tracking=off", "eval.every=0", "checkpoint.every=1")
    run("train", *settings, "num_steps=1", "hydra.run.dir=one")
    branch = (*settings, "resume=one/checkpoints/step_000001", "hydra.run.dir=two")
    done = run("train", *branch, "num_steps=2")
    assert "one/checkpoints/step_000001 at step 1" in done.stdout
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["status"] == "finished"
    done = run("train", *branch, "num_steps=3")
    assert "two/checkpoints/step_000002 at step 2" in done.stdout
    assert [line["step"] for line in read_lines(tmp_path / "two" / "metrics.jsonl")] == [2, 3]


def test_a_requeued_job_goes_on_also_with_resume_never(run: Run) -> None:
    settings = (*SMALL, "tracking=off", "eval.every=0", "resume=never", "hydra.run.dir=run")
    run("train", *settings, "num_steps=1")
    requeued = run("train", *settings, "num_steps=2", SLURM_RESTART_COUNT="1")
    assert "step_000001 at step 1" in requeued.stdout


def test_a_run_taken_up_with_other_problems_says_what_both_hold(run: Run, tmp_path: Path) -> None:
    settings = (*SMALL, "tracking=off", "eval.every=0", "hydra.run.dir=run")
    run("train", *settings, "num_steps=1", "eval.max_examples=30")
    done = run("train", *settings, "num_steps=2", "eval.max_examples=40")
    assert "resumed with eval.max_examples=40, was 30" in done.stdout
    assert "held-out accuracy" in done.stdout
