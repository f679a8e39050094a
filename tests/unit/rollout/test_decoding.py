"""The denoising engine against a plain decoder, and what it promises about rows."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from drift.common import rng
from drift.common.errors import RolloutError
from drift.common.types import Trace
from drift.config.rollout import (
    CacheMode,
    ConfidenceFrom,
    DynamicConfig,
    FactorConfig,
    RolloutConfig,
    Schedule,
    ThresholdConfig,
)
from drift.config.task import EndSuppression
from drift.policy.base import Policy
from drift.rollout.decoding import decode
from drift.rollout.remasking import factor, static, static_count, threshold
from drift.rollout.sampling import draw_chunk, invert
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
DREAM = rollout_config(schedule=Schedule.dream)
DRAWN = ConfidenceFrom.drawn
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
    "drawn nucleus": replace(FAST, confidence_from=DRAWN, top_p=0.7, top_k=6, temperature=0.7),
    "drawn greedy": replace(FAST, confidence_from=DRAWN, temperature=0.0, top_p=0.5),
    "drawn margin": replace(FAST, confidence_from=DRAWN, confidence="margin", top_k=3),
    "drawn entropy": replace(STATIC, confidence_from=DRAWN, confidence="entropy", top_p=0.6),
    "drawn hot": replace(FACTOR, confidence_from=DRAWN, temperature=1.7),
    "drawn, no end": replace(
        FAST, confidence_from=DRAWN, suppress_end=EndSuppression.token, temperature=0.0
    ),
    "dream schedule": DREAM,
    "dream schedule in few steps": replace(DREAM, steps=4, position_temperature=0.2),
    "dream schedule, drawn": replace(DREAM, confidence_from=DRAWN, confidence="entropy", top_p=0.7),
    "sdar schedule": rollout_config(schedule=Schedule.sdar),
    "sdar schedule in few steps": rollout_config(schedule=Schedule.sdar, steps=6),
    "dynamic": rollout_config(DynamicConfig, threshold=0.2),
    "dynamic in few steps": rollout_config(DynamicConfig, threshold=0.25, steps=4),
    "dynamic, drawn": rollout_config(
        DynamicConfig, threshold=0.5, steps=6, confidence_from=DRAWN, top_k=4
    ),
    "dual": DUAL,
    "dream schedule, refreshed": replace(DREAM, cache=CacheMode.dual, refresh_every=3),
    "prefix": PREFIX,
    "short horizon": replace(PREFIX, horizon=2),
    "refreshed": replace(DUAL, refresh_every=2),
    "dual threshold": replace(FAST, cache=CacheMode.dual),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
EXACT = {name: c for name, c in CONFIGS.items() if c.cache_for(0) == CacheMode.none}


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


@pytest.mark.parametrize(
    ("changes", "drawn", "network"),
    [
        ({"top_p": 0.8}, 0.625, 0.5),  # .5 of .5 + .3
        ({"top_k": 1}, 1.0, 0.5),
        ({"top_p": 0.8, "temperature": 0.0}, 0.625, 0.5),
        ({"temperature": 0.5}, 0.25 / 0.38, 0.5),  # .25, .09 and .04
        ({"temperature": 0.5, "top_k": 2}, 0.25 / 0.34, 0.5),
        ({"temperature": 0.0}, 0.5, 0.5),
        ({}, 0.5, 0.5),
        ({"top_p": 0.8, "confidence": "margin"}, 0.25, 0.2),
        ({"top_k": 1, "confidence": "margin"}, 1.0, 0.2),
        (
            {"top_p": 0.8, "confidence": "entropy"},
            0.625 * math.log(0.625) + 0.375 * math.log(0.375),
            0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2),
        ),
        ({"top_k": 1, "confidence": "entropy"}, 0.0, None),
    ],
)
def test_confidence_is_of_the_distribution_that_is_asked_for(
    changes: dict[str, Any], drawn: float, network: float | None
) -> None:
    """Of words of probability .2, .5 and .3; the log-prob is the network's in both."""
    logps = {}
    for of, expected in ((DRAWN, drawn), (ConfidenceFrom.network, network)):
        config = replace(STATIC, confidence_from=of, **changes)
        logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
        token, logps[of], confidence = draw_chunk(logits, torch.tensor([0.5]).double(), config, ())
        assert token.tolist() == [1]
        assert expected is None or confidence.item() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(*logps.values())
    tempered = 0.25 / 0.38 if changes.get("temperature") == 0.5 else 0.5
    assert logps[DRAWN].item() == pytest.approx(math.log(tempered), abs=1e-6)


