"""Sizes of published checkpoints, from their config.json: nothing is downloaded to plan or measure.

LLaDA: arXiv 2502.09992, Dream: arXiv 2508.15487, SDAR: arXiv 2510.06303, Fast-dLLM v2: arXiv
2509.26328; Stable-DiffCoder is Seed-Coder's network, a2d's example Qwen3-0.6B.
"""

from typing import Any

from drift.policy.backbone import BackboneConfig


def shape(**sizes: Any) -> BackboneConfig:
    usual: dict[str, Any] = {"rope_theta": 5e5, "norm_eps": 1e-5, "max_positions": 4096}
    usual |= {"qkv_bias": False, "tie_head": False}
    usual |= {"head_size": sizes["hidden_size"] // sizes["num_heads"]}
    return BackboneConfig(**{**usual, **sizes})


def qwen3(**sizes: Any) -> BackboneConfig:
    """Of SDAR and Qwen3: eight heads of 128 for keys, all normed."""
    usual: dict[str, Any] = {"vocab_size": 151_936, "num_kv_heads": 8, "head_size": 128}
    usual |= {"qk_norm": True, "rope_theta": 1e6, "norm_eps": 1e-6, "max_positions": 32_768}
    return shape(**{**usual, "block_length": 4, **sizes})


SHAPES = {
    "small": (
        "llada",
        shape(
            vocab_size=32_000,
            hidden_size=512,
            num_layers=6,
            num_heads=8,
            num_kv_heads=8,
            mlp_size=1536,
        ),
    ),
    "llada-8b": (
        "llada",
        shape(
            vocab_size=126_464,
            hidden_size=4096,
            num_layers=32,
            num_heads=32,
            num_kv_heads=32,
            mlp_size=12_288,
        ),
    ),
    "dream-7b": (
        "dream",
        shape(
            vocab_size=152_064,
            hidden_size=3584,
            num_layers=28,
            num_heads=28,
            num_kv_heads=4,
            mlp_size=18_944,
            qkv_bias=True,
            shift=True,
        ),
    ),
    "sdar-8b": (
        "sdar",
        qwen3(hidden_size=4096, num_layers=36, num_heads=32, mlp_size=12_288),
    ),
    "sdar-4b": (
        "sdar",
        qwen3(hidden_size=2560, num_layers=36, num_heads=32, mlp_size=9728),
    ),
    "sdar-1.7b": (
        "sdar",
        qwen3(hidden_size=2048, num_layers=28, num_heads=16, mlp_size=6144),
    ),
    "a2d-qwen3-0.6b": (
        "a2d",
        qwen3(
            hidden_size=1024,
            num_layers=28,
            num_heads=16,
            mlp_size=3072,
            tie_head=True,
            block_length=32,
        ),
    ),
    "stable-diffcoder-8b": (
        "stable_diffcoder",
        shape(
            vocab_size=155_136,
            hidden_size=4096,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            mlp_size=14_336,
            max_positions=8192,
            norm_eps=1e-6,
            block_length=4,
        ),
    ),
    "fast-dllm-v2-7b": (
        "fast_dllm_v2",
        shape(
            vocab_size=152_064,
            hidden_size=3584,
            num_layers=28,
            num_heads=28,
            num_kv_heads=4,
            mlp_size=18_944,
            max_positions=32_768,
            rope_theta=1e6,
            norm_eps=1e-6,
            qkv_bias=True,
            shift=True,
            block_length=32,
        ),
    ),
}

HUB = {
    "GSAI-ML/LLaDA-8B-Instruct": "llada-8b",
    "GSAI-ML/LLaDA-8B-Base": "llada-8b",
    "GSAI-ML/LLaDA-1.5": "llada-8b",
    "Dream-org/Dream-v0-Instruct-7B": "dream-7b",
    "Dream-org/Dream-v0-Base-7B": "dream-7b",
    "Dream-org/Dream-Coder-v0-Instruct-7B": "dream-7b",
    "apple/DiffuCoder-7B-cpGRPO": "dream-7b",
    "JetLM/SDAR-8B-Chat": "sdar-8b",
    "JetLM/SDAR-4B-Chat": "sdar-4b",
    "JetLM/SDAR-1.7B-Chat": "sdar-1.7b",
    "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1": "a2d-qwen3-0.6b",
    "ByteDance-Seed/Stable-DiffCoder-8B-Instruct": "stable-diffcoder-8b",
    "Efficient-Large-Model/Fast_dLLM_v2_7B": "fast-dllm-v2-7b",
}  # model.path -> the name of its shape
