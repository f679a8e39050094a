"""Families whose attention is block-causal; their networks are transformers' Llama, Qwen2 or Qwen3.

| family | network | block | logits |
|---|---|---|---|
| sdar (SDAR 1.7B to 8B, TraDo, DiRL; arXiv 2510.06303) | Qwen3 | 4; `-bN`: N | row i speaks of i |
| a2d (Qwen or Llama, adapted; ZHZisZZ/dllm) | by model_type | must be said | i; a flag: i + 1 |
| stable_diffcoder (ByteDance Seed) | Llama | 4 | i |
| fast_dllm_v2 (arXiv 2509.26328) | Qwen2 | 32 | i + 1 |
"""

from functools import partial
from typing import Any

from drift.policy import hf
from drift.policy.backbone import BackboneConfig
from drift.policy.base import Family


def write_with_head(config: BackboneConfig) -> dict[str, Any]:
    return hf.write_sizes(config) | {"head_dim": config.head_size}


def read_adapted(raw: dict[str, Any]) -> BackboneConfig:
    """A checkpoint of a2d: the base model's own keys; which base, the model_type says."""
    base = raw["model_type"].removeprefix("a2d-")
    return hf.read_sizes(
        raw, qkv_bias=base == "qwen2", qk_norm=base == "qwen3", shift=bool(raw.get(hf.SHIFT))
    )


block_family = partial(
    Family, write_config=write_with_head, top_names=hf.TOP_NAMES, block_prefix=hf.BLOCK_PREFIX
)
SDAR = block_family(
    name="sdar",
    model_types=("sdar",),
    end_of_turn="<|im_end|>",
    read_config=partial(hf.read_sizes, qkv_bias=False, qk_norm=True),
    block_names=hf.QWEN3,
    block_length=4,
    mask=151_669,
)
A2D = block_family(
    name="a2d",
    model_types=("a2d-qwen3", "a2d-qwen2", "a2d-llama"),
    end_of_turn="<|im_end|>",
    read_config=read_adapted,
    block_names=hf.ALL,
    block_length=None,
)
STABLE_DIFFCODER = block_family(
    name="stable_diffcoder",
    model_types=("llama", "stable_diffcoder"),
    architecture="StableDiffcoder",
    read_config=partial(hf.read_sizes, qkv_bias=False),
    block_names=hf.LLAMA,
    block_length=4,
)
FAST_DLLM_V2 = block_family(
    name="fast_dllm_v2",
    model_types=("Fast_dLLM_Qwen",),
    end_of_turn="<|im_end|>",
    read_config=partial(hf.read_sizes, qkv_bias=True, shift=True),
    block_names=hf.QWEN2,
    block_length=32,
    mask=151_665,
)
