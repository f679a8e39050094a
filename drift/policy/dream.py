"""Dream: Qwen2-shaped, biases on q/k/v, grouped queries, row i predicts token i+1.

It grew out of an autoregressive model, hence the shift. arXiv 2508.15487.
"""

from typing import Any

from drift.policy.backbone import BackboneConfig
from drift.policy.base import Family


def read_config(raw: dict[str, Any]) -> BackboneConfig:
    return BackboneConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw["num_key_value_heads"],
        mlp_size=raw["intermediate_size"],
        rope_theta=raw["rope_theta"],
        norm_eps=raw["rms_norm_eps"],
        max_positions=raw["max_position_embeddings"],
        qkv_bias=True,
        tie_head=raw["tie_word_embeddings"],
    )


def write_config(config: BackboneConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.mlp_size,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_head,
    }


DREAM = Family(
    name="dream",
    model_type="Dream",
    shift=True,
    end_of_turn="<|im_end|>",
    read_config=read_config,
    write_config=write_config,
    top_names={
        "embed.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    },
    block_prefix="model.layers.{i}.",
    block_names={
        "attn_norm.weight": "input_layernorm.weight",
        "attn.q_proj.weight": "self_attn.q_proj.weight",
        "attn.q_proj.bias": "self_attn.q_proj.bias",
        "attn.k_proj.weight": "self_attn.k_proj.weight",
        "attn.k_proj.bias": "self_attn.k_proj.bias",
        "attn.v_proj.weight": "self_attn.v_proj.weight",
        "attn.v_proj.bias": "self_attn.v_proj.bias",
        "attn.out_proj.weight": "self_attn.o_proj.weight",
        "mlp_norm.weight": "post_attention_layernorm.weight",
        "gate_proj.weight": "mlp.gate_proj.weight",
        "up_proj.weight": "mlp.up_proj.weight",
        "down_proj.weight": "mlp.down_proj.weight",
    },
)
