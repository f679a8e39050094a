"""The learner sees what the sampler saw; its gradients against brute force."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import Advantages, MaskedViews, Rollout
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.masking import (
    MASKINGS as NAMES,
    AllConfig,
    CoupledConfig,
    MaskingConfig,
    RandomConfig,
    SequentialConfig,
)
from drift.config.model import Dtype, ModelConfig
from drift.config.optim import OptimConfig
from drift.learner.likelihood import micro_batches, score, token_logps
from drift.learner.masking import build_views
from drift.learner.update import padding, settle_scored, update
from drift.policy.base import Policy
from drift.rollout.decoding import decode
from tests.conftest import (
    make_policy,
    make_rollout,
    make_trace,
    objective,
    replay_views,
    rollout_config,
)
from tests.unit.rollout.test_decoding import EXACT

KEY = rng.stream(3, "test")
PROMPTS = [[5, 6, 7], [4], [9, 8, 7, 6, 5, 4], [3, 3]]


BATCHES = [PROMPTS * 4, PROMPTS[:1], [[5, 6]] * 16]
REPLAYED = [  # every config, and every batch in every size of forward
    *((name, BATCHES[0], 3) for name in EXACT if name != "two a step"),
    *(("two a step", prompts, rows) for prompts in BATCHES for rows in (3, 64)),
]


@pytest.mark.parametrize(("name", "prompts", "rows_per_forward"), REPLAYED)
def test_replaying_a_trace_gives_the_samplers_log_probs(
    policy: Policy, name: str, prompts: list[list[int]], rows_per_forward: int
) -> None:
    config = EXACT[name]
    trace = decode(policy, prompts, torch.arange(len(prompts)), config, KEY)
    temperature = config.temperature or 1.0  # greedy records the log-prob at 1
    rollout = make_rollout(prompts, trace, temperature=temperature)
    views = replay_views(rollout)
    batches = micro_batches(
        rollout, views.hidden_KBC, views.scored_KBC, policy.special, rows_per_forward
    )
    logps = token_logps(policy, batches, views.hidden_KBC.shape, temperature)
    torch.testing.assert_close(logps.logp_KBC.sum(0), trace.logp_BC, atol=1e-5, rtol=0)


def toy() -> Policy:
    """Four words (0, 2, 3, 4; 0 ends a sequence) and the mask, in float64."""
    return make_policy(vocab_size=5, seed=1).double()


def dense_logps(policy: Policy, rollout: Rollout, hidden_KBC: Tensor) -> Tensor:
    """Every canvas token's log-prob by one full forward per view-row, with loops: [K, B, C]."""
    out = []
    for view in hidden_KBC:
        for row, hidden in enumerate(view):
            prompt = rollout.prompt_ids(row)
            canvas = rollout.trace.canvas_BC[row]
            shown = torch.where(hidden, policy.special.mask, canvas)
            logits = policy.logits(torch.cat([torch.tensor(prompt), shown])[None])[0].double()
            logits[:, policy.special.mask] = -torch.inf
            logps = (logits / rollout.temperature).log_softmax(-1)[len(prompt) :]
            out.append(torch.stack([logps[i, token] for i, token in enumerate(canvas)]))
    return torch.stack(out).view(hidden_KBC.shape)


MASKINGS: list[MaskingConfig] = [
    SequentialConfig(num_views=2),
    RandomConfig(ratio=0.7),
    CoupledConfig(),
    AllConfig(),
]


@pytest.mark.parametrize("masking", MASKINGS, ids=NAMES.name)
def test_micro_batches_score_what_dense_logits_say(masking: MaskingConfig) -> None:
    policy = make_policy("dream", seed=4).double()
    trace = decode(policy, PROMPTS, torch.arange(4), rollout_config(), KEY)
    rollout = make_rollout(PROMPTS, trace, temperature=0.5)
    views = build_views(trace, rollout.rows_B, masking, KEY)
    batches = micro_batches(rollout, views.hidden_KBC, views.scored_KBC, policy.special, 3)
    found = token_logps(policy, batches, views.hidden_KBC.shape, 0.5).logp_KBC
    expected = dense_logps(policy, rollout, views.hidden_KBC) * views.scored_KBC
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_entropy_is_minus_sum_p_log_p() -> None:
    policy = toy()
    rollout = make_rollout([[3]], make_trace([[0, 1, 2]], canvas=[[2, 3, 4]]))
    hidden = torch.ones(1, 1, 3, dtype=torch.bool)
    (batch,) = micro_batches(rollout, hidden, hidden, policy.special, 8)
    _, entropy_N, _ = score(policy, batch, 1.0)
    logits = policy.logits(torch.tensor([[3, 1, 1, 1]]))[0, 1:].double()
    probs = logits[:, [0, 2, 3, 4]].softmax(-1)
    expected = -(probs * probs.log()).sum(-1)
    torch.testing.assert_close(entropy_N.double(), expected, atol=1e-5, rtol=0)


def all_answers(left_to_right: bool) -> Rollout:
    """All 4^3 answers to one prompt, committed all at once or from left to right."""
    answers = [list(words) for words in itertools.product((0, 2, 3, 4), repeat=3)]
    step = [[0, 1, 2] if left_to_right else [0, 0, 0]] * len(answers)
    return make_rollout([[3, 4]], make_trace(step, canvas=answers), group_size=len(answers))


