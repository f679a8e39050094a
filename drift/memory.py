"""How much memory a run needs, term by term, from the sizes alone.

Every term is a byte count with the formula beside it. Activations are what autograd keeps for the
backward pass; tests compare them with what it kept.
"""

from dataclasses import dataclass

from drift.config import (
    CacheMode,
    Dtype,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RolloutConfig,
    RolloutWeights,
)
from drift.policy.backbone import BackboneConfig
from drift.policy.base import HEAD_CHUNK_BYTES

WIDTH = {Dtype.float32: 4, Dtype.bfloat16: 2}
HEAD_COPIES = 4  # logits, their softmax and two temporaries of one chunk
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the memory depends on: Sizes(model=ModelConfig(...), backbone=..., row=320)."""

    model: ModelConfig
    backbone: BackboneConfig
    row: int  # tokens of the longest row, prompt + canvas


def num_parameters(b: BackboneConfig) -> int:
    """Embedding, head, and per layer q, k, v, out, gate, up, down, norms and biases."""
    kv = b.num_kv_heads * b.head_size
    layer = 2 * b.hidden_size * (b.hidden_size + kv) + 3 * b.hidden_size * b.mlp_size
    layer += 2 * b.hidden_size + (b.hidden_size + 2 * kv if b.qkv_bias else 0)
    embeddings = (1 if b.tie_head else 2) * b.vocab_size * b.hidden_size
    return embeddings + b.num_layers * layer + b.hidden_size


def num_trained(model: ModelConfig, b: BackboneConfig) -> int:
    """Every parameter, or the adapter's: rank * (inputs + outputs) of each target and layer."""
    if not model.lora.rank:
        return num_parameters(b)
    kv = b.num_kv_heads * b.head_size
    shape = {
        "q_proj": b.hidden_size + b.hidden_size,
        "k_proj": b.hidden_size + kv,
        "v_proj": b.hidden_size + kv,
        "out_proj": b.hidden_size + b.hidden_size,
        "gate_proj": b.hidden_size + b.mlp_size,
        "up_proj": b.hidden_size + b.mlp_size,
        "down_proj": b.mlp_size + b.hidden_size,
    }
    return b.num_layers * model.lora.rank * sum(shape[name] for name in model.lora.targets)


def stream_width(model: ModelConfig) -> int:
    """Bytes of a number of the residual stream: float32 where the weights are."""
    return WIDTH[model.dtype] if model.lora.rank else 4


def block_activations(model: ModelConfig, b: BackboneConfig) -> int:
    """Bytes that one block keeps for the backward pass, a token, without LoRA's own.

    The residual stream and its norm, twice (float32 where the weights are; a fused kernel spares
    the norms); in the precision of the computation both norms' outputs, queries, keys, values,
    attention's result, and the MLP's gate, silu of it, up and product.
    """
    width, stream = WIDTH[model.dtype], stream_width(model)
    kv = b.num_kv_heads * b.head_size
    return 4 * stream * b.hidden_size + width * (4 * b.hidden_size + 2 * kv + 4 * b.mlp_size)


def training(
    sizes: Sizes, objective: ObjectiveConfig, optim: OptimConfig, rollout: RolloutConfig
) -> dict[str, int]:
    """Bytes on one process that holds everything."""
    model, b, width = sizes.model, sizes.backbone, WIDTH[sizes.model.dtype]
    total, trained = num_parameters(b), num_trained(sizes.model, sizes.backbone)
    tokens = optim.rows_per_forward * sizes.row
    kept_layers = 1 if model.gradient_checkpointing else b.num_layers
    terms = {
        "weights": total * width + trained * 4 if model.lora.rank else total * 4,
        "gradients": trained * 4,
        "AdamW moments": trained * 8,
        "activations": tokens * kept_layers * block_activations(model, b),
        "logits": HEAD_COPIES * HEAD_CHUNK_BYTES,
    }
    if model.gradient_checkpointing:
        terms["checkpoints"] = tokens * b.num_layers * stream_width(model) * b.hidden_size
    if width == 2 and not model.lora.rank:
        terms["bfloat16 weights"] = total * 2  # autocast's copies during a forward and backward
    if objective.kl_coef and not model.lora.rank:
        terms["reference"] = total * width
    if rollout.weights == RolloutWeights.replica:
        terms["replica"] = total * width
    return terms


def sampling(sizes: Sizes, rollout: RolloutConfig) -> dict[str, int]:
    """Bytes on one process beside the weights, while `max_rows` rows are decoded."""
    b, width = sizes.backbone, WIDTH[sizes.model.dtype]
    kv = b.num_kv_heads * b.head_size
    tokens = rollout.max_rows * sizes.row
    terms = {
        "weights": num_parameters(b) * width,
        "activations": tokens * width * (4 * b.hidden_size + 2 * kv + 3 * b.mlp_size),
        "logits": HEAD_COPIES * HEAD_CHUNK_BYTES,
    }
    if rollout.cache != CacheMode.none:
        terms["cache"] = 2 * b.num_layers * rollout.max_rows * (sizes.row + 1) * kv * width
    return terms


def words(terms: dict[str, int]) -> str:
    """`weights 14.9 + cache 8.6 = 23.5 GiB`"""
    parts = " + ".join(f"{name} {size / GIB:.2f}" for name, size in terms.items())
    return f"{parts} = {sum(terms.values()) / GIB:.2f} GiB"
