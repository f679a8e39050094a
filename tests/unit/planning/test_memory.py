"""What is never made: logits that nobody asked for. What is kept: as much as the formulas say."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from drift.common import rng
from drift.config.model import Dtype, LoraConfig, ModelConfig
from drift.config.optim import OptimConfig
from drift.config.rollout import CacheMode, RolloutConfig
from drift.learner.layout import micro_batches
from drift.learner.likelihood import score
from drift.planning.memory import (
    UNSHARDED,
    Sharding,
    Sizes,
    block_activations,
    cache,
    num_parameters,
    num_trained,
    sampling,
    training,
    updating,
)
from drift.policy import base, lora
from drift.policy.backbone import Backbone, BackboneConfig
from drift.policy.loading import FAMILIES
from drift.rollout import caching
from drift.rollout.decoding import decode
from tests.conftest import make_policy, make_rollout, objective, replay_views, rollout_config
from tests.oracles import CONFIGS

KEY = rng.stream(3, "test")
VOCAB = 997  # no other size in these tests is a multiple of it


class Watch(TorchDispatchMode):
    """The number of positions in every tensor over the vocabulary, and the largest other tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: set[int] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor) or not tensor.numel():
                continue
            if tensor.shape[-1:] == (VOCAB,) or tensor.numel() % VOCAB == 0:
                self.positions.add(tensor.numel() // VOCAB)
            else:
                self.largest = max(self.largest, tensor.numel())
        return result


def decoded(config: RolloutConfig, num_prompts: int) -> Watch:
    policy = make_policy(vocab_size=VOCAB)
    prompts = [[5 + i % 7, 6, 7] for i in range(num_prompts)]
    with Watch() as watch:
        decode(policy, prompts, torch.arange(num_prompts), config, KEY)
    return watch


@pytest.mark.parametrize("cache", [c for c in CacheMode if c != CacheMode.block])
def test_the_sampler_makes_logits_of_masked_positions_of_blocks_only(cache: CacheMode) -> None:
    config = replace(rollout_config(), cache=cache, max_rows=4)
    watch = decoded(config, 4)
    weights = {16}  # the head and the embedding: D = 16 rows over the vocabulary
    assert max(watch.positions - weights) <= 4 * config.block_length  # of 4 * 11 positions
    assert len(watch.positions) > 3


def test_logits_are_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "HEAD_CHUNK_BYTES", 3 * 4 * VOCAB)
    assert max(decoded(rollout_config(), 4).positions - {16}) == 3
    policy = make_policy(vocab_size=VOCAB)
    prompts = [[5, 6, 7], [4], [9, 8, 7]]
    rollout = make_rollout(prompts, decode(policy, prompts, torch.arange(3), rollout_config(), KEY))
    views = replay_views(rollout)
    batches = micro_batches(rollout, views, policy.special, tokens_per_forward=1024)
    with Watch() as watch:
        for batch in batches:
            score(policy, batch, 1.0)[0].sum().backward()
    assert max(watch.positions - {16}) == 3  # forward and backward


def test_memory_does_not_grow_with_the_number_of_prompts() -> None:
    config = replace(rollout_config(), cache=CacheMode.prefix, max_rows=4)
    few, many = decoded(config, 4), decoded(config, 40)
    assert many.largest == few.largest
    assert max(many.positions) <= max(few.positions)


@pytest.mark.parametrize(
    ("dtype", "split"),
    [
        (Dtype.float32, UNSHARDED),
        (Dtype.bfloat16, UNSHARDED),
        (Dtype.bfloat16, Sharding(stage=3)),  # the weights themselves are bfloat16
    ],
)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_activations_are_as_large_as_the_formula_says(
    family: str, dtype: Dtype, split: Sharding
) -> None:
    sizes = BackboneConfig(
        vocab_size=50, hidden_size=128, num_layers=6, num_heads=8,
        num_kv_heads=8 if family == "llada" else 2, mlp_size=320, rope_theta=1e4, norm_eps=1e-5,
        max_positions=512, qkv_bias=family == "dream", tie_head=False, head_size=16,
    )  # fmt: skip
    backbone = Backbone(sizes)
    backbone.init_weights(torch.Generator().manual_seed(0))
    assert num_parameters(sizes) == sum(p.numel() for p in backbone.parameters())
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no storage is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        if tensor.numel() % (8 * 96) == 0:  # a token's, not a weight's copy
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    if split.stage:
        backbone.to(torch.bfloat16)
    mixed = dtype == Dtype.bfloat16 and not split.stage
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        backbone(torch.randint(0, 50, (8, 96), generator=torch.Generator().manual_seed(0)))
    weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    measured = sum(size for place, size in kept.items() if place not in weights)
    formula = 8 * 96 * 6 * block_activations(ModelConfig(dtype=dtype), sizes, split)
    assert measured == pytest.approx(formula, rel=0.08)


def test_the_cache_of_the_compiled_step_stays_as_large_as_the_formula_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caching, "compiled", lambda policy, cache: policy.backbone.step)
    policy = make_policy("dream")
    config = rollout_config(cache=CacheMode.dual, compile=True, max_rows=3)
    decode(policy, [[5] * 60, [6], [7], [8]], torch.arange(4), config, KEY)
    assert policy.kept_cache is not None
    stores = [store for layer in policy.kept_cache.layers for store in layer]
    model = ModelConfig(dtype=Dtype.float32)
    sizes = Sizes(model=model, backbone=policy.backbone.config, row=60 + 8)
    terms = updating(sizes, objective(), config)
    assert terms["cache"] == sum(store.nbytes for store in stores) == cache(sizes, config).total
    assert "cache" not in updating(sizes, objective(), replace(config, compile=False))


def test_trained_parameters_of_an_adapter() -> None:
    policy, settings = make_policy("dream"), LoraConfig(rank=3)
    lora.attach_new(policy, settings, "base")
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert num_trained(ModelConfig(lora=settings), policy.backbone.config) == trained


def test_llada_8b_with_a_replica_and_a_reference_needs_what_is_computed_by_hand() -> None:
    model = ModelConfig(dtype=Dtype.bfloat16, gradient_checkpointing=True)
    b = FAMILIES["llada"].read_config(
        CONFIGS["llada"](vocab=126464, hidden=4096, layers=32, heads=32, kv_heads=32, mlp=12288)
    )
    sizes, optim = Sizes(model=model, backbone=b, row=512), OptimConfig(tokens_per_forward=4100)
    rollout = replace(rollout_config(), cache=CacheMode.dual, max_rows=32)
    terms = training(sizes, objective(kl_coef=0.1), optim, rollout)
    assert terms["weights"] == 4 * 8_015_581_184
    assert terms["reference"] == 4 * 8_015_581_184
    assert terms["checkpoints"] == 8 * 512 * 32 * 4 * 4096
    assert sampling(sizes, rollout)["cache"] == 2 * 32 * 32 * 513 * 4096 * 2
