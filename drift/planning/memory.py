"""How much memory one rank of a run needs, term by term, from the sizes alone.

Every term is a byte count with the formula beside it: N weights, T of them trained (or the
adapter's), w bytes of a number in `model.dtype`, R ranks, D width, L layers, S tokens of a row.
Activations are what autograd keeps for the backward pass; tests compare them with what it kept.
"""

from dataclasses import dataclass

from drift.config.cluster import ClusterConfig
from drift.config.model import Dtype, ModelConfig
from drift.config.objective import ObjectiveConfig
from drift.config.optim import OptimConfig
from drift.config.rollout import CacheMode, RolloutConfig, RolloutWeights
from drift.policy.backbone import BackboneConfig
from drift.policy.base import head_chunk_bytes
from drift.policy.replica import sampler_weights
from drift.rollout.caching import cache_length

WIDTH = {Dtype.float32: 4, Dtype.bfloat16: 2}
HEAD_COPIES = 4  # logits, their softmax and two temporaries of one chunk
MAX_LIVE = 10**9  # weights that ZeRO-3 has gathered at one time, DeepSpeed's default
SUB_GROUP = 10**9  # weights that ZeRO-3 updates at one time, DeepSpeed's default
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How a run is divided among its ranks: Sharding(stage=3, ranks=8, bucket=200 * 10**6)."""

    stage: int = 0  # of ZeRO; 0 = every rank holds everything
    ranks: int = 1
    bucket: int = 0  # bytes that one collective moves
    offload_optimizer: bool = False
    offload_parameters: bool = False


UNSHARDED = Sharding()


def sharding_of(cluster: ClusterConfig) -> Sharding:
    """What `cluster` says, for ranks with a GPU each; null processes are taken as one."""
    ranks = (cluster.num_processes or 1) * cluster.num_machines
    stage = cluster.zero_stage
    return Sharding(
        stage=(3 if ranks > 1 else 0) if stage is None else stage,
        ranks=ranks,
        bucket=cluster.bucket_mb * 10**6,
        offload_optimizer=cluster.offload_optimizer,
        offload_parameters=cluster.offload_parameters,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the memory depends on: Sizes(model=ModelConfig(...), backbone=..., row=320)."""

    model: ModelConfig
    backbone: BackboneConfig
    row: int  # tokens of the longest row, prompt + canvas
    on_cpu: bool = False
    split: Sharding = UNSHARDED

    @property
    def width(self) -> int:
        """Bytes of a number in `model.dtype`."""
        return WIDTH[self.model.dtype]


class Terms(dict[str, int]):
    """Byte counts by name, and the formula of each."""

    def __init__(self) -> None:
        super().__init__()
        self.formulas: dict[str, str] = {}

    def put(self, name: str, size: float, formula: str) -> None:
        """Add a term; one that is 0 is left out."""
        if size:
            self[name], self.formulas[name] = int(size), formula

    def take(self, other: "Terms") -> None:
        """Add all terms of another."""
        self.update(other)
        self.formulas.update(other.formulas)

    @property
    def total(self) -> int:
        return sum(self.values())


def num_parameters(b: BackboneConfig) -> int:
    """Embedding, head, last norm, and the blocks."""
    return (1 if b.tie_head else 2) * b.vocab_size * b.hidden_size + (
        b.num_layers * block_parameters(b) + b.hidden_size
    )


def block_parameters(b: BackboneConfig) -> int:
    """Of one block: q, k, v, out, gate, up, down, norms and biases."""
    q, kv = b.num_heads * b.head_size, b.num_kv_heads * b.head_size
    matrices = 2 * b.hidden_size * (q + kv) + 3 * b.hidden_size * b.mlp_size
    norms = 2 * b.hidden_size + (2 * b.head_size if b.qk_norm else 0)
    return matrices + norms + (q + 2 * kv if b.qkv_bias else 0)


def num_trained(model: ModelConfig, b: BackboneConfig) -> int:
    """Every parameter, or the adapter's: rank * (inputs + outputs) of each target and layer."""
    if not model.lora.rank:
        return num_parameters(b)
    q, kv = b.num_heads * b.head_size, b.num_kv_heads * b.head_size
    shape = {
        "q_proj": b.hidden_size + q,
        "k_proj": b.hidden_size + kv,
        "v_proj": b.hidden_size + kv,
        "out_proj": q + b.hidden_size,
        "gate_proj": b.hidden_size + b.mlp_size,
        "up_proj": b.hidden_size + b.mlp_size,
        "down_proj": b.mlp_size + b.hidden_size,
    }
    return b.num_layers * model.lora.rank * sum(shape[name] for name in model.lora.targets)


def stream_width(model: ModelConfig, split: Sharding = UNSHARDED) -> int:
    """Bytes of a number of the residual stream: as wide as the weights, float32 under autocast."""
    return WIDTH[model.dtype] if model.lora.rank or split.stage else 4


