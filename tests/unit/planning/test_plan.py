"""What a run is said to need: counted by other means, or by hand."""

from dataclasses import replace
from math import ceil

import pytest
import torch
from hypothesis import given, strategies as st
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from drift.common import rng
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.masking import CoupledConfig, SequentialConfig
from drift.config.model import Dtype, LoraConfig, ModelConfig
from drift.config.objective import Normalization, ObjectiveConfig
from drift.config.optim import OptimConfig
from drift.config.rollout import CacheMode, RolloutConfig, RolloutWeights, Schedule
from drift.planning import cost, memory
from drift.planning.memory import Sharding, Sizes, Terms, num_parameters
from drift.planning.shapes import HUB, SHAPES
from drift.policy.backbone import Backbone, BackboneConfig
from drift.policy.loading import FAMILIES
from drift.policy.replica import Replica, sampler_of
from drift.rollout.decoding import decode
from tests.conftest import ROOT, make_policy, objective, rollout_config

B = make_policy("dream").backbone.config
N = memory.num_parameters(B)
ALONE = (objective(), OptimConfig(tokens_per_forward=96), rollout_config())


def sizes(model: ModelConfig | None = None, **split: object) -> Sizes:
    model = model or ModelConfig(dtype=Dtype.bfloat16)
    return Sizes(model=model, backbone=B, row=12, split=Sharding(**split))  # type: ignore[arg-type]


def config(model: ModelConfig | None = None, **changes: object) -> RunConfig:
    """4 prompts of 4 completions, 2 views: 32 view-rows a step."""
    found = RunConfig(
        model=model or ModelConfig(dtype=Dtype.bfloat16),
        masking=CoupledConfig(),
        rollout=replace(rollout_config(), prompts_per_step=4, group_size=4),
        objective=ObjectiveConfig(),
        optim=OptimConfig(tokens_per_forward=50),
    )
    return replace(found, **changes)


