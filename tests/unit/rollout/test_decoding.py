"""The denoising engine against a plain decoder, and what it promises about rows."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drift.common import rng
from drift.common.errors import RolloutError
from drift.common.types import Trace
from drift.config.rollout import CacheMode, FactorConfig, RolloutConfig, ThresholdConfig
from drift.config.task import EndSuppression
from drift.policy.base import Policy
from drift.rollout.decoding import decode
from drift.rollout.remasking import factor, static, threshold
from drift.rollout.sampling import invert
from tests.conftest import bools, make_policy, rollout_config
from tests.plain import plain_decode

KEY = rng.stream(3, "test")
PROMPTS = [[5, 6, 7], [4], [9, 8, 7, 6, 5, 4], [3, 3]]
STATIC = rollout_config()
SURE = rollout_config(ThresholdConfig, threshold=0.9)
FAST = rollout_config(ThresholdConfig, threshold=0.3)
FACTOR = rollout_config(FactorConfig, factor=1.5)
RANDOM = replace(STATIC, confidence="random")
DUAL = replace(STATIC, cache=CacheMode.dual)
PREFIX = replace(STATIC, cache=CacheMode.prefix)
CONFIGS = {
    "static": STATIC,
    "two a step": replace(STATIC, steps=4),
    "threshold": FAST,
    "greedy": replace(FAST, temperature=0.0),
    "factor": FACTOR,
    "threshold in few steps": replace(SURE, steps=4),
    "factor in few steps": replace(FACTOR, steps=4),
    "margin": replace(FAST, confidence="margin"),
    "entropy": replace(STATIC, confidence="entropy"),
    "random": RANDOM,
    "hot positions": replace(STATIC, position_temperature=0.2),
    "nucleus": replace(STATIC, top_p=0.7, temperature=1.3),
    "top 3": replace(FAST, top_k=3),
    "both": replace(FAST, top_k=5, top_p=0.8, temperature=0.7),
    "late end": replace(STATIC, suppress_end=EndSuppression.commit),
    "no end": replace(FACTOR, suppress_end=EndSuppression.token),
    "greedy, no end": replace(STATIC, suppress_end=EndSuppression.token, temperature=0.0),
    "dual": DUAL,
    "prefix": PREFIX,
    "short horizon": replace(PREFIX, horizon=2),
    "refreshed": replace(DUAL, refresh_every=2),
    "dual threshold": replace(FAST, cache=CacheMode.dual),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
EXACT = {name: c for name, c in CONFIGS.items() if c.cache == CacheMode.none}


def rows(trace: Trace, index: int | slice) -> list[Tensor]:
    return [
        t[index]
        for t in (trace.canvas_BC, trace.unmask_step_BC, trace.logp_BC, trace.nfe_B, trace.length_B)
    ]


@each_config
def test_engine_equals_the_plain_decoder(policy: Policy, config: RolloutConfig) -> None:
    trace = decode(policy, PROMPTS, torch.arange(4), config, KEY)
    for row, prompt in enumerate(PROMPTS):
        canvas, step_of, logp_of = plain_decode(policy, prompt, row, config, KEY)
        assert trace.canvas_BC[row].tolist() == canvas
        assert trace.unmask_step_BC[row].tolist() == step_of
        assert trace.logp_BC[row].tolist() == pytest.approx(logp_of, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "max_rows"), zip(CONFIGS.values(), itertools.cycle([1, 3])), ids=CONFIGS.keys()
)
def test_a_row_is_the_same_alone_and_with_any_neighbours(
    policy: Policy, config: RolloutConfig, max_rows: int
) -> None:
    prompts = [*PROMPTS, PROMPTS[0], PROMPTS[0]]
    together = decode(policy, prompts, torch.arange(6), config, KEY)
    few = decode(policy, prompts, torch.arange(6), replace(config, max_rows=max_rows), KEY)
    for row, prompt in enumerate(prompts):
        alone = decode(policy, [prompt], torch.tensor([row]), config, KEY)
        for a, b, c in zip(rows(together, row), rows(few, row), rows(alone, 0), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
            torch.testing.assert_close(a, c, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [DUAL, replace(PREFIX, horizon=2)], ids=["dual", "prefix"])
def test_a_compiled_step_says_the_same(policy: Policy, config: RolloutConfig) -> None:
    """Rows come and go, the canvas ends before the horizon; later decodes compile nothing."""
    prompts = [*PROMPTS, [3] * 9]
    config = replace(config, max_rows=3)
    plain = decode(policy, prompts, torch.arange(5), config, KEY)
    torch._dynamo.reset()
    for again in (False, True):
        with torch._dynamo.config.patch(error_on_recompile=again):
            traced = decode(policy, prompts, torch.arange(5), replace(config, compile=True), KEY)
        for a, b in zip(rows(plain, slice(None)), rows(traced, slice(None)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_rows_of_the_same_prompt_differ() -> None:
    trace = decode(make_policy(), [[5, 6]] * 8, torch.arange(8), STATIC, KEY)
    assert len({tuple(row) for row in trace.canvas_BC.tolist()}) > 4


def test_a_row_stops_after_the_block_that_holds_a_stop_token() -> None:
    policy = make_policy()
    trace = decode(policy, [[5, 6]] * 64, torch.arange(64), STATIC, KEY)
    first_block_stops = torch.isin(trace.canvas_BC[:, :4], torch.tensor([0, 2])).any(1)
    assert 0 < first_block_stops.sum() < 64
    for row in range(64):
        canvas = trace.canvas_BC[row].tolist()
        stops = [i for i, token in enumerate(canvas) if token in (0, 2)]
        assert trace.finished_B[row] == bool(stops)
        assert trace.length_B[row] == (stops[0] + 1 if stops else 8)
        committed = 4 if first_block_stops[row] else 8
        assert (trace.unmask_step_BC[row] >= 0).sum() == committed
        assert canvas[committed:] == [policy.special.mask] * (8 - committed)
        assert trace.nfe_B[row] == committed  # one token a step


def test_broken_weights_are_said() -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.backbone.norm.weight[0] = torch.nan
    with pytest.raises(RolloutError, match="logits are not finite"):
        decode(policy, PROMPTS, torch.arange(4), STATIC, KEY)


def test_no_prompts_are_no_rows() -> None:
    trace = decode(make_policy(), [], torch.arange(0), rollout_config(), 0)
    assert trace.canvas_BC.shape == (0, 8)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RolloutError, match="prompt 1 is empty"):
        decode(make_policy(), [[5], []], torch.arange(2), STATIC, KEY)


def test_mask_is_never_committed() -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.backbone.head.weight[policy.special.mask] *= 50
    trace = decode(policy, PROMPTS, torch.arange(4), replace(STATIC, temperature=2.0), KEY)
    assert not (trace.canvas_BC[trace.committed_BC] == policy.special.mask).any()


def test_inversion_draws_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2])
    noise = rng.uniform(KEY, torch.arange(20_000))
    drawn = invert(probs.expand(20_000, 4), noise).bincount(minlength=4) / 20_000
    assert drawn.tolist() == pytest.approx(probs.tolist(), abs=0.015)
    assert drawn[1] == 0


def test_inversion_at_the_ends_stays_on_possible_tokens() -> None:
    weights = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).expand(2, 4)
    noise = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert invert(weights, noise).tolist() == [1, 2]


CONFIDENCE = torch.tensor([[0.2, 0.95, 0.9, 0.5], [0.1, 0.2, 0.3, 0.4]])
MASKED = bools([[1, 1, 1, 0], [1, 1, 1, 1]])


def test_static_commits_an_equal_share_most_confident_first() -> None:
    chosen = static(CONFIDENCE, MASKED, torch.tensor([2, 4]), STATIC)
    assert chosen.int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]  # ceil(3/2) and ceil(4/4)


def test_static_commits_what_is_left_at_the_last_step() -> None:
    chosen = static(CONFIDENCE, MASKED, torch.tensor([1, 1]), STATIC)
    assert torch.equal(chosen, MASKED)


def test_threshold_commits_every_sure_token_and_at_least_one() -> None:
    chosen = threshold(CONFIDENCE, MASKED, torch.tensor([3, 3]), SURE)
    assert chosen.int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]


def test_threshold_commits_what_is_left_at_the_last_step() -> None:
    chosen = threshold(CONFIDENCE, MASKED, torch.tensor([1, 3]), SURE)
    assert chosen.int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]


def test_factor_commits_the_most_for_which_the_least_sure_is_sure_enough() -> None:
    # (n + 1)(1 - confidence of the n-th): 0.1, 0.3 and 3.2; 1.2, 2.1, ...: one at least
    chosen = factor(CONFIDENCE, MASKED, torch.tensor([3, 3]), replace(FACTOR, factor=0.5))
    assert chosen.int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]
    chosen = factor(CONFIDENCE, MASKED, torch.tensor([3, 3]), replace(FACTOR, factor=0.3))
    assert chosen.int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_factor_commits_what_is_left_at_the_last_step() -> None:
    chosen = factor(CONFIDENCE, MASKED, torch.tensor([1, 3]), FACTOR)
    assert chosen.int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]


def test_ties_go_to_the_first_position() -> None:
    chosen = static(torch.full((1, 4), 0.5), bools([[0, 1, 1, 1]]), torch.tensor([3]), STATIC)
    assert chosen.int().tolist() == [[0, 1, 0, 0]]