def block_activations(model: ModelConfig, b: BackboneConfig, split: Sharding = UNSHARDED) -> int:
    """Bytes that one block keeps for the backward pass, a token, without LoRA's own.

    For both norms the residual stream and its norm: float32 where the stream is (a fused kernel
    spares the norms), else the stream as float32 and the norm in the precision of the computation.
    In that precision both norms' outputs, queries, keys, values, attention's result, and the MLP's
    gate, silu of it, up and product.
    """
    width = WIDTH[model.dtype]
    normed = 4 if stream_width(model, split) == 4 else width
    q, kv = b.num_heads * b.head_size, b.num_kv_heads * b.head_size
    norms = 2 * (4 + normed) * b.hidden_size
    return norms + width * (2 * b.hidden_size + 2 * q + 2 * kv + 4 * b.mlp_size)


def autocast_copies(sizes: Sizes) -> int:
    return 2 * num_parameters(sizes.backbone)


def logits(sizes: Sizes) -> int:
    return HEAD_COPIES * head_chunk_bytes(on_cpu=sizes.on_cpu)


def held(sizes: Sizes, objective: ObjectiveConfig, rollout: RolloutConfig) -> Terms:
    """Bytes that stay from step to step: weights, AdamW's state, the frozen copies."""
    model, split = sizes.model, sizes.split
    trained, terms = num_trained(model, sizes.backbone), Terms()
    if not split.offload_parameters:
        size, formula = trained_weights(sizes)
        third = split.stage == 3
        terms.put(
            "weights", size / (split.ranks if third else 1), f"{formula} / R" if third else formula
        )
    if not split.stage:
        terms.put("AdamW moments", 8 * trained, "8 T")
        if split.ranks > 1:
            terms.put("gradient buckets", 4 * trained, "4 T, DDP's")
    elif not split.offload_optimizer:
        terms.put("master weights", 4 * trained / split.ranks, "4 T / R, float32")
        terms.put("AdamW moments", 8 * trained / split.ranks, "8 T / R")
        if split.stage == 3:
            terms.put("gradients", 4 * trained / split.ranks, "4 T / R, float32")
        elif adds_up_whole(sizes):
            terms.put("gradients", 4 * trained, "4 T")
    if split.stage == 3:
        terms.put("collectives", split.bucket, "cluster.bucket_mb")
    terms.take(frozen(sizes, objective, rollout))
    if rollout.compile:  # the compiled step's cache stays (caching.kept_cache)
        terms.take(cache(sizes, rollout))
    return terms


def adds_up_whole(sizes: Sizes) -> bool:
    """Whether DeepSpeed keeps a float32 buffer of all gradients (its BF16_Optimizer)."""
    split = sizes.split
    return split.stage == 1 and sizes.width == 2 and not split.offload_optimizer


def trained_weights(sizes: Sizes) -> tuple[int, str]:
    """Of the policy that is trained, before they are split: a base and its adapter, or all."""
    total, trained = num_parameters(sizes.backbone), num_trained(sizes.model, sizes.backbone)
    if sizes.model.lora.rank:
        wide = sizes.width if sizes.split.stage else 4
        return (
            total * sizes.width + trained * wide,
            "(N + T) w" if wide == sizes.width else "N w + 4 T",
        )
    return (total * sizes.width, "N w") if sizes.split.stage else (total * 4, "4 N")


def frozen(sizes: Sizes, objective: ObjectiveConfig, rollout: RolloutConfig) -> Terms:
    """The reference and the sampler's own weights, whole on each rank."""
    b, w, terms = sizes.backbone, sizes.width, Terms()
    weights = sampler_weights(sizes.model, sizes.split.stage == 3, rollout)
    total, block = num_parameters(b), block_parameters(b)
    if objective.has_reference and not sizes.model.lora.rank:
        size, formula = trained_weights(sizes)
        terms.put("reference", size, formula)  # as wide as the policy, so that they can be equal
    adapter = num_trained(sizes.model, b) if sizes.model.lora.rank else 0
    if weights == RolloutWeights.replica and not (adapter and sizes.split.stage < 3):
        terms.put("replica", (total + adapter) * w, "(N + T) w" if adapter else "N w")
    if weights == RolloutWeights.gather:
        terms.put(
            "gathered sampler",
            (total - (b.num_layers - 2) * block) * w,
            "w (N - (L - 2) block): a block, twice while it is copied",
        )
    return terms


