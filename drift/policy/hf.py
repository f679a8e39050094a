"""Config keys and weight names of transformers' Llama, Qwen2 and Qwen3: many families keep them."""

from typing import Any

from drift.common.errors import CheckpointError
from drift.policy.backbone import BackboneConfig

TOP_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
BLOCK_PREFIX = "model.layers.{i}."
LLAMA = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.out_proj.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "gate_proj.weight": "mlp.gate_proj.weight",
    "up_proj.weight": "mlp.up_proj.weight",
    "down_proj.weight": "mlp.down_proj.weight",
}
QWEN2 = LLAMA | {
    f"attn.{name}.bias": f"self_attn.{name}.bias" for name in ("q_proj", "k_proj", "v_proj")
}
QWEN3 = LLAMA | {f"attn.{name}.weight": f"self_attn.{name}.weight" for name in ("q_norm", "k_norm")}
ALL = QWEN2 | QWEN3  # of a family whose checkpoints come from several of them
SHIFT = "right_shift_logits"  # a flag in the config of an autoregressive model that was adapted


def read_sizes(
    raw: dict[str, Any], *, qkv_bias: bool, qk_norm: bool = False, shift: bool = False
) -> BackboneConfig:
    """The sizes in a config.json with transformers' keys, of version 4 or 5.

    Raises:
        CheckpointError: rotary positions are scaled, or a window slides: neither is computed here.
    """
    refuse_unknown(raw, qkv_bias)
    rope = raw.get("rope_parameters") or {}
    return BackboneConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        mlp_size=raw["intermediate_size"],
        rope_theta=rope["rope_theta"] if "rope_theta" in rope else raw["rope_theta"],
        norm_eps=raw["rms_norm_eps"],
        max_positions=raw["max_position_embeddings"],
        qkv_bias=qkv_bias,
        tie_head=raw["tie_word_embeddings"],
        head_size=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        qk_norm=qk_norm,
        shift=shift,
    )


def refuse_unknown(raw: dict[str, Any], qkv_bias: bool) -> None:
    """Nothing is ignored in silence that changes what the network computes."""
    for key in ("rope_scaling", "rope_parameters"):
        kind = (raw.get(key) or {}).get("rope_type") or (raw.get(key) or {}).get("type")
        if kind not in (None, "default"):
            raise CheckpointError(
                f"config.json has {key} of type {kind}; only unscaled rotary positions are computed"
            )
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or []):
        raise CheckpointError(
            "config.json asks for a sliding window of attention (use_sliding_window, layer_types), "
            "which is not computed"
        )
    for key in ("mlp_bias", "attention_bias"):
        if raw.get(key) and not (key == "attention_bias" and qkv_bias):
            raise CheckpointError(f"config.json has {key}=true, which is not computed")


def write_sizes(config: BackboneConfig) -> dict[str, Any]:
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
