"""The denoising engine against a plain decoder, and what it promises about rows."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drift import rng
from drift.config import RemaskingRule, RolloutConfig
from drift.decoding import decode, invert
from drift.policy.base import Policy
from drift.remasking import static, threshold_
from drift.types import Trace
from tests.conftest import bools, make_policy, rollout_config

KEY = rng.stream(3, "test")
PROMPTS = [[5, 6, 7], [4], [9, 8, 7, 6, 5, 4], [3, 3]]
STATIC = rollout_config()
FAST = rollout_config(remasking=RemaskingRule.threshold, threshold=0.3)
CONFIGS = [STATIC, replace(STATIC, steps=4), FAST, replace(FAST, temperature=0.0)]


@torch.no_grad()
def plain_decode(
    policy: Policy, prompt: list[int], row: int, config: RolloutConfig
) -> tuple[list[int], list[int], list[float]]:
    """One row, one full forward per step, loops instead of tensors: canvas, steps, log-probs."""
    mask, size = policy.special.mask, config.block_length
    canvas, step_of = [mask] * config.gen_length, [-1] * config.gen_length
    logp_of, step = [0.0] * config.gen_length, 0
    for block in range(config.gen_length // size):
        places = range(block * size, (block + 1) * size)
        steps_left = config.steps // (config.gen_length // size)
        while any(step_of[i] < 0 for i in places):
            ids = torch.tensor([prompt + canvas])
            logits = policy.logits(ids)[0, len(prompt) :].double()
            logits[:, mask] = -torch.inf
            drawn: dict[int, tuple[float, int, float]] = {}
            for i in places:
                if step_of[i] >= 0:
                    continue
                plain = logits[i].softmax(-1)
                if config.temperature == 0:
                    token, used = int(plain.argmax()), plain
                else:
                    used = (logits[i] / config.temperature).softmax(-1)
                    noise = rng.uniform(KEY, *(torch.tensor(c) for c in (row, step, i)))
                    token = int((used.cumsum(0) < noise).sum())
                drawn[i] = (float(plain[token]), token, math.log(used[token]))
            best_first = sorted(drawn, key=lambda i: (-drawn[i][0], i))
            if config.remasking == RemaskingRule.static:
                chosen = best_first[: math.ceil(len(drawn) / steps_left)]
            else:
                sure = [i for i in best_first if drawn[i][0] >= (config.threshold or 0)]
                chosen = best_first if steps_left == 1 else (sure or best_first[:1])
            for i in chosen:
                _, canvas[i], logp_of[i] = drawn[i]
                step_of[i] = step
            step, steps_left = step + 1, steps_left - 1
        if any(canvas[i] in policy.special.stop for i in places):
            break
    return canvas, step_of, logp_of


def rows(trace: Trace, index: int) -> list[Tensor]:
    return [
        t[index]
        for t in (trace.canvas_BC, trace.unmask_step_BC, trace.logp_BC, trace.nfe_B, trace.length_B)
    ]


@pytest.mark.parametrize("config", CONFIGS)
def test_engine_equals_the_plain_decoder(policy: Policy, config: RolloutConfig) -> None:
    trace = decode(policy, PROMPTS, torch.arange(4), config, KEY)
    for row, prompt in enumerate(PROMPTS):
        canvas, step_of, logp_of = plain_decode(policy, prompt, row, config)
        assert trace.canvas_BC[row].tolist() == canvas
        assert trace.unmask_step_BC[row].tolist() == step_of
        assert trace.logp_BC[row].tolist() == pytest.approx(logp_of, abs=1e-5)


@pytest.mark.parametrize("max_rows", [1, 2, 3])
def test_a_row_is_the_same_alone_and_with_any_neighbours(policy: Policy, max_rows: int) -> None:
    together = decode(policy, PROMPTS, torch.arange(4), STATIC, KEY)
    few = decode(policy, PROMPTS, torch.arange(4), replace(STATIC, max_rows=max_rows), KEY)
    for row, prompt in enumerate(PROMPTS):
        alone = decode(policy, [prompt], torch.tensor([row]), STATIC, KEY)
        for a, b, c in zip(rows(together, row), rows(few, row), rows(alone, 0), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
            torch.testing.assert_close(a, c, atol=1e-5, rtol=0)


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


def test_mask_is_never_committed() -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.backbone.head.weight[policy.special.mask] *= 50
    trace = decode(policy, PROMPTS, torch.arange(4), replace(STATIC, temperature=2.0), KEY)
    assert not (trace.canvas_BC[trace.committed_BC] == policy.special.mask).any()


def test_inversion_draws_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2])
    noise = rng.uniform(KEY, torch.arange(20_000))
    drawn = invert(probs.log().expand(20_000, 4), noise).bincount(minlength=4) / 20_000
    assert drawn.tolist() == pytest.approx(probs.tolist(), abs=0.015)
    assert drawn[1] == 0


def test_inversion_at_the_ends_stays_on_possible_tokens() -> None:
    logps = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log().expand(2, 4)
    noise = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert invert(logps, noise).tolist() == [1, 2]


CONFIDENCE = torch.tensor([[0.2, 0.95, 0.9, 0.5], [0.1, 0.2, 0.3, 0.4]])
MASKED = bools([[1, 1, 1, 0], [1, 1, 1, 1]])


def test_static_commits_an_equal_share_most_confident_first() -> None:
    chosen = static(CONFIDENCE, MASKED, torch.tensor([2, 4]), None)
    assert chosen.int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]  # ceil(3/2) and ceil(4/4)


def test_static_commits_what_is_left_at_the_last_step() -> None:
    chosen = static(CONFIDENCE, MASKED, torch.tensor([1, 1]), None)
    assert torch.equal(chosen, MASKED)


def test_threshold_commits_every_sure_token_and_at_least_one() -> None:
    chosen = threshold_(CONFIDENCE, MASKED, torch.tensor([3, 3]), 0.9)
    assert chosen.int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]


def test_threshold_commits_what_is_left_at_the_last_step() -> None:
    chosen = threshold_(CONFIDENCE, MASKED, torch.tensor([1, 3]), 0.9)
    assert chosen.int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]


def test_ties_go_to_the_first_position() -> None:
    chosen = static(torch.full((1, 4), 0.5), bools([[0, 1, 1, 1]]), torch.tensor([3]), None)
    assert chosen.int().tolist() == [[0, 1, 0, 0]]