def rows_of_forward(optim: OptimConfig, row: int) -> int:
    """Rows of so many tokens in one learner forward: whole ones, at least one."""
    return max(1, optim.tokens_per_forward // row)


def training(
    sizes: Sizes, objective: ObjectiveConfig, optim: OptimConfig, rollout: RolloutConfig
) -> Terms:
    """Bytes on one rank at the end of a forward, when the backward pass begins."""
    model, b, w, split = sizes.model, sizes.backbone, sizes.width, sizes.split
    total, trained = num_parameters(b), num_trained(model, b)
    tokens = rows_of_forward(optim, sizes.row) * sizes.row
    terms = held(sizes, objective, rollout)
    if split.stage < 2:
        terms.put("gradients", 4 * trained, "4 T")
    elif split.stage == 2 and not split.offload_optimizer:
        terms.put("gradients", 4 * trained / split.ranks, "4 T / R, float32")
        terms.put("collectives", 2 * split.bucket, "2 cluster.bucket_mb")
    if split.stage == 3:
        live = min(MAX_LIVE, total)
        terms.put("gathered weights", live * w, "w min(N, 1e9)")
    layers = 1 if model.gradient_checkpointing else b.num_layers
    per_token = block_activations(model, b, split)
    terms.put(
        "activations",
        tokens * layers * per_token,
        f"tokens_per_forward {'1' if layers == 1 else 'L'} block, {per_token} B",
    )
    terms.put("logits", logits(sizes), "4 chunks of the head")
    if model.gradient_checkpointing:
        stream = stream_width(model, split)
        terms.put(
            "checkpoints",
            tokens * b.num_layers * stream * b.hidden_size,
            f"tokens_per_forward L D {stream} B",
        )
    if w == 2 and not model.lora.rank and not split.stage:
        terms.put("bfloat16 weights", autocast_copies(sizes), "2 N, autocast's copies")
    return terms


def updating(sizes: Sizes, objective: ObjectiveConfig, rollout: RolloutConfig) -> Terms:
    """Bytes on one rank in AdamW's step."""
    model, b, split = sizes.model, sizes.backbone, sizes.split
    trained, terms = num_trained(model, b), held(sizes, objective, rollout)
    if split.stage == 0:
        terms.put("gradients", 4 * trained, "4 T")
        largest = min(trained, b.vocab_size * b.hidden_size)
        terms.put(
            "AdamW temporaries",
            4 * (largest if sizes.on_cpu else trained),
            "4 times the largest tensor" if sizes.on_cpu else "4 T",
        )
        return terms
    if split.offload_optimizer:
        return terms
    if split.stage < 3 and not adds_up_whole(sizes):
        terms.put("gradients", 4 * trained / split.ranks, "4 T / R, float32")
    part = trained / split.ranks
    part = min(part, SUB_GROUP) if split.stage == 3 else part
    name = "min(T / R, 1e9)" if split.stage == 3 else "T / R"
    if not adds_up_whole(sizes):
        terms.put("flat gradients", 4 * part, f"4 {name}, float32")
    terms.put("AdamW temporaries", 4 * part, f"4 {name}")
    return terms


def decoding(sizes: Sizes, objective: ObjectiveConfig, rollout: RolloutConfig) -> Terms:
    """Bytes on one rank while `max_rows` rows are decoded in a training run."""
    terms = held(sizes, objective, rollout)
    own = "replica" in terms or "gathered sampler" in terms
    if sizes.width == 2 and not (own or sizes.model.lora.rank or sizes.split.stage):
        terms.put("bfloat16 weights", autocast_copies(sizes), "2 N, autocast's copies")
    terms.take(rows_decoded(sizes, rollout))
    return terms


def sampling(sizes: Sizes, rollout: RolloutConfig) -> Terms:
    """Bytes of decoding alone: one policy in `model.dtype`, `max_rows` rows at the same time."""
    terms = Terms()
    terms.put("weights", num_parameters(sizes.backbone) * sizes.width, "N w")
    terms.take(rows_decoded(sizes, rollout))
    return terms


def rows_decoded(sizes: Sizes, rollout: RolloutConfig) -> Terms:
    """What grows with the rows that are decoded at the same time."""
    b, w, terms = sizes.backbone, sizes.width, Terms()
    q, kv = b.num_heads * b.head_size, b.num_kv_heads * b.head_size
    per_token = w * (2 * b.hidden_size + 2 * q + 2 * kv + 3 * b.mlp_size)
    terms.put("activations", rollout.max_rows * sizes.row * per_token, f"max_rows S {per_token} B")
    terms.put("logits", logits(sizes), "4 chunks of the head")
    terms.take(cache(sizes, rollout))
    return terms


def cache(sizes: Sizes, rollout: RolloutConfig) -> Terms:
    """Keys and values of the rows that are decoded at the same time."""
    b, terms = sizes.backbone, Terms()
    if rollout.cache_for(b.block_length) != CacheMode.none:
        columns, kv = cache_length(rollout, sizes.row) + 1, b.num_kv_heads * b.head_size
        formula = f"2 L max_rows (S + 1) kv w{', S a multiple of 64' if rollout.compile else ''}"
        terms.put(
            "cache", 2 * b.num_layers * rollout.max_rows * columns * kv * sizes.width, formula
        )
    return terms


def words(terms: dict[str, int]) -> str:
    """`weights 14.9 + cache 8.6 = 23.5 GiB`"""
    parts = " + ".join(f"{name} {size / GIB:.2f}" for name, size in terms.items())
    return f"{parts} = {sum(terms.values()) / GIB:.2f} GiB"
