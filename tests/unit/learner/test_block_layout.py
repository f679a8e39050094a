"""One forward over a clean row and its states, against a forward for each state."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drift.common import rng
from drift.common.types import MaskedViews, Rollout
from drift.config.masking import (
    AllConfig,
    BlockConfig,
    CoupledConfig,
    ElboConfig,
    LeftToRightConfig,
    MaskingConfig,
    RandomConfig,
    ReplayConfig,
    SequentialConfig,
    TraceConfig,
)
from drift.config.rollout import CacheMode, StaticConfig, ThresholdConfig
from drift.learner.layout import MicroBatches, micro_batches, row_tokens
from drift.learner.likelihood import score, token_logps
from drift.learner.masking import build_views
from drift.policy.base import Policy
from drift.rollout.decoding import decode
from tests.conftest import make_policy, make_rollout, rollout_config

FAMILIES = ["sdar", "stable_diffcoder", "fast_dllm_v2"]
MASKINGS: list[MaskingConfig] = [
    ReplayConfig(),
    SequentialConfig(num_views=3, low_prob_threshold=0.0),
    SequentialConfig(num_views=3, low_prob_threshold=1.0),
    TraceConfig(shrink=1),
    TraceConfig(shrink=3),
    LeftToRightConfig(),
    AllConfig(num_views=1),
    RandomConfig(num_views=2, ratio=0.5),
    CoupledConfig(num_views=2),
    ElboConfig(num_views=2),
    BlockConfig(num_views=2, block_length=4),
]
PROMPTS = [[5], [5, 6, 7], [8, 7, 6, 5], [9, 4, 5, 6, 7], [3, 4, 5, 6, 7, 8, 9]]


def sampled(policy: Policy, *, threshold: float | None = None) -> Rollout:
    """Prompts that end anywhere in a block, rows that end anywhere, two of each."""
    kind, more = (StaticConfig, {}) if threshold is None else (ThresholdConfig, {"threshold": 0.15})
    config = rollout_config(kind, gen_length=12, steps=12, cache=CacheMode.block, **more)
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    trace = decode(policy, prompts, torch.arange(len(prompts)), config, key=5)
    return make_rollout(PROMPTS, trace, group_size=2)


def views_of(rollout: Rollout, masking: MaskingConfig) -> MaskedViews:
    return build_views(rollout.trace, rollout.rows_B, masking, rng.stream(0, "test"))


def one_by_one(policy: Policy, rollout: Rollout, views: MaskedViews) -> Tensor:
    """Log-prob of each token: its state's block behind the clean blocks before it, alone."""
    size, found = policy.backbone.config.block_length, []
    for state, column in zip(views.state_N.tolist(), views.column_N.tolist(), strict=True):
        row = int(views.row_J[state])
        prompt = torch.tensor(rollout.prompt_ids(row))
        clean = torch.cat([prompt, rollout.trace.canvas_BC[row]])
        shown = clean.clone()
        hidden = views.hide(torch.tensor([state]))[0].nonzero()[:, 0] + len(prompt)
        shown[hidden] = policy.special.mask
        position = len(prompt) + column
        start = position // size * size
        ids = torch.cat([clean[:start], shown[start : start + size]])
        row_of = policy.backbone(ids[None])[0, int(policy.source(torch.tensor(position)))]
        logps = policy.denoising_logits(row_of[None]).log_softmax(-1)
        found.append(logps[0, clean[position]])
    return torch.stack(found)


def packed(policy: Policy, batches: MicroBatches) -> Tensor:
    found = torch.zeros(len(batches.views.state_N), dtype=torch.float64)
    for batch in batches:
        logp_N, *_ = score(policy, batch, 1.0)
        found = found.index_put((batch.token_N,), logp_N)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masking", MASKINGS, ids=lambda m: type(m).__name__)
