"""LoRA: what is trained, what is saved, what the reference is."""

import json
import re
from pathlib import Path

import pytest
import torch

from drift.common.errors import CheckpointError, ConfigError
from drift.config import ExportConfig, LoraConfig
from drift.export import run as export
from drift.policy import lora
from drift.policy.base import Policy
from drift.policy.loading import load_policy, save_policy
from tests.conftest import Run, read_lines

EMBEDDED = ["data/tiny-countdown", "data/tiny_dream-countdown"]
IDS = torch.tensor([[3, 30, 9, 26, 30, 4, 1, 1, 1]])


def adapted(path: str, seed: int = 1) -> Policy:
    """A policy with an adapter that has been trained (random factors)."""
    policy = load_policy(path)
    lora.attach_new(policy, LoraConfig(rank=3, alpha=6.0), path)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in lora.factors(policy).values():
            factor.normal_(std=0.1, generator=generator)
    return policy


@pytest.mark.parametrize("path", EMBEDDED)
def test_a_fresh_adapter_changes_nothing_and_trains_alone(path: str) -> None:
    policy, plain = load_policy(path), load_policy(path)
    lora.attach_new(policy, LoraConfig(rank=2), path)
    assert torch.equal(policy.logits(IDS), plain.logits(IDS))
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)


@pytest.mark.parametrize("path", EMBEDDED)
def test_switched_off_the_adapter_leaves_the_base(path: str) -> None:
    policy, plain = adapted(path), load_policy(path)
    with lora.adapter_off(policy):
        assert torch.equal(policy.logits(IDS), plain.logits(IDS))
    assert not torch.allclose(policy.logits(IDS), plain.logits(IDS), atol=1e-2)


@pytest.mark.parametrize("path", EMBEDDED)
def test_a_saved_adapter_comes_back_bit_for_bit(path: str, tmp_path: Path) -> None:
    policy = adapted(path)
    lora.save_adapter(policy, tmp_path)
    assert torch.equal(load_policy(tmp_path).logits(IDS), policy.logits(IDS))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)


def test_an_adapters_file_has_official_names(tmp_path: Path) -> None:
    names = lora.factors(adapted("data/tiny-countdown"))
    assert "base_model.model.model.transformer.blocks.0.attn_out.lora_A.weight" in names
    names = lora.factors(adapted("data/tiny_dream-countdown"))
    assert "base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight" in names


@pytest.mark.parametrize("path", EMBEDDED)
def test_saving_the_policy_merges_the_adapter(path: str, tmp_path: Path) -> None:
    policy = adapted(path)
    save_policy(policy, tmp_path)
    merged = load_policy(tmp_path)
    assert merged.adapter is None
    torch.testing.assert_close(merged.logits(IDS), policy.logits(IDS), atol=1e-4, rtol=0)


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


def test_an_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    lora.save_adapter(adapted("data/tiny-countdown"), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "data/tiny-sudoku"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="was trained on other weights than data/tiny-sudoku"):
        load_policy(tmp_path)


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    lora.save_adapter(adapted("data/tiny-countdown"), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="is missing or damaged"):
        load_policy(tmp_path)


def test_a_target_that_is_no_layer_is_refused() -> None:
    policy = load_policy("data/tiny-countdown")
    with pytest.raises(CheckpointError, match="no layer is called query; there are"):
        lora.attach_new(policy, LoraConfig(rank=2, targets=["query"]), "data/tiny-countdown")


@pytest.mark.parametrize("size", ["abc", "0GB", "10"])
def test_a_size_of_shards_that_is_none_is_refused(tmp_path: Path, size: str) -> None:
    config = ExportConfig(checkpoint="none", output=str(tmp_path / "new"), max_shard_size=size)
    with pytest.raises(ConfigError, match=f"max_shard_size={size} must be a whole number above 0"):
        export(config)


@pytest.mark.slow
def test_a_lora_run_saves_adapters_resumes_and_is_evaluated(run: Run, tmp_path: Path) -> None:
    settings = ("debug=smoke", "rollout.prompts_per_step=8", "rollout.temperature=1.5",
                "model.lora.rank=4", "optim.lr=1e-2", "objective.kl_coef=0.01")  # fmt: skip
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


def test_a_run_from_an_adapter_is_held_to_the_adapter(run: Run, tmp_path: Path) -> None:
    """The reference is the start of the run: before the first update the KL to it is 0."""
    policy = adapted("data/tiny-countdown")
    for factor in lora.factors(policy).values():
        factor.data *= 0.3  # a step away from its base that leaves some answers right
    lora.save_adapter(policy, tmp_path / "start")
    settings = (
        "model.path=start", "num_steps=1", "rollout.prompts_per_step=16", "rollout.group_size=8",
        "eval.max_examples=4",
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
