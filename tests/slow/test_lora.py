"""LoRA: what is trained, what is saved, what the reference is."""

from pathlib import Path

import torch

from drift.policy.loading import load_policy
from tests.conftest import Run, read_lines
from tests.unit.policy.test_lora import IDS


def test_a_lora_run_saves_adapters_resumes_and_is_evaluated(run: Run, tmp_path: Path) -> None:
    settings = ("debug=smoke", "rollout.prompts_per_step=8", "rollout.temperature=1.5",
                "model.lora.rank=4", "optim.lr=1e-2", "objective.kl_coef=0.01",
                "task.train_size=200")  # fmt: skip
    run("train", *settings, "num_steps=2", "hydra.run.dir=run")
    run("train", *settings, "num_steps=4", "hydra.run.dir=run")
    run("train", *settings, "num_steps=4", "hydra.run.dir=whole")
    lines, whole = (read_lines(tmp_path / f / "metrics.jsonl") for f in ("run", "whole"))
    losses = [[line.get("loss/total") for line in found] for found in (lines, whole)]
    assert losses[0] == losses[1]
    assert lines[1]["kl/k3"] == 0
    assert any(float(line.get("kl/k3", 0)) > 0 for line in lines[2:])  # type: ignore[arg-type]
    last = tmp_path / "run" / "checkpoints" / "step_000004"
    assert (last / "policy" / "adapter_model.safetensors").stat().st_size < 100_000
    done = run("eval", f"checkpoints=[{last}]", "eval.max_examples=10")
    assert "95 % interval" in done.stdout
    done = run("doctor", f"model.path={last}/policy")
    assert "FAILED" not in done.stdout
    run("export", f"checkpoint={last}", f"output={tmp_path}/merged")
    merged, trained = load_policy(tmp_path / "merged"), load_policy(last / "policy")
    torch.testing.assert_close(merged.logits(IDS), trained.logits(IDS), atol=1e-4, rtol=0)
    again = run("export", f"checkpoint={last}", f"output={tmp_path}/merged", check=False)
    assert "is not empty; choose a new folder" in again.stderr
