"""What ends a run that stands still or is left alone, and what does not."""

import torch

from drift.common import rng, terminal
from drift.learner.layout import micro_batches
from drift.learner.likelihood import token_logps
from drift.rollout.decoding import decode
from tests.conftest import make_policy, make_rollout, replay_views, rollout_config


def test_every_forward_of_the_learner_is_a_sign_of_life() -> None:
    policy, prompts = make_policy(), [[5, 6, 7], [4], [3, 3]]
    trace = decode(policy, prompts, torch.arange(3), rollout_config(), rng.stream(3, "test"))
    rollout = make_rollout(prompts, trace)
    batches = micro_batches(rollout, replay_views(rollout), policy.special, 2 * (3 + 8))
    beats: list[float] = []

    def listen(*_: object) -> None:
        beats.append(terminal.alive_at)
        terminal.alive_at = 0.0

    policy.register_forward_pre_hook(listen)
    token_logps(policy, batches, 1.0)
    assert len(beats) == len(batches) > 1
    assert all(beats)
