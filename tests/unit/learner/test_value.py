"""The value model: GAE over the steps of a trace, its clipped loss, its head through an update."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import Rollout
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.model import Dtype
from drift.config.objective import ValueConfig
from drift.learner.advantage import estimate
from drift.learner.layout import micro_batches
from drift.learner.likelihood import score
from drift.learner.masking import build_views
from drift.learner.update import parts, update
from drift.learner.value import moments, step_targets, summary, value_loss
from drift.policy.base import VALUE_HEAD, Policy
from drift.rollout.decoding import decode
from tests.conftest import as_views, bools, dense, make_policy, make_rollout, rollout_config
from tests.formulas import clipped, k3, step_estimates
from tests.unit.learner.test_presets import composed

KEY = rng.stream(0, "value")
GROUP = 4
REWARDS = torch.tensor([1.0, 0, 0, 0.5, 0, 0, 1, 1, 1, 1, 1, 1])


def config(**changes: float) -> ValueConfig:
    return ValueConfig(**changes)  # type: ignore[arg-type]


def test_advantages_of_two_steps_by_hand() -> None:
    # two tokens in the first step, one in the second; the reward comes behind it
    views = as_views(bools([[1, 1, 0], [0, 0, 1]])[:, None])
    found = step_targets(
        torch.tensor([1.0]), torch.tensor([0.2, 0.4, 0.5]), views, torch.full((3,), 1 / 3),
        config(gamma=0.9, gae_lambda=0.5),
    )  # fmt: skip
    # the last: 1 - 0.5; the first: -V_j + 0.9 * 0.5 + 0.9 * 0.5 * 0.5
    expected = [0.675 - 0.2, 0.675 - 0.4, 0.5]
    torch.testing.assert_close(found.advantage_N, torch.tensor(expected))
    assert found.return_N.tolist() == pytest.approx([0.9, 0.9, 1])


def test_without_discount_an_advantage_is_the_reward_minus_the_tokens_value() -> None:
    views = as_views(bools([[1, 0, 1], [0, 1, 0]])[:, None])
    old_N = torch.rand(3)
    found = step_targets(torch.tensor([0.7]), old_N, views, torch.full((3,), 1 / 3), config())
    torch.testing.assert_close(found.advantage_N, 0.7 - old_N)


@settings(max_examples=50, deadline=None)
@given(
    order=st.lists(st.lists(st.integers(-1, 4), min_size=5, max_size=5), min_size=1, max_size=3),
    gamma=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_targets_are_the_sums_over_later_steps(
    order: list[list[int]], gamma: float, gae_lambda: float, seed: int
) -> None:
    """Rows whose steps have gaps, end early, or hold nothing."""
    generator = torch.Generator().manual_seed(seed)
    scored_KBC = torch.tensor(order) == torch.arange(5)[:, None, None]
    views = as_views(scored_KBC)
    old_N = torch.randn(len(views.state_N), generator=generator)
    reward_B = torch.randn(len(order), generator=generator)
    found = step_targets(
        reward_B, old_N, views, torch.ones_like(old_N),
        config(gamma=gamma, gae_lambda=gae_lambda),
    )  # fmt: skip
    assert len(found.advantage_N) == len(found.return_N) == scored_KBC.sum()
    old_KBC, advantage_KBC, return_KBC = (
        dense(x, views, 5, 5) for x in (old_N, found.advantage_N, found.return_N)
    )
    for b in range(len(order)):
        own = [k for k in range(5) if scored_KBC[k, b].any()]
        steps = [old_KBC[k, b, scored_KBC[k, b]].tolist() for k in own]
        if not steps:
            continue
        returns, advantages = step_estimates(steps, float(reward_B[b]), gamma, gae_lambda)
        for k, wish, advantage in zip(own, returns, advantages, strict=True):
            here = scored_KBC[k, b]
            torch.testing.assert_close(
                advantage_KBC[k, b, here], torch.tensor(advantage), atol=1e-5, rtol=1e-4
            )
            assert return_KBC[k, b, here].tolist() == pytest.approx([wish] * len(advantage))


def test_the_value_loss_stops_what_went_further_than_the_clip() -> None:
    old, wanted = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1.0, 1.0, 1.0])
    value = torch.tensor([0.6, 0.9, 0.1], requires_grad=True)  # inside, beyond, the wrong way
    loss = value_loss(value, old, wanted, torch.full((3,), 1 / 3), 0.2)
    # the second is held at 0.7: 0.3^2, without gradient
    assert loss.item() == pytest.approx((0.4**2 + 0.3**2 + 0.9**2) / 6)
    loss.backward()
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([-0.4 / 3, 0.0, -0.9 / 3])


def test_explained_variance_by_hand() -> None:
    views = as_views(bools([[1, 1, 1, 1]])[None])
    returns = torch.tensor([1.0, 0, 1, 0])
    found = step_targets(torch.zeros(1), returns * 0.5, views, torch.full((4,), 0.25), config())
    sums = moments(replace(found, return_N=returns))
    # Var(R) = 1/4; the errors 0.5 and 0 have variance 1/16
    assert summary(sums) == pytest.approx({"value/mean": 0.25, "value/explained_variance": 0.75})
    same = moments(replace(found, return_N=torch.ones_like(returns)))
    assert summary(same) == {"value/mean": 0.25}


# a loss that is a mean over rows; the views are the steps of the trace
BY_ROW = (
    "experiment=tracerl_value",
    "masking.tail=sampled",
    "objective.num_updates=2",
    "objective.num_minibatches=1",
    "objective.normalization=sample",
    "objective.kl_reduction=mean",
    "objective.kl_reference=start",
)


def sampled(policy: Policy, key: int = KEY) -> Rollout:
    """Three groups of four completions; the third's rewards are equal."""
    prompts = [[5, 6, 7], [8, 9, 10, 11, 5], [4]]
    repeated = [ids for ids in prompts for _ in range(GROUP)]
    trace = decode(policy, repeated, torch.arange(len(repeated)), rollout_config(), key)
    return make_rollout(prompts, trace, group_size=GROUP)