def counter() -> FlopCounterMode:
    """torch's own, taught the attention that a CPU runs."""

    def forward(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
        return sdpa_flop_count(q, k, v)

    def backward(grad: torch.Size, *shapes: torch.Size, **_: object) -> int:
        return sdpa_backward_flop_count(grad, *shapes[:3])

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backwards = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(display=False, custom_mapping={attention: forward, backwards: backward})


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("cache", [c for c in CacheMode if c != CacheMode.block])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_flops_of_rollout_are_those_that_torch_counts(
    family: str, cache: CacheMode, schedule: Schedule
) -> None:
    policy = make_policy(family)
    policy.special = replace(policy.special, stop=(-1,))  # no row ends early
    settings = replace(
        rollout_config(schedule=schedule),
        cache=cache, gen_length=12, block_length=4, steps=6, max_rows=3,
    )  # fmt: skip
    prompts = [[5, 6, 7], [7, 6, 5], [8, 9, 3]]
    with counter() as measured:
        decode(policy, prompts, torch.arange(3), settings, rng.stream(0, "test"))
    counted = 3 * cost.rollout_flops(policy.backbone.config, settings, row=15)
    exact = settings.cache_for(0) == CacheMode.none
    shift = 1.25 if family == "dream" and not exact else 1.0  # one column more a step
    assert counted <= measured.get_total_flops() <= shift * counted


@pytest.mark.parametrize("cache", [CacheMode.none, CacheMode.block])
def test_flops_of_block_causal_rollout_are_those_that_torch_counts(cache: CacheMode) -> None:
    policy = make_policy("sdar")
    policy.special = replace(policy.special, stop=(-1,))
    settings = rollout_config(cache=cache, gen_length=12, steps=12, max_rows=3, group_size=3)
    with counter() as measured:
        decode(policy, [[5, 6, 7, 8]] * 3, torch.arange(3), settings, rng.stream(0, "test"))
    counted = 3 * cost.rollout_flops(policy.backbone.config, settings, row=16)
    twins = 1.2 if cache == CacheMode.none else 1.0  # the first step of equal rows is one
    assert measured.get_total_flops() == pytest.approx(counted, rel=0.1 * twins)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_of_the_learner_are_those_that_torch_counts(checkpointing: bool) -> None:
    policy = make_policy("llada")
    policy.backbone.gradient_checkpointing = checkpointing
    ids_MS, canvas = torch.full((6, 14), 5), 8
    row_N = torch.arange(6).repeat_interleave(canvas)
    position_N = (6 + torch.arange(canvas)).repeat(6)
    lengths_M = torch.full((6,), 14)
    with counter() as measured:
        logp_N, *_ = policy(ids_MS, lengths_M, row_N, position_N, torch.full_like(row_N, 5), 1.0)
        logp_N.sum().backward()
    model = ModelConfig(gradient_checkpointing=checkpointing)
    settings = config(model=model, rollout=replace(rollout_config(), gen_length=canvas))
    counted = 3 * cost.learner_flops(policy.backbone.config, settings, row=14)  # 3 x 2 views
    assert measured.get_total_flops() == pytest.approx(counted, rel=0.1)


def test_an_adapters_backward_and_frozen_policies_are_counted() -> None:
    lora = ModelConfig(lora=LoraConfig(rank=4))
    assert cost.passes(config(), 512) == {"frozen": 0, "trained": 3}
    assert cost.passes(config(lora, objective=objective(kl_coef=0.1)), 512) == {
        "frozen": 1,
        "trained": 2,
    }
    # candidates are chosen in the forward that trains where the views of a row fit into one
    few = config(masking=SequentialConfig(), optim=OptimConfig(tokens_per_forward=2048))
    assert cost.passes(few, 512)["frozen"] == 0
    assert cost.passes(few, 513)["frozen"] == 1
    by_order = objective(normalization=Normalization.view_token)
    assert cost.passes(config(masking=SequentialConfig(), objective=by_order), 8)["frozen"] == 1
    assert cost.passes(config(masking=SequentialConfig(low_prob_threshold=1)), 512)["frozen"] == 0


@given(stage=st.integers(1, 3), ranks=st.integers(1, 512), dtype=st.sampled_from(Dtype))
def test_what_zero_splits_adds_up_to_what_one_rank_holds(
    stage: int, ranks: int, dtype: Dtype
) -> None:
    model = ModelConfig(dtype=dtype)
    one = memory.training(sizes(model, stage=stage, ranks=1), *ALONE)
    each = memory.training(sizes(model, stage=stage, ranks=ranks), *ALONE)
    split = {"master weights", "AdamW moments"}
    split |= {"gradients"} if stage >= 2 else set()
    split |= {"weights"} if stage == 3 else set()
    assert one.keys() == each.keys()
    for name in one:
        if name in split:
            assert ranks * each[name] <= one[name] < ranks * (each[name] + 1), name
        else:
            assert each[name] == one[name], name


def test_zero_3_on_one_rank_in_float32_holds_what_one_process_holds() -> None:
    model = ModelConfig(dtype=Dtype.float32)
    alone = memory.training(sizes(model), *ALONE)
    zero = memory.training(sizes(model, stage=3), *ALONE[:2], rollout_shared())
    extra = {"master weights", "gathered weights"}  # DeepSpeed copies, and gathers from itself
    assert {name: size for name, size in zero.items() if name not in extra} == alone


def rollout_shared() -> RolloutConfig:
    return replace(rollout_config(), weights=RolloutWeights.shared)


def test_bytes_of_a_weight_at_each_stage() -> None:
    """bfloat16: 2 weight + 4 master + 8 moments + 4 gradient, split more with each stage."""

    def per_weight(terms: Terms) -> float:
        names = ("weights", "master weights", "AdamW moments", "gradients", "gradient buckets")
        return sum(terms.get(name, 0) for name in names) / N

    found = [per_weight(memory.training(sizes(stage=stage, ranks=8), *ALONE)) for stage in range(4)]
    assert found == pytest.approx([4 + 8 + 4 + 4, 2 + 1.5 + 4, 2 + 1.5 + 0.5, 0.25 + 1.5 + 0.5])


def test_offloading_leaves_neither_masters_nor_moments_on_the_gpu() -> None:
    terms = memory.held(
        sizes(stage=3, offload_optimizer=True, offload_parameters=True), *ALONE[::2]
    )
    assert terms.keys() == {"replica"}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("compiled", "rank", "dtype"),
    [(True, 0, "bfloat16"), (False, 0, "bfloat16"), (True, 4, "bfloat16"), (True, 0, "float32")],
)
def test_the_replica_that_a_trainer_makes_is_counted(
    stage: int, compiled: bool, rank: int, dtype: str
) -> None:
    model = ModelConfig(dtype=Dtype(dtype), lora=LoraConfig(rank=rank))
    made = config(model, rollout=rollout_config(compile=compiled))
    policy = make_policy("dream")
    policy.split = stage == 3
    terms = memory.frozen(sizes(model, stage=stage), objective(), made.rollout)
    assert ("replica" in terms) == isinstance(sampler_of(policy, made), Replica)
    assert ("replica" in terms) == (stage == 3 or (compiled, rank, dtype) == (True, 0, "bfloat16"))


