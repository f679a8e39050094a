"""LLaDA: Llama-shaped, no biases, untied head, row i predicts token i. arXiv 2502.09992."""

from typing import Any

from drift.policy.backbone import BackboneConfig
from drift.policy.base import Family


def read_config(raw: dict[str, Any]) -> BackboneConfig:
    return BackboneConfig(
        vocab_size=raw["embedding_size"] or raw["vocab_size"],
        hidden_size=raw["d_model"],
        num_layers=raw["n_layers"],
        num_heads=raw["n_heads"],
        num_kv_heads=raw["n_kv_heads"] or raw["n_heads"],
        mlp_size=raw["mlp_hidden_size"],
        rope_theta=raw["rope_theta"],
        norm_eps=raw["rms_norm_eps"],
        max_positions=raw["max_sequence_length"],
        qkv_bias=False,
        tie_head=raw["weight_tying"],
        head_size=raw["d_model"] // raw["n_heads"],
    )


def write_config(config: BackboneConfig) -> dict[str, Any]:
    return {
        "embedding_size": config.vocab_size,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "mlp_hidden_size": config.mlp_size,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "max_sequence_length": config.max_positions,
        "weight_tying": config.tie_head,
    }


LLADA = Family(
    name="llada",
    model_types=("llada",),
    end_of_turn="<|eot_id|>",
    read_config=read_config,
    write_config=write_config,
    top_names={
        "embed.weight": "model.transformer.wte.weight",
        "norm.weight": "model.transformer.ln_f.weight",
        "head.weight": "model.transformer.ff_out.weight",
    },
    block_prefix="model.transformer.blocks.{i}.",
    block_names={
        "attn_norm.weight": "attn_norm.weight",
        "attn.q_proj.weight": "q_proj.weight",
        "attn.k_proj.weight": "k_proj.weight",
        "attn.v_proj.weight": "v_proj.weight",
        "attn.out_proj.weight": "attn_out.weight",
        "mlp_norm.weight": "ff_norm.weight",
        "gate_proj.weight": "ff_proj.weight",
        "up_proj.weight": "up_proj.weight",
        "down_proj.weight": "ff_out.weight",
    },
)