def with_head(seed: int = 1) -> Policy:
    """A head that has been trained a little: the values differ by token."""
    policy = make_policy(seed=seed)
    policy.attach_value_head()
    assert policy.value_head is not None
    with torch.no_grad():
        policy.value_head.weight.normal_(std=3.0, generator=torch.Generator().manual_seed(3))
        policy.value_head.bias.fill_(0.4)
    return policy


def settings_of(*overrides: str, rows: int = 3, lr: float = 3e-3) -> RunConfig:
    found = composed(*overrides, "rollout.gen_length=8", "rollout.block_length=4")
    found.optim = replace(found.optim, lr=lr, tokens_per_forward=rows * 13)
    return found


def trained(policy: Policy, rollout: Rollout, run: RunConfig) -> tuple[Tensor, list[Tensor]]:
    """What `update` reports as its loss, and each optimizer step's gradient."""
    gradients: list[Tensor] = []

    class Watched(Engine):
        def step(self, scale: float = 1.0) -> float:
            parts = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
            gradients.append(scale * torch.cat(parts))
            return super().step(scale)

    engine = Watched(ClusterConfig(name="local"), Dtype.float32)
    engine.prepare(policy, run.optim, 8, lrs={VALUE_HEAD: run.objective.value.lr})
    advantages = estimate(REWARDS, GROUP, run.objective.advantage)
    views = build_views(rollout.trace, rollout.rows_B, run.masking, KEY)
    reference = make_policy(seed=2) if run.objective.kl_coef else None
    report = update(engine, policy, reference, rollout, advantages, [views], run)
    return torch.tensor(report.metrics["loss/total"]), gradients


def scores_of(policy: Policy, rollout: Rollout, run: RunConfig) -> tuple[Tensor, ...]:
    """Log-probs and values [K, B, C] of everything that is scored, with graph, in one forward."""
    views = build_views(rollout.trace, rollout.rows_B, run.masking, KEY)
    (batch,) = micro_batches(rollout, views, policy.special, 10_000)
    logp_M, _, value_M = score(policy, batch, 1.0)
    value_M = torch.zeros_like(logp_M) if value_M is None else value_M
    empty_N, place = torch.zeros(len(views.state_N)), (batch.token_N,)
    parts_N = (
        ~views.candidate_N, empty_N.index_put(place, logp_M), empty_N.index_put(place, value_M),
    )  # fmt: skip
    num_views = int(views.order_J.max()) + 1
    return tuple(dense(part_N, views, num_views, 8) for part_N in parts_N)


