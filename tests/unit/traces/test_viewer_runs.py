"""Trace pages of training and of evaluation: what is on them, and what a reader does there."""

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import Advantages, MaskedViews, Rollout, Score
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.compose import typed
from drift.config.masking import (
    MASKINGS as NAMES,
    AllConfig,
    CoupledConfig,
    MaskingConfig,
    RandomConfig,
    SequentialConfig,
)
from drift.config.model import Dtype
from drift.config.optim import OptimConfig
from drift.learner.masking import build_views
from drift.learner.update import prepare, restrict
from drift.policy.base import Policy
from drift.policy.loading import load_policy
from drift.rollout.decoding import decode
from drift.traces.rows import pick_rows, training_rows
from tests.configs import composed
from tests.conftest import ROOT, dense, make_rollout, masking, planes, rollout_config

if TYPE_CHECKING:
    pass
PROMPTS = ["3 9 5=7", "12 4=8", "19 16 5=8"]


def sampled() -> tuple[Policy, Rollout, Advantages]:
    """Three groups of two rows; the second group's rewards are equal."""
    policy = load_policy(ROOT / "data" / "tiny-countdown")
    ids = [policy.tokenizer(p, add_special_tokens=False)["input_ids"] for p in PROMPTS]
    config = rollout_config(temperature=1.5)
    repeated = [row for row in ids for _ in range(2)]
    trace = decode(policy, repeated, torch.arange(6), config, rng.stream(0, "test"))
    rollout = make_rollout(ids, trace, group_size=2, temperature=1.5)
    scores = [
        Score(reward=r, correct=r == 1, answer=None, verdict="pass" if r else "wrong")
        for r in (1.0, 0.0, 1.0, 1.0, 0.0, 1.0)
    ]
    advantages = Advantages(
        values_B=torch.tensor([0.5, -0.5, 0.0, 0.0, -0.5, 0.5]),
        used_B=torch.tensor([True, True, False, False, True, True]),
        zero_variance_groups=1,
    )
    return policy, replace(rollout, scores=scores), advantages


MASKINGS = [
    masking(SequentialConfig, low_prob_threshold=0.5),
    masking(RandomConfig),
    masking(CoupledConfig),
    masking(AllConfig),
]


def scored_by_the_loss(
    policy: Policy, rollout: Rollout, advantages: Advantages, views: MaskedViews
) -> torch.Tensor:
    """[K, B, C] bool, from the weights of the update itself."""
    engine = Engine(ClusterConfig(), Dtype.float32)
    engine.prepare(policy, OptimConfig(lr=1e-3), 1)
    config = typed(composed("objective.normalization=view_token"))  # settles them first
    assert isinstance(config, RunConfig)
    views = restrict(views, advantages.used_B)
    (work,), _ = prepare(engine, policy, None, rollout, views, advantages, config)
    assert not work.candidates  # they have been chosen
    return dense(work.token_N > 0, work.views, int(views.order_J.max()) + 1, 8)


@pytest.mark.parametrize("config", MASKINGS, ids=NAMES.name)
def test_a_page_shows_what_the_loss_scores(config: MaskingConfig) -> None:
    policy, rollout, advantages = sampled()
    views = build_views(rollout.trace, rollout.rows_B, config, 0)
    scored_KBC = scored_by_the_loss(policy, rollout, advantages, views)
    found = planes(views, len(scored_KBC), 8)
    if isinstance(config, SequentialConfig):
        assert (scored_KBC & ~found["scored"]).any()  # some candidates are likely enough
        assert (found["candidate"] & ~scored_KBC).any()  # and some are not
    rows = training_rows(policy, rollout, advantages, views, 6)
    for b, row in enumerate(rows):
        assert row.views is not None
        assert [view.hidden for view in row.views] == found["hidden"][:, b].tolist()
        assert [view.scored for view in row.views] == scored_KBC[:, b].tolist()
        assert any(any(view.scored) for view in row.views) == bool(advantages.used_B[b])
        assert row.advantage == advantages.values_B[b]
        assert row.entropies is not None
        assert row.alternatives is not None


def test_rows_that_teach_come_first() -> None:
    policy, rollout, advantages = sampled()
    views = build_views(rollout.trace, rollout.rows_B, MASKINGS[3], 0)
    rows = training_rows(policy, rollout, advantages, views, 4)
    assert [row.advantage for row in rows] == [0.5, -0.5, -0.5, 0.5]
    assert [row.label for row in rows] == ["correct", "wrong", "wrong", "correct"]
    assert len(training_rows(policy, rollout, advantages, views, 5)) == 5
    assert len(training_rows(policy, rollout, advantages, views, 50)) == 6


def test_picked_rows_are_rows_of_the_rollout() -> None:
    _, rollout, _ = sampled()
    few = pick_rows(rollout, torch.tensor([1, 4]))
    assert [few.prompt_ids(0), few.prompt_ids(1)] == [rollout.prompt_ids(1), rollout.prompt_ids(4)]
    assert torch.equal(few.trace.canvas_BC, rollout.trace.canvas_BC[[1, 4]])
    assert few.rows_B.tolist() == [1, 4]
