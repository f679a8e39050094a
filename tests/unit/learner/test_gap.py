"""The gap between sampler and learner: none without a cache, measured and corrected with one."""

import logging
from dataclasses import replace

import pytest
import torch

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import MaskedViews, TokenLogps
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.masking import SequentialConfig
from drift.config.model import Dtype, ModelConfig
from drift.config.optim import OptimConfig
from drift.config.rollout import CacheMode, RolloutConfig, Schedule
from drift.learner.gap import (
    MAX_ROWS,
    importance_weights,
    one_state_each,
    sampler_gap,
    warn_of_gap,
)
from drift.policy.base import Policy
from drift.rollout.decoding import decode
from tests.conftest import make_policy, make_rollout, make_trace, masking, planes, rollout_config

KEY = rng.stream(3, "test")
PROMPTS = [[5, 6, 7], [4], [9, 8, 7, 6, 5, 4], [3, 3]] * 8


def measure(policy: Policy, config: RolloutConfig, drift: float = 0.0) -> dict[str, float]:
    trace = decode(policy, PROMPTS, torch.arange(len(PROMPTS)), config, KEY)
    with torch.no_grad():
        policy.backbone.head.weight *= 1 + drift
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    optim = OptimConfig(lr=1e-3, tokens_per_forward=5 * 14)
    engine.prepare(policy, optim, 1)
    run = RunConfig(
        model=ModelConfig(name="toy"), rollout=config, optim=optim,
        masking=masking(SequentialConfig),
    )  # fmt: skip
    return sampler_gap(engine, policy, make_rollout(PROMPTS, trace), run, KEY)


def test_without_a_cache_there_is_no_gap(policy: Policy) -> None:
    gap = measure(policy, rollout_config())
    assert abs(gap["gap/kl"]) < 1e-9
    assert gap["gap/ess"] == pytest.approx(1, abs=1e-6)


def test_a_cache_and_a_changed_policy_make_a_gap(policy: Policy) -> None:
    cached = measure(policy, replace(rollout_config(), cache=CacheMode.dual))
    assert cached["gap/kl"] > 1e-6
    changed = measure(make_policy(), rollout_config(), drift=0.5)
    assert changed["gap/kl"] > 1e-3
    assert changed["gap/ess"] < 0.999


def test_the_state_of_a_step_hides_what_was_committed_then_or_later() -> None:
    trace = make_trace([[0, 1, 1, 2], [0, -1, -1, -1]])
    rollout = make_rollout([[5], [6]], trace)
    seen: set[tuple[int, ...]] = set()
    for key in range(40):
        found = planes(one_state_each(rollout, rng.stream(key, "gap")), 1, 4)
        hidden, committed = found["hidden"], found["scored"]
        assert not found["candidate"].any()
        assert hidden[0, 1].tolist() == [True] * 4  # one step: everything was masked
        assert committed[0, 1].tolist() == [True, False, False, False]
        step = {(1, 0, 0, 0): 0, (0, 1, 1, 0): 1, (0, 0, 0, 1): 2}[
            tuple(committed[0, 0].int().tolist())
        ]
        assert hidden[0, 0].tolist() == [s >= step for s in (0, 1, 1, 2)]
        seen.add(tuple(committed[0, 0].int().tolist()))
    assert len(seen) == 3


def test_a_step_that_committed_nothing_is_not_measured() -> None:
    trace = make_trace([[1, 3, 3, 1]])  # as of Dream's schedule
    rollout = make_rollout([[5]], trace)
    seen = [
        planes(one_state_each(rollout, rng.stream(key, "gap")), 1, 4)["scored"][0, 0].tolist()
        for key in range(20)
    ]
    assert {tuple(scored) for scored in seen} == {
        (True, False, False, True),
        (False, True, True, False),
    }


def test_dreams_schedule_has_no_gap_either(policy: Policy) -> None:
    gap = measure(policy, rollout_config(schedule=Schedule.dream))
    assert abs(gap["gap/kl"]) < 1e-9


def test_of_many_rows_some_are_measured() -> None:
    rows = 2 * MAX_ROWS + 1  # every third
    rollout = make_rollout([[5]], make_trace([[0, 1, 1, 2]] * rows), group_size=rows)
    views = one_state_each(rollout, KEY)
    assert set(views.row_N.tolist()) == set(range(0, rows, 3))


def test_importance_is_capped_and_only_in_the_samplers_own_states() -> None:
    trace = make_trace([[0, 1, 1]], logp=[[-1.0, -1.0, -1.0]])
    views = MaskedViews(
        row_J=torch.tensor([0]),
        order_J=torch.tensor([0]),
        hide=lambda state_M: torch.ones(len(state_M), 3, dtype=torch.bool),
        state_N=torch.zeros(3, dtype=torch.int64),
        column_N=torch.arange(3),
        candidate_N=torch.tensor([False, False, True]),
        candidate_min_prob=0.6,
        length_B=torch.tensor([3]),
        rows_B=torch.tensor([0]),
    )
    old = TokenLogps(logp_N=torch.tensor([-1.5, 2.0, -0.2]), entropy_N=torch.zeros(3))
    weights = importance_weights(views, old, make_rollout([[5]], trace), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([0.60653066, 2.0, 1.0]))


def test_a_large_gap_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="drift"):
        warn_of_gap(0.001)
        assert not caplog.records
        warn_of_gap(0.5)
    assert "gap/kl=0.500" in caplog.text
    assert "rollout.cache=none" in caplog.text
