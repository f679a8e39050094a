"""LoRA: what is trained, what is saved, what the reference is."""

import re
from pathlib import Path

import pytest
import torch

from drift.config.model import LoraConfig
from drift.policy import lora
from drift.policy.loading import load_policy, save_policy
from tests.conftest import Run, read_lines
from tests.unit.policy.test_lora import IDS, adapted


def test_an_export_that_rounds_the_update_away_says_so(run: Run, tmp_path: Path) -> None:
    """The base of real models is bfloat16 already: an update below its spacing rounds to it."""
    base = load_policy("data/tiny-countdown", dtype=torch.bfloat16)
    save_policy(base, tmp_path / "base")
    policy = load_policy(tmp_path / "base")
    lora.attach_new(policy, LoraConfig(rank=2), str(tmp_path / "base"))
    with torch.no_grad():
        for name, factor in lora.factors(policy).items():
            if "lora_B" in name:
                factor.fill_(1e-4)
    lora.save_adapter(policy, tmp_path / "adapter")
    low = run("export", "checkpoint=adapter", "output=low", "dtype=bfloat16")
    assert re.search(r"dtype=bfloat16 rounds: \d\d %.* is kept; use dtype=float32", low.stdout)
    whole = run("export", "checkpoint=adapter", "output=whole")
    assert "is kept" not in whole.stdout
    merged = load_policy(tmp_path / "whole")
    torch.testing.assert_close(merged.logits(IDS), policy.logits(IDS), atol=1e-4, rtol=0)
    assert (merged.logits(IDS) - base.float().logits(IDS)).abs().max() > 1e-3


def test_a_run_from_an_adapter_is_held_to_the_adapter(run: Run, tmp_path: Path) -> None:
    """The reference is the start of the run: before the first update the KL to it is 0."""
    policy = adapted("data/tiny-countdown")
    for factor in lora.factors(policy).values():
        factor.data *= 0.3  # a step away from its base that leaves some answers right
    lora.save_adapter(policy, tmp_path / "start")
    settings = (
        "model.path=start", "num_steps=1", "rollout.prompts_per_step=16", "rollout.group_size=8",
        "task.train_size=200", "eval.max_examples=4",
        "objective.kl_coef=0.1", "tracking=off", "hydra.run.dir=run",
    )  # fmt: skip
    refused = run("train", *settings, check=False)
    assert "model.lora.rank=0, but start is an adapter of rank 3; set that" in refused.stderr
    run("train", *settings, "model.lora.rank=3")
    (line,) = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if line["step"]]
    assert line["kl/k3"] == pytest.approx(0.0, abs=1e-6)


def test_fine_tuning_trains_an_adapter_alone(run: Run, tmp_path: Path) -> None:
    run("sft", "model.lora.rank=2", "model.lora.targets=[q_proj]", "task.train_size=50",
        "num_steps=3", "sft.batch_size=8", "eval.max_examples=4", "eval.every=0",
        "optim.lr=1e-2", "hydra.run.dir=sft")  # fmt: skip
    before = load_policy("data/tiny-countdown").state_dict()
    after = load_policy(tmp_path / "sft" / "policy").state_dict()
    changed = {name.rpartition("attn.")[2] for name in before
               if not torch.equal(before[name], after[name])}  # fmt: skip
    assert changed == {"q_proj.weight"}