def plain_loss(policy: Policy, before: Policy, rollout: Rollout, run: RunConfig) -> Tensor:
    """The whole loss in one graph, with loops over rows, steps and tokens."""
    objective = run.objective
    scored, logp, value = scores_of(policy, rollout, run)
    _, old, old_value = (x.detach() for x in scores_of(before, rollout, run))
    _, frozen, _ = (x.detach() for x in scores_of(make_policy(seed=2), rollout, run))
    rows: list[Tensor] = []
    for b in range(len(REWARDS)):
        views = [k for k in range(len(scored)) if scored[k, b].any()]
        steps = [old_value[k, b, scored[k, b]].tolist() for k in views]
        returns, advantages = step_estimates(
            steps, float(REWARDS[b]), objective.value.gamma, objective.value.gae_lambda
        )
        terms: list[Tensor] = []
        for k, wish, advantage in zip(views, returns, advantages, strict=True):
            here, clip = scored[k, b], objective.value.clip
            ratio = (logp - old)[k, b, here].exp()
            policy_loss = -clipped(ratio, torch.tensor(advantage), 0.2, 0.2)
            kl = objective.kl_coef * k3(logp[k, b, here], frozen[k, b, here])
            now, then = value[k, b, here], old_value[k, b, here]
            near = torch.minimum(torch.maximum(now, then - clip), then + clip)
            error = torch.maximum((now - wish) ** 2, (near - wish) ** 2) / 2
            terms.append(policy_loss + kl + objective.value.coef * error)
        rows.append(torch.cat(terms).mean())
    return torch.stack(rows).mean()


def test_an_updates_gradient_is_that_of_the_whole_loss() -> None:
    """Policy and head together; small micro-batches, steps of two, a discount."""
    run = settings_of(
        *BY_ROW, "masking.shrink=2", "objective.value.gamma=0.9",
        "objective.value.gae_lambda=0.8", "objective.value.coef=0.5", "objective.num_updates=1",
    )  # fmt: skip
    policy = with_head()
    rollout = sampled(policy)
    total, (found,) = trained(policy, rollout, run)
    again = with_head()
    loss = plain_loss(again, with_head(), rollout, run)
    expected = torch.cat([p.flatten() for p in torch.autograd.grad(loss, list(again.parameters()))])
    assert total.item() == pytest.approx(loss.item(), rel=1e-4)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    head = expected[-17:]  # the head is the policy's last part
    assert head.norm() > 0.01 * expected.norm()


def test_the_second_update_clips_by_the_values_before_the_first() -> None:
    run = settings_of(
        *BY_ROW, "masking.shrink=2", "objective.value.lr=0.1",
        "objective.value.clip=0.05", "objective.value.gamma=1",
    )  # fmt: skip
    policy = with_head()
    rollout = sampled(policy)
    _, gradients = trained(policy, rollout, run)
    assert len(gradients) == 2
    once = with_head()
    trained(once, rollout, settings_of(
        *BY_ROW, "masking.shrink=2", "objective.value.lr=0.1",
        "objective.value.clip=0.05", "objective.num_updates=1",
    ))  # fmt: skip
    scored, _, values = scores_of(once, rollout, run)
    moved = (values - scores_of(with_head(), rollout, run)[2])[scored].abs()
    assert moved.max() > 0.05  # so that the clip has something to stop
    loss = plain_loss(once, with_head(), rollout, run)
    expected = torch.cat([p.flatten() for p in torch.autograd.grad(loss, list(once.parameters()))])
    assert (gradients[1] - expected).norm() < 1e-4 * expected.norm()


def test_a_mini_batch_weighs_its_rows_like_a_batch() -> None:
    """The first of three: the mean over its views, and for the values the mean over its rows."""
    run = settings_of(
        "experiment=tracerl_value", "masking.shrink=2", "masking.tail=sampled",
        "objective.num_minibatches=3", "objective.kl_coef=0", "objective.value.coef=0.5",
    )  # fmt: skip
    policy = with_head()
    rollout = sampled(policy)
    _, gradients = trained(policy, rollout, run)
    assert len(gradients) == 3
    again = with_head()
    scored, logp, value = scores_of(again, rollout, run)
    states = [(b, k) for b in range(len(REWARDS)) for k in range(len(scored)) if scored[k, b].any()]
    views = build_views(rollout.trace, rollout.rows_B, run.masking, KEY)
    first = views.keep(parts(views, 3)[0])
    part = {*zip(first.row_N.tolist(), first.order_J[first.state_N].tolist(), strict=True)}
    assert 0 < len(part) < len(states)
    policies: list[Tensor] = []
    errors: dict[int, list[Tensor]] = {}
    for b in range(len(REWARDS)):
        views = [k for row, k in states if row == b]
        old = [value[k, b, scored[k, b]].detach() for k in views]
        returns, advantages = step_estimates([v.tolist() for v in old], float(REWARDS[b]), 1, 1)
        for k, then, wish, advantage in zip(views, old, returns, advantages, strict=True):
            if (b, k) not in part:
                continue
            here = scored[k, b]
            ratio = (logp[k, b, here] - logp[k, b, here].detach()).exp()
            policies.append(-clipped(ratio, torch.tensor(advantage), 0.2, 0.2).mean())
            errors.setdefault(b, []).append((value[k, b, here] - wish).square() / 2 + 0 * then)
    values = torch.stack([torch.cat(terms).mean() for terms in errors.values()])
    loss = torch.stack(policies).mean() + 0.5 * values.mean()
    expected = torch.cat([p.flatten() for p in torch.autograd.grad(loss, list(again.parameters()))])
    assert (gradients[0] - expected).norm() < 1e-4 * expected.norm()


