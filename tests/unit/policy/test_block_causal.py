"""Block-causal networks: against transformers under the same mask, and rows with states."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from drift.common.errors import CheckpointError
from drift.config.model import AttentionBackend, Dtype, ModelConfig
from drift.policy.backbone import Cache
from drift.policy.base import Policy
from drift.policy.loading import load_model, load_policy, save_policy
from tests.conftest import make_policy

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "rope_theta": 1e4, "attention_dropout": 0.0, "tie_word_embeddings": False,
    "attn_implementation": "sdpa", "eos_token_id": 2, "bos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
OFFICIAL = {  # model_type -> transformers' classes, and what else the config has
    "sdar": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 20}),
    "a2d-qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 20, "tie_word_embeddings": True}),
    "a2d-qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "a2d-llama": (LlamaConfig, LlamaForCausalLM, {"head_dim": 12}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "Fast_dLLM_Qwen": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
}


def official(model_type: str, folder: Path, **changes: Any) -> Any:
    """A model of transformers with random weights, saved as a checkpoint of that type."""
    config, model, extra = OFFICIAL[model_type]
    torch.manual_seed(0)
    network = model(config(**(SIZES | extra | changes))).eval()  # type: ignore[operator]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    network.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"model_type": model_type, "mask_token_id": 1}
    if model_type == "llama":
        raw["architectures"] = ["StableDiffcoderForCausalLM"]
    (folder / "config.json").write_text(json.dumps(raw))
    return network


def block_mask(size: int, length: int, num_columns: int) -> Tensor:
    """[S, S] bool, as it is defined: key block <= query block, and the key is real."""
    block = torch.arange(num_columns) // size
    return (block[None] <= block[:, None]) & (torch.arange(num_columns) < length)


@pytest.mark.parametrize("size", [4, 16, 32])
@pytest.mark.parametrize("model_type", OFFICIAL)
def test_logits_are_those_of_transformers(model_type: str, size: int, tmp_path: Path) -> None:
    network = official(model_type, tmp_path)
    policy = load_policy(tmp_path, block_length=size)
    lengths = torch.tensor([37, 5, 33, size])
    ids = torch.randint(4, 97, (4, 37))
    mask = torch.stack([block_mask(size, int(length), 37) for length in lengths])
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = network(input_ids=ids, attention_mask=bias[:, None]).logits
        found = policy.logits(ids, lengths)
    if policy.backbone.config.shift:
        expected = torch.cat([expected[:, :1], expected[:, :-1]], dim=1)
    scale = float(expected.abs().max())
    for row, length in enumerate(lengths.tolist()):
        error = (found[row, :length] - expected[row, :length]).abs().max()
        assert float(error) <= 1e-5 * scale


@pytest.mark.parametrize("model_type", OFFICIAL)
def test_a_checkpoint_is_saved_as_it_was(model_type: str, tmp_path: Path) -> None:
    official(model_type, tmp_path / "first")
    policy = load_policy(tmp_path / "first", block_length=8)
    save_policy(policy, tmp_path / "second")
    again = load_policy(tmp_path / "second")
    assert again.backbone.config == policy.backbone.config
    assert again.family.name == policy.family.name
    for name, weight in policy.backbone.named_parameters():
        assert torch.equal(weight, again.backbone.get_parameter(name))
    old, new = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("first", "second"))
    assert new["block_length"] == 8
    assert new["model_type"] == old["model_type"]


def test_a_block_length_that_contradicts_the_checkpoint_is_refused(tmp_path: Path) -> None:
    save_policy(make_policy("sdar"), tmp_path)
    assert load_policy(tmp_path).backbone.config.block_length == 4
    with pytest.raises(CheckpointError, match=r"model.block_length=8, but .*block_length=4"):
        load_policy(tmp_path, block_length=8)


def test_nobody_says_how_long_a_block_is(tmp_path: Path) -> None:
    official("a2d-qwen3", tmp_path)
    with pytest.raises(CheckpointError, match=r"set model.block_length \(0 = full attention\)"):
        load_policy(tmp_path)
    assert load_policy(tmp_path, block_length=0).backbone.config.block_length == 0
    official("sdar", tmp_path)
    assert load_policy(tmp_path).backbone.config.block_length == 4
    with pytest.raises(CheckpointError, match="llada checkpoints have full attention"):
        load_policy("data/tiny-countdown", block_length=4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling of type yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters of type linear"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"attention_bias": True}, "attention_bias=true"),
    ],
)
def test_what_is_not_computed_is_refused(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    official("sdar", tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=named):
        load_policy(tmp_path)


def test_flash_attention_is_refused(tmp_path: Path) -> None:
    save_policy(make_policy("sdar"), tmp_path)
    config = ModelConfig(
        name="x", family="sdar", path=str(tmp_path), dtype=Dtype.float32, lr=1.0,
        attention=AttentionBackend.flash_attention_2,
    )  # fmt: skip
    with pytest.raises(Exception, match="cannot compute block-causal attention"):
        load_model(config, device="cpu")


BLOCK_POLICIES = ["sdar", "stable_diffcoder", "fast_dllm_v2"]


@pytest.mark.parametrize("family", BLOCK_POLICIES)
def test_flex_attention_equals_sdpa(family: str) -> None:
    policy = make_policy(family)
    ids, lengths = torch.randint(3, 12, (3, 11)), torch.tensor([11, 2, 6])
    with torch.no_grad():
        expected = policy.logits(ids, lengths)
        policy.backbone.attention = AttentionBackend.flex_attention
        found = policy.logits(ids, lengths)
    real = torch.arange(11) < lengths[:, None]
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", BLOCK_POLICIES)
def test_a_finished_block_never_changes(family: str) -> None:
    policy = make_policy(family).double()
    ids = torch.randint(3, 12, (1, 12))
    other = ids.clone()
    other[:, 8:] = 5
    with torch.no_grad():
        assert torch.equal(policy.backbone(ids)[:, :8], policy.backbone(other)[:, :8])


@pytest.mark.parametrize("family", BLOCK_POLICIES)
def test_a_prefill_in_parts_and_a_step_equal_the_whole_row(family: str) -> None:
    policy = make_policy(family).double()
    backbone = policy.backbone
    ids = torch.randint(3, 12, (2, 16))
    cache = Cache(backbone.config, 4, 16, torch.float64, policy.device)
    slots = torch.tensor([3, 1])
    whole = backbone(ids)
    for first, last in ((0, 4), (4, 12)):
        backbone.prefill(ids[:, first:last], None, cache, slots, start=first)
    columns = torch.tensor([[12, 13, 14, 15], [8, 9, 10, 11]])
    lengths = torch.tensor([16, 12])
    found = backbone.step(ids.gather(1, columns), columns, lengths, cache, 4, 16, slots)
    torch.testing.assert_close(found, whole[torch.arange(2)[:, None], columns], atol=1e-12, rtol=0)


def states_of(ids: Tensor, blocks: Tensor, size: int) -> Tensor:
    """Rows with a copy of some of their blocks behind them, parts of each hidden (mask id 1)."""
    columns = (blocks[..., None] * size + torch.arange(size)).flatten(1)
    copies = ids.gather(1, columns)
    return torch.cat([ids, copies.masked_fill(torch.rand(copies.shape) < 0.5, 1)], dim=1)


@pytest.mark.parametrize("family", BLOCK_POLICIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_states_equal_their_own_forwards(family: str, checkpointing: bool) -> None:
    """Hidden states and gradients, in float64; the first state is of a row's first block."""
    torch.manual_seed(0)
    policy = make_policy(family).double()
    backbone, size = policy.backbone, 4
    backbone.gradient_checkpointing = checkpointing
    ids, blocks = torch.randint(3, 12, (2, 16)), torch.tensor([[0, 1, 1, 3], [2, 0, 3, 3]])
    packed = states_of(ids, blocks, size)
    query = torch.tensor([[16, 18, 21, 30], [5, 19, 20, 31]])
    found = backbone(packed, torch.tensor([16, 13]), query, blocks)
    found.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    expected = torch.zeros_like(found)
    for row in range(2):
        for i, column in enumerate(query[row].tolist()):
            if column < 16:
                alone = ids[row, : (column // size + 1) * size]
                place = column
            else:
                state, inside = divmod(column - 16, size)
                start = int(blocks[row, state]) * size
                block = packed[row, 16 + state * size : 16 + (state + 1) * size]
                alone, place = torch.cat([ids[row, :start], block]), start + inside
            expected[row, i] = backbone(alone[None])[0, place]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    expected.square().sum().backward()
    for name, grad in grads.items():
        wanted = backbone.get_parameter(name).grad
        assert wanted is not None
        torch.testing.assert_close(grad, wanted, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("family", BLOCK_POLICIES)
def test_one_block_mask_equals_two_parts(family: str) -> None:
    """What a GPU computes: flex_attention with one mask (its forward pass runs here too)."""
    policy: Policy = make_policy(family)
    ids, blocks = torch.randint(3, 12, (2, 12)), torch.tensor([[0, 1, 2], [2, 1, 1]])
    packed = states_of(ids, blocks, 4)
    with torch.no_grad():
        expected = policy.backbone(packed, None, None, blocks)
        _, attend = policy.backbone.with_states(None, blocks, packed.shape[1])
        attend.__class__.__call__, kept = by_mask, attend.__class__.__call__
        try:
            found = policy.backbone(packed, None, None, blocks)
        finally:
            attend.__class__.__call__ = kept
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def by_mask(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return self.by_flex(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