def exact_objective(policy: Policy, rollout: Rollout, hidden_KBC: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of every answer and the expected reward: [64], scalar."""
    steps = replay_views(rollout)
    logps = dense_logps(policy, rollout, hidden_KBC)
    probs = (logps * steps.scored_KBC).sum(dim=(0, 2)).exp()
    rewards = (rollout.trace.canvas_BC == torch.tensor([4, 2, 3])).double().sum(1)
    return probs, (probs * rewards).sum()


@pytest.mark.parametrize("left_to_right", [False, True])
def test_expected_policy_gradient_equals_the_gradient_by_enumeration(left_to_right: bool) -> None:
    # the learner's REINFORCE gradient, summed over all 64 answers with weight p(answer) reward
    policy = toy()
    rollout = all_answers(left_to_right)
    masking: MaskingConfig
    if left_to_right:
        masking = SequentialConfig(num_views=3, low_prob_threshold=1.0)
    else:
        masking = AllConfig()
    views = build_views(rollout.trace, rollout.rows_B, masking, KEY)
    hidden = replay_views(rollout).hidden_KBC
    probs, expected_reward = exact_objective(policy, rollout, hidden)
    assert probs.sum().item() == pytest.approx(1.0)
    names = [name for name, _ in policy.named_parameters()]
    exact = torch.autograd.grad(expected_reward, list(policy.parameters()))

    rewards = (rollout.trace.canvas_BC == torch.tensor([4, 2, 3])).double().sum(1)
    values_B = (probs * rewards).detach() * 64 * 3  # undo 1 / (rows * tokens of a row)
    gradient = learner_gradient(policy, rollout, views, values_B.float())
    for name, found, wanted in zip(names, gradient, exact, strict=True):
        torch.testing.assert_close(-found, wanted, atol=1e-5, rtol=1e-4, msg=name)


def learner_gradient(
    policy: Policy, rollout: Rollout, views: MaskedViews, values_B: Tensor
) -> list[Tensor]:
    """The gradient that `update` gives to the optimizer."""
    captured: list[Tensor] = []

    class Capture(Engine):
        def step(self) -> float:
            captured.extend(p.grad.clone() for p in policy.parameters())  # type: ignore[union-attr]
            return super().step()

    engine = Capture(ClusterConfig(name="local"), Dtype.float32)
    optim = OptimConfig(lr=1e-9, tokens_per_forward=7 * 5)
    engine.prepare(policy, optim, 1)
    advantages = Advantages(
        values_B=values_B,
        used_B=torch.ones(len(values_B), dtype=torch.bool),
        zero_variance_groups=0,
    )
    config = RunConfig(
        model=ModelConfig(name="toy"), objective=objective(), optim=optim, rollout=rollout_config()
    )
    update(engine, policy, None, rollout, advantages, views, config)
    return captured


@pytest.mark.parametrize("masking", MASKINGS, ids=NAMES.name)
def test_gradient_does_not_depend_on_the_micro_batch(masking: MaskingConfig) -> None:
    norms = []
    for rows in (1, 3, 64):
        policy = toy()
        rollout = all_answers(left_to_right=True)
        views = build_views(rollout.trace, rollout.rows_B, masking, KEY)
        engine = Engine(ClusterConfig(name="local"), Dtype.float32)
        optim = OptimConfig(lr=1e-3, tokens_per_forward=rows * 5)
        engine.prepare(policy, optim, 1)
        values_B = torch.linspace(-1, 1, 64)
        advantages = Advantages(
            values_B=values_B, used_B=values_B.abs() > 0.2, zero_variance_groups=0
        )
        config = RunConfig(objective=objective(), optim=optim, rollout=rollout_config())
        report = update(engine, policy, None, rollout, advantages, views, config)
        norms.append((report.metrics["optim/grad_norm"], report.metrics["masking/scored_tokens"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] == pytest.approx(norms[2], rel=1e-5)


def test_padding_is_what_short_rows_need_in_their_forward() -> None:
    policy = make_policy()  # prompts of 3, 1, 6 and 2 tokens, a canvas of 8: rows of 11, 9, 14, 10
    rollout = make_rollout(PROMPTS, decode(policy, PROMPTS, torch.arange(4), rollout_config(), KEY))
    all_KBC = torch.ones(1, 4, 8, dtype=torch.bool)
    batches = micro_batches(rollout, all_KBC, all_KBC, policy.special, rows_per_forward=2)
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    assert padding(engine, batches) == pytest.approx((1 + 3) / (10 + 10 + 14 + 14))


def test_candidates_are_scored_when_the_old_policy_finds_them_likely() -> None:
    trace = make_trace([[0, 1, 1, 1]])
    config = SequentialConfig(num_views=1, temperature=0.0, low_prob_threshold=0.6)
    views = build_views(replace(trace), torch.tensor([0]), config, KEY)
    logp_KBC = torch.tensor([[[math.log(p) for p in (0.1, 0.59, 0.61, 0.99)]]])
    old = token_logps_like(logp_KBC)
    assert settle_scored(views, old).int().tolist() == [[[1, 0, 1, 1]]]
    assert torch.equal(settle_scored(views, None), views.scored_KBC)


def token_logps_like(logp_KBC: Tensor):
    from drift.common.types import TokenLogps

    return TokenLogps(logp_KBC=logp_KBC, entropy_KBC=torch.zeros_like(logp_KBC))


def test_a_batch_without_anything_to_learn_updates_nothing() -> None:
    policy = toy()
    before = [p.clone() for p in policy.parameters()]
    rollout = all_answers(left_to_right=False)
    views = build_views(rollout.trace, rollout.rows_B, MASKINGS[3], KEY)
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    optim = OptimConfig(lr=1e-3)
    engine.prepare(policy, optim, 1)
    nothing = Advantages(
        values_B=torch.zeros(64), used_B=torch.zeros(64, dtype=torch.bool), zero_variance_groups=1
    )
    config = RunConfig(objective=objective(), optim=optim, rollout=rollout_config())
    report = update(engine, policy, None, rollout, nothing, views, config)
    assert report.metrics == {"masking/scored_tokens": 0.0, "optim/lr": 1e-3}
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
