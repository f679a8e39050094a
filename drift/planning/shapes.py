"""Sizes of published checkpoints, from their config.json: nothing is downloaded to plan or measure.

LLaDA: arXiv 2502.09992, Dream: arXiv 2508.15487.
"""

from typing import Any

from drift.policy.backbone import BackboneConfig


def shape(**sizes: Any) -> BackboneConfig:
    usual: dict[str, Any] = {"rope_theta": 5e5, "norm_eps": 1e-5, "max_positions": 4096}
    usual |= {"qkv_bias": False, "tie_head": False}
    usual |= {"head_size": sizes["hidden_size"] // sizes["num_heads"]}
    return BackboneConfig(**{**usual, **sizes})


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
}

HUB = {
    "GSAI-ML/LLaDA-8B-Instruct": "llada-8b",
    "GSAI-ML/LLaDA-8B-Base": "llada-8b",
    "GSAI-ML/LLaDA-1.5": "llada-8b",
    "Dream-org/Dream-v0-Instruct-7B": "dream-7b",
    "Dream-org/Dream-v0-Base-7B": "dream-7b",
    "Dream-org/Dream-Coder-v0-Instruct-7B": "dream-7b",
    "apple/DiffuCoder-7B-cpGRPO": "dream-7b",
}  # model.path -> the name of its shape