def test_one_forward_equals_state_by_state(family: str, masking: MaskingConfig) -> None:
    policy = make_policy(family, seed=2).double()
    rollout = sampled(policy)
    views = views_of(rollout, masking)
    assert len(views.state_N)
    expected = one_by_one(policy, rollout, views)
    expected.square().sum().backward()
    wanted = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    for tokens in (1, 60, 10_000):
        policy.zero_grad()
        batches = micro_batches(rollout, views, policy.special, tokens)
        found = packed(policy, batches)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        found.square().sum().backward()
        for name, grad in wanted.items():
            torch.testing.assert_close(policy.get_parameter(name).grad, grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("threshold", [None, 0.15])
def test_replay_gives_the_samplers_log_probs(family: str, threshold: float | None) -> None:
    policy = make_policy(family, seed=2)
    rollout = sampled(policy, threshold=threshold)
    views = views_of(rollout, ReplayConfig())
    found = token_logps(policy, micro_batches(rollout, views, policy.special, 200), 1.0)
    recorded = rollout.trace.logp_BC[views.row_N, views.column_N]
    torch.testing.assert_close(found.logp_N, recorded, atol=1e-5, rtol=0)
    assert len(views.state_N) == int(rollout.trace.committed_BC.sum())


def test_a_grid_from_the_responses_first_token_is_another_distribution() -> None:
    """The origin that a published system's training mask has: the replay finds the fault."""
    policy = make_policy("sdar", seed=2).double()
    rollout = sampled(policy)
    views = views_of(rollout, ReplayConfig())
    right = token_logps(policy, micro_batches(rollout, views, policy.special, 200), 1.0).logp_N
    recorded = rollout.trace.logp_BC[views.row_N, views.column_N]
    assert float((right - recorded).abs().max()) < 1e-6
    # the same rows, moved so that every block begins with the response
    moved = replace(
        rollout,
        trace=replace(rollout.trace, prompt_length_B=rollout.trace.prompt_length_B * 0 + 4),
        prompts=replace(rollout.prompts, ids=[(p * 4)[-4:] for p in rollout.prompts.ids]),
    )
    wrong = token_logps(policy, micro_batches(moved, views, policy.special, 200), 1.0).logp_N
    assert float((wrong - recorded).abs().max()) > 0.05


@pytest.mark.parametrize("tokens", [1, 30, 64, 200, 10_000])
def test_forwards_hold_as_many_tokens_as_they_may(tokens: int) -> None:
    policy = make_policy("sdar", seed=2)
    rollout = sampled(policy)
    views = views_of(rollout, ReplayConfig())
    batches = micro_batches(rollout, views, policy.special, tokens)
    seen = []
    for batch in batches:
        assert batch.block_MJ is not None
        least = batch.block_MJ.shape == (1, 1)
        assert batch.ids_MS.numel() <= tokens or least
        assert bool((batch.row_N.diff() >= 0).all())
        seen.append(batch.token_N)
    assert sorted(torch.cat(seen).tolist()) == list(range(len(views.state_N)))
    padded = sum(batch.ids_MS.numel() for batch in batches)
    assert padded == batches.num_padded >= batches.num_tokens
    if tokens == 10_000:
        assert len(batches) == 1
    assert row_tokens(rollout, views) <= 10_000


def test_a_long_row_is_cut_and_its_clean_part_grows() -> None:
    policy = make_policy("sdar", seed=2)
    rollout = sampled(policy)
    views = views_of(rollout, ReplayConfig())
    one = views.keep(views.row_N == 9)
    whole = list(micro_batches(rollout, one, policy.special, row_tokens(rollout, one)))
    assert len(whole) == 1
    parts = list(micro_batches(rollout, one, policy.special, row_tokens(rollout, one) // 2 + 4))
    assert len(parts) > 1
    cleans = [int(part.length_M[0]) for part in parts]
    assert cleans == sorted(cleans)


def test_an_empty_forward_scores_nothing() -> None:
    policy = make_policy("sdar", seed=2)
    rollout = sampled(policy)
    views = views_of(rollout, ReplayConfig())
    batches = micro_batches(rollout, views.keep(views.state_N < 0), policy.special, 100)
    batches.pad(1)
    (batch,) = batches
    logp_N, *_ = score(policy, batch, 1.0)
    logp_N.sum().backward()
    assert len(logp_N) == 0
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) == 0


def test_candidates_are_of_the_states_own_block() -> None:
    policy = make_policy("sdar", seed=2)
    rollout = sampled(policy)
    views = views_of(rollout, SequentialConfig(num_views=3, low_prob_threshold=0.0))
    assert bool(views.candidate_N.any())
    block_N = rollout.trace.block_BC[views.row_N, views.column_N]
    for state in views.state_N.unique().tolist():
        assert len(block_N[views.state_N == state].unique()) == 1


def test_groups_of_steps_never_straddle_a_border() -> None:
    policy = make_policy("sdar", seed=2)
    rollout = sampled(policy, threshold=0.15)
    for shrink in (1, 2, 3, 100):
        views = views_of(rollout, TraceConfig(shrink=shrink))
        block_N = rollout.trace.block_BC[views.row_N, views.column_N]
        step_N = rollout.trace.unmask_step_BC[views.row_N, views.column_N]
        for state in range(len(views.row_J)):
            own = views.state_N == state
            assert len(block_N[own].unique()) == 1
            assert len(step_N[own].unique()) <= shrink
        assert len(views.state_N) == int(rollout.trace.committed_BC.sum())