def test_a_gathered_sampler_holds_one_block() -> None:
    gather = replace(rollout_config(), weights=RolloutWeights.gather)
    terms = memory.frozen(sizes(stage=3, ranks=2), objective(), gather)
    rest = N - B.num_layers * memory.block_parameters(B)
    assert terms == {"gathered sampler": 2 * (rest + 2 * memory.block_parameters(B))}


def test_a_replica_of_an_adapter_takes_over_the_factors_alone() -> None:
    model = ModelConfig(dtype=Dtype.bfloat16, lora=LoraConfig(rank=4))
    trained, replica = memory.num_trained(model, B), RolloutWeights.replica
    rollout = replace(rollout_config(), weights=replica)
    split = sizes(model, stage=3, ranks=2)
    assert memory.frozen(split, objective(), rollout) == {"replica": 2 * (N + trained)}
    assert cost.traffic(split, config(model))["refresh of the replica"] == trained
    assert memory.frozen(sizes(model), objective(), rollout) == {}  # the policy itself


def test_logits_on_a_cpu_are_made_in_smaller_chunks() -> None:
    gpu, cpu = sizes(), replace(sizes(), on_cpu=True)
    assert memory.logits(gpu) == 4 * 256 * 2**20
    assert memory.logits(cpu) == 4 * 16 * 2**20


def test_traffic_of_each_stage_by_hand() -> None:
    """Two ranks send half of a tensor; 16 view-rows of a rank are 4 micro-batches."""

    def sent(stage: int) -> Terms:
        return cost.traffic(sizes(stage=stage, ranks=2), config())

    assert sent(0) == {"all-reduce of gradients": 2 * 4 * N // 2}
    assert sent(1) == {"all-reduce of gradients": 2 * 4 * N // 2, "all-gather of new weights": N}
    assert sent(2) == {"reduce-scatter of gradients": 4 * N, "all-gather of new weights": N}
    assert sent(3) == {
        "reduce-scatter of gradients": 4 * N,
        "all-gather in forwards": 4 * N,
        "all-gather in backwards": 4 * N,
        "refresh of the replica": N,
    }
    assert cost.traffic(sizes(), config()) == {}


@pytest.mark.parametrize(("tokens", "rows"), [(11, 1), (12, 1), (35, 2), (36, 3)])
def test_a_forward_has_whole_rows_and_at_least_one(tokens: int, rows: int) -> None:
    optim = OptimConfig(tokens_per_forward=tokens)
    assert memory.rows_of_forward(optim, row=12) == rows
    assert cost.micro_batches(config(optim=optim), ranks=2, row=12) == ceil(16 / rows)
    kept = memory.training(sizes(), objective(), optim, rollout_config())["activations"]
    per_token = memory.block_activations(sizes().model, B)
    assert kept == rows * 12 * B.num_layers * per_token


def test_gathering_in_rollout_sends_the_blocks_at_every_step() -> None:
    rollout = replace(config().rollout, weights=RolloutWeights.gather, max_rows=4)
    sent = cost.traffic(sizes(stage=3, ranks=2), config(rollout=rollout))
    blocks = B.num_layers * memory.block_parameters(B)
    assert sent["all-gather in rollout"] == blocks * 8 * 2  # 8 steps of 8 rows, 4 at a time


def test_ranks_of_a_cluster() -> None:
    cluster = ClusterConfig(num_processes=8, num_machines=8, bucket_mb=100)
    split = memory.sharding_of(cluster)
    assert (split.ranks, split.stage, split.bucket) == (64, 3, 10**8)
    assert memory.sharding_of(ClusterConfig()).stage == 0


def test_published_sizes_are_found_for_every_model_of_the_hub() -> None:
    paths = {str(OmegaConf.load(f).path) for f in (ROOT / "conf/model").glob("*.yaml")
             if "data/" not in f.read_text()}  # fmt: skip
    assert paths == set(HUB)
    assert set(HUB.values()) <= set(SHAPES)
    assert all(isinstance(shape, BackboneConfig) for _, shape in SHAPES.values())


def test_sdar_has_as_many_parameters_as_its_index_says_bytes() -> None:
    _, sizes = SHAPES["sdar-8b"]
    assert 2 * num_parameters(sizes) == 16_381_470_720
    with torch.device("meta"):
        backbone = Backbone(sizes)
    assert sum(p.numel() for p in backbone.parameters()) == num_parameters(sizes)
    assert set(FAMILIES["sdar"].places(sizes)) == {n for n, _ in backbone.named_parameters()}
