"""LoRA: what is trained, what is saved, what the reference is."""

import json
from pathlib import Path

import pytest
import torch

from drift.common.errors import CheckpointError, ConfigError
from drift.config.commands import ExportConfig
from drift.config.model import LoraConfig
from drift.export import run as export
from drift.policy import lora
from drift.policy.base import Policy
from drift.policy.loading import load_policy, save_policy

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