def test_a_suppressed_end_narrows_the_drawn_confidence() -> None:
    config = replace(STATIC, confidence_from=DRAWN, suppress_end=EndSuppression.token)
    for temperature in (1.0, 0.0):
        logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
        noise = torch.tensor([0.5]).double()
        token, logp, confidence = draw_chunk(
            logits, noise, replace(config, temperature=temperature), (1,)
        )
        assert token.tolist() == [2]
        assert confidence.item() == pytest.approx(0.6)
        assert logp.exp().item() == pytest.approx(0.3)


def test_the_published_threshold_compares_with_the_narrowed_probability() -> None:
    """0.86 of a nucleus of 0.95 and a little is above 0.9: RLDF, arXiv 2605.25638."""
    logits = torch.tensor([[0.86, 0.09, 0.05]]).log()
    config = replace(SURE, confidence_from=DRAWN, top_p=0.95)
    *_, confidence = draw_chunk(logits, torch.tensor([0.5]).double(), config, ())
    chosen = threshold(confidence[None], bools([[1]]), torch.tensor([3]), config)
    assert confidence.item() == pytest.approx(0.86 / 0.95)
    assert chosen.tolist() == [[True]]


CONFIDENCE = torch.tensor([[0.2, 0.95, 0.9, 0.5], [0.1, 0.2, 0.3, 0.4]])
MASKED = bools([[1, 1, 1, 0], [1, 1, 1, 1]])


def test_static_commits_an_equal_share_most_confident_first() -> None:
    chosen = static(CONFIDENCE, MASKED, torch.tensor([2, 4]), STATIC)
    assert chosen.int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]  # ceil(3/2) and ceil(4/4)


def test_static_commits_what_is_left_at_the_last_step() -> None:
    chosen = static(CONFIDENCE, MASKED, torch.tensor([1, 1]), STATIC)
    assert torch.equal(chosen, MASKED)


@pytest.mark.parametrize(
    ("size", "steps", "expected"),
    [
        # masked * 999 / (1000 T - 999 i): 4 * 999/4000, 4 * 999/3001, 3 * 999/2002, the rest
        (4, 4, [0, 1, 1, 2]),
        (4, 2, [1, 3]),  # 4 * 999/2000 = 1.998
        (4, 1, [4]),
        (8, 3, [2, 2, 4]),  # 8 * 999/3000 = 2.664, 6 * 999/2001 = 2.996
    ],
)
def test_the_schedule_of_dream_commits_late(size: int, steps: int, expected: list[int]) -> None:
    config = replace(DREAM, gen_length=2 * size, block_length=size, steps=2 * steps)
    masked, counts = torch.ones(1, size, dtype=torch.bool), list[int]()
    confidence = torch.linspace(0.1, 0.9, size)[None]  # the last is the surest
    for left in range(steps, 0, -1):
        chosen = static(confidence, masked, torch.tensor([left]), config)
        counts.append(int(chosen.sum()))
        masked &= ~chosen
        assert masked[0, : int(masked.sum())].all()
    assert counts == expected


@pytest.mark.parametrize("size", [32, 256, 1024])
@pytest.mark.parametrize("per_step", [1, 2, 8])
def test_the_schedule_of_dream_is_that_of_its_code(size: int, per_step: int) -> None:
    """Its float32 arithmetic, and rows that are at other steps."""
    steps = size // per_step
    config = replace(DREAM, gen_length=size, block_length=size, steps=steps)
    times = torch.linspace(1, 1e-3, steps + 1)
    left, masked = size, list[int]()
    for t, s in itertools.pairwise(times):
        masked.append(left)
        left -= int(torch.tensor(float(left)) * (1 - s / t))
    steps_left = torch.arange(steps, 0, -1)
    counts = static_count(torch.tensor(masked), steps_left, config)
    assert counts[-1] == masked[-1]
    assert (torch.tensor(masked)[:-1] - counts[:-1]).tolist() == masked[1:]


def test_a_row_of_dreams_schedule_takes_every_step() -> None:
    trace = decode(make_policy(), PROMPTS, torch.arange(4), DREAM, KEY)
    for row in range(4):
        blocks = trace.unmask_step_BC[row].view(2, 4).sort(1).values.tolist()
        assert blocks[0] == [1, 2, 3, 3]
        assert blocks[1] in ([5, 6, 7, 7], [-1] * 4)
        assert trace.nfe_B[row] == (4 if -1 in blocks[1] else 8)


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