def test_only_the_heads_learning_rate_is_the_heads() -> None:
    states: dict[str, Policy] = {}
    for lr in ("0.003", "0.05"):
        states[lr] = with_head()
        choice = (*BY_ROW, f"objective.value.lr={lr}", "objective.num_updates=1")
        trained(states[lr], sampled(make_policy(seed=1)), settings_of(*choice))
    same, other, start = (p.state_dict() for p in (*states.values(), with_head()))
    for name, tensor in same.items():
        if name.startswith(VALUE_HEAD):
            # AdamW's first step is the learning rate, up or down
            moved = (other[name] - start[name]).abs()
            torch.testing.assert_close(moved, torch.full_like(moved, 0.05), atol=1e-4, rtol=1e-3)
        else:
            assert torch.equal(tensor, other[name])


@pytest.mark.parametrize("choice", ["experiment=tracerl", "objective=gspo", "objective=grpo"])
def test_a_head_that_is_not_asked_changes_no_bit(choice: str) -> None:
    results: list[tuple[Tensor, list[Tensor]]] = []
    for policy in (make_policy(seed=1), with_head()):
        size = sum(p.numel() for p in policy.backbone.parameters())
        loss, gradients = trained(policy, sampled(policy), settings_of(choice))
        results.append((loss, [g[:size] for g in gradients]))
    (plain, without), (beside, with_it) = results
    assert plain == beside
    assert len(without) == len(with_it)
    assert all(torch.equal(a, b) for a, b in zip(without, with_it, strict=True))


def test_equal_rewards_teach_the_value_model() -> None:
    run = settings_of(*BY_ROW, "objective.num_updates=1", "objective.kl_coef=0")
    policy = make_policy(seed=1)
    policy.attach_value_head()
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    engine.prepare(policy, run.optim, 8)
    rollout = sampled(policy)
    views = build_views(rollout.trace, rollout.rows_B, run.masking, KEY)
    advantages = estimate(torch.ones(12), GROUP, run.objective.advantage)
    report = update(engine, policy, None, rollout, advantages, [views], run)
    assert advantages.zero_variance_groups == 3
    assert report.metrics["masking/scored_tokens"] == rollout.trace.committed_BC.sum()
    assert report.metrics["value/loss"] == pytest.approx(0.5)  # (1 - 0)^2 / 2
    assert "value/explained_variance" not in report.metrics
    assert policy.value_head is not None
    assert policy.value_head.bias.item() == pytest.approx(run.optim.lr, rel=1e-3)


def test_the_value_model_learns_which_prompts_are_easy() -> None:
    run = settings_of(*BY_ROW, "masking.shrink=1", lr=1e-4, rows=64)
    policy = make_policy(seed=1)
    policy.attach_value_head()
    engine = Engine(ClusterConfig(name="local"), Dtype.float32)
    engine.prepare(policy, run.optim, 100, lrs={VALUE_HEAD: run.objective.value.lr})
    explained: list[float] = []
    for step in range(50):
        rollout = sampled(policy, rng.stream(KEY, step))
        easy_B = torch.tensor([1.0, 0.0, 0.5]).repeat_interleave(GROUP)
        advantages = estimate(easy_B, GROUP, run.objective.advantage)
        views = build_views(rollout.trace, rollout.rows_B, run.masking, KEY)
        report = update(engine, policy, make_policy(seed=1), rollout, advantages, [views], run)
        explained.append(report.metrics["value/explained_variance"])
    assert explained[0] == 0  # a value of 0 everywhere
    assert sum(explained[-10:]) / 10 > 0.5  # of completions it was not trained on
