"""Every preset through `update`: micro-batches add up to the gradient of the whole batch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import Advantages, MaskedViews, Rollout
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.masking import Tail
from drift.config.model import Dtype
from drift.config.objective import Level, Normalization
from drift.learner.advantage import estimate
from drift.learner.layout import micro_batches
from drift.learner.likelihood import score
from drift.learner.masking import build_views, draw_views
from drift.learner.objective import (
    ScoredTokens,
    kl_weights,
    local_counts,
    policy_objective,
    weigh,
)
from drift.learner.sequence_objective import ScoredRows, sequence_objective
from drift.learner.update import likely, restrict, update
from drift.policy.base import Policy
from drift.rollout.decoding import decode
from tests.conftest import make_policy, make_rollout, rollout_config
from tests.unit.learner.test_presets import LOSSES, PAPERS, composed

KEY = rng.stream(0, "test")
VALUED = "tracerl_value"  # with its head in test_value.py
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 5]]
GROUP = 4


def toy() -> Policy:
    return make_policy(seed=1).double()


def sampled() -> Rollout:
    """Two groups of four completions; the third prompt's group has equal rewards."""
    policy = toy()
    prompts = [*PROMPTS, [4]]
    repeated = [ids for ids in prompts for _ in range(GROUP)]
    trace = decode(policy, repeated, torch.arange(len(repeated)), rollout_config(), KEY)
    return make_rollout(prompts, trace, group_size=GROUP)


def all_logps(policy: Policy, rollout: Rollout, views: MaskedViews) -> Tensor:
    """Log-probs of the views' tokens, [N], with graph, in one forward."""
    (batch,) = micro_batches(rollout, views, policy.special, 100_000)
    logp_N, *_ = score(policy, batch, 1.0)
    return logp_N.new_zeros(len(views.state_N)).index_put((batch.token_N,), logp_N)


def scored_part(
    before: Policy,
    rollout: Rollout,
    views: MaskedViews,
    advantages: Advantages,
    part: int,
    number: int,
) -> MaskedViews:
    """What the loss of a part of the states scores: drawn by the row's number and the order."""
    views = restrict(views, advantages.used_B)
    with torch.no_grad():
        views = views.keep(likely(views, all_logps(before, rollout, views)))
    key = rng.stream(views.key, "parts")
    own = [
        int(rng.uniform(key, views.rows_B[views.row_J[j]], views.order_J[j]) * number) == part
        for j in views.state_N.tolist()
    ]
    return views.keep(torch.tensor(own, dtype=torch.bool))


def whole_loss(
    policy: Policy,
    before: Policy,
    reference: Policy,
    rollout: Rollout,
    views: MaskedViews,
    advantages: Advantages,
    config: RunConfig,
) -> Tensor:
    """The loss of the whole batch, or of a minibatch of it, in one graph."""
    objective = config.objective
    current = all_logps(policy, rollout, views)
    old, frozen = (all_logps(p, rollout, views).detach() for p in (before, reference))
    can_BC = rollout.trace.committed_BC
    if config.masking.tail == Tail.exclude:
        can_BC = can_BC & (torch.arange(8) < rollout.trace.length_B[:, None])
    length_B = can_BC.sum(1) * advantages.used_B
    counts = local_counts(views, length_B)
    weights = weigh(views, length_B, objective.normalization, counts, 8)
    if objective.level != Level.view:
        return sequence_objective(
            ScoredRows(
                logp_N=current,
                old_logp_N=old,
                reference_logp_N=frozen,
                advantage_B=advantages.values_B,
                views=views,
                weights=weights,
                group_size=GROUP,
            ),
            objective,
        ).loss
    tokens = ScoredTokens(
        logp_N=current,
        entropy_N=torch.zeros_like(old),
        old_logp_N=old,
        reference_logp_N=frozen,
        advantage_N=advantages.values_B[views.row_N],
        weight_N=weights.token_N,
        kl_weight_N=kl_weights(views, weights.token_N, objective.kl_reduction),
        num_tokens=len(old),
    )
    return policy_objective(tokens, objective).loss


CHOICES = {  # what no preset has
    "redrawn": "objective=ppo_clip masking=random masking.redraw=true",
    "redrawn, whole rows": "objective=gspo masking=coupled masking.redraw=true",
    "redrawn, candidates": "objective=ppo_clip masking=sequential masking.redraw=true",
    "minibatches": "objective=ppo_clip masking=replay objective.normalization=view "
    "objective.num_minibatches=3",
    "minibatches, candidates": "objective=ppo_clip objective.normalization=view "
    "objective.num_minibatches=2 objective.kl_coef=0.1",
    "minibatches, redrawn": "objective=ppo_clip masking=random masking.redraw=true "
    "objective.normalization=view objective.num_minibatches=2 objective.num_updates=3",
    "views": "objective=reinforce objective.normalization=view",
    "tokens": "objective=reinforce objective.normalization=token",
    "tokens and KL": "objective=grpo objective.normalization=token",
    "tokens of views": "objective=reinforce objective.normalization=view_token",
    "KL of views": "objective=grpo objective.normalization=view objective.kl_reduction=sum",
    "KL of views in updates": "objective=ppo_clip objective.normalization=view "
    "objective.kl_reduction=sum objective.kl_coef=0.1",
    "KL to before": "objective=ppo_clip objective.kl_coef=0.5 objective.kl_reference=before",
    "KL to before, whole rows": "objective=gspo objective.kl_coef=0.5 "
    "objective.kl_reference=before objective.kl_estimator=k2",
    "no tail": "objective=rloo masking=replay masking.tail=exclude",
    "no tail, whole rows": "objective=gspo masking=elbo masking.tail=exclude "
    "objective.normalization=token",
    "no tail, candidates": "objective=reinforce masking=sequential masking.tail=exclude "
    "objective.normalization=view",
}


def overrides_of(name: str) -> list[str]:
    if name in CHOICES:
        words = CHOICES[name].split()
        sequential = not any(word.startswith("masking=") for word in words)
        words += ["masking=sequential"] * sequential
        asks = "masking=sequential" in words
        return words + ["masking.low_prob_threshold=0.09"] * asks  # about half the candidates
    return [f"experiment={name}" if name in PAPERS else f"objective={name}"]


@pytest.mark.parametrize("name", [*LOSSES, *(n for n in PAPERS if n != VALUED), *CHOICES])
def test_the_updates_gradients_are_those_of_the_whole_batch(name: str) -> None:
    config = composed(*overrides_of(name), "rollout.gen_length=8", "rollout.block_length=4")
    policy, rollout, objective = toy(), sampled(), config.objective
    to_start = objective.has_reference
    reference = make_policy(seed=2).double() if to_start else None
    states: list[dict[str, Tensor]] = []
    gradients: list[Tensor] = []

    class Watched(Engine):
        def step(self, scale: float = 1.0) -> float:
            states.append({k: v.clone() for k, v in policy.state_dict().items()})
            parts = [p.grad.flatten() for p in policy.parameters()]  # type: ignore[union-attr]
            gradients.append(scale * torch.cat(parts))
            return super().step(scale)

    engine = Watched(ClusterConfig(name="local"), Dtype.float32)
    config.optim = replace(config.optim, lr=3e-3, tokens_per_forward=3 * 13)
    engine.prepare(policy, config.optim, 8)
    rewards_B = torch.tensor([1.0, 0, 0, 0.5, 0, 0, 1, 1, 1, 1, 1, 1])
    advantages = estimate(rewards_B, GROUP, config.objective.advantage)
    draws = draw_views(rollout.trace, rollout.rows_B, config, KEY)
    assert len(draws) == (objective.num_updates if config.masking.redraw else 1)
    report = update(engine, policy, reference, rollout, advantages, draws, config)
    number, steps = objective.num_minibatches, []
    for i in range(objective.num_updates * number):
        nth, part = divmod(i, number)
        steps.append(scored_part(toy(), rollout, draws[nth % len(draws)], advantages, part, number))
    steps = [views for views in steps if len(views.state_N)]  # a small batch leaves parts empty
    totals, tokens = [], 0
    for views, state, found in zip(steps, states, gradients, strict=True):
        current = toy()
        current.load_state_dict(state)
        frozen = toy() if reference is None else reference
        tokens += len(views.state_N)
        loss = whole_loss(current, toy(), frozen, rollout, views, advantages, config)
        parts = torch.autograd.grad(loss, list(current.parameters()))
        expected = torch.cat([part.flatten() for part in parts])
        assert (found - expected).norm() < 1e-5 * expected.norm()
        totals.append(loss.item())
    per_pass = tokens / objective.num_updates
    assert report.metrics["masking/scored_tokens"] == pytest.approx(per_pass)
    mean = sum(totals) / len(totals)
    assert report.metrics["loss/total"] == pytest.approx(mean, rel=1e-5, abs=1e-6)


def test_the_entropy_is_added_to_a_loss_of_whole_rows() -> None:
    overrides = (
        "objective=gspo",
        "objective.num_updates=1",
        "rollout.gen_length=8",
        "objective.normalization=token",
    )  # so that the mean that is logged is the loss's
    gradients: dict[float, Tensor] = {}
    totals: dict[float, float] = {}
    entropy = 0.0
    for coef in (0.0, 0.5):
        config = composed(*overrides, "rollout.block_length=4", f"objective.entropy_coef={coef}")
        policy, rollout = toy(), sampled()
        engine = Engine(ClusterConfig(name="local"), Dtype.float32)
        config.optim = replace(config.optim, lr=1e-3, tokens_per_forward=5 * 13)
        engine.prepare(policy, config.optim, 1)
        rewards_B = torch.tensor([1.0, 0, 0, 0.5, 0, 0, 1, 1, 1, 1, 1, 1])
        advantages = estimate(rewards_B, GROUP, config.objective.advantage)
        views = build_views(rollout.trace, rollout.rows_B, config.masking, KEY)
        report = update(engine, policy, None, rollout, advantages, [views], config)
        totals[coef], entropy = report.metrics["loss/total"], report.metrics["policy/entropy"]
        gradients[coef] = torch.tensor(report.metrics["optim/grad_norm"])
    assert totals[0.5] == pytest.approx(totals[0.0] - 0.5 * entropy, rel=1e-5)
    assert entropy > 0.1
    assert gradients[0.5] != gradients[0.0]


@pytest.mark.parametrize(
    "choice",
    [
        ("objective=ppo_clip", "masking=elbo"),
        ("objective=ppo_clip", "masking=replay", "objective.importance=truncated"),
        ("objective=gspo", "masking=replay"),
    ],
    ids=" ".join,
)
def test_entropy_and_kl_are_means_whatever_the_normalization(choice: tuple[str, ...]) -> None:
    rollout, policy = sampled(), toy()
    logged: list[tuple[float, float]] = []
    expected = 0.0
    by_view = {Normalization.view, Normalization.view_token}  # of losses of single views
    whole_rows = "objective=gspo" in choice
    for normalization in Normalization:
        if whole_rows and normalization in by_view:
            continue
        config = composed(
            *choice, "rollout.gen_length=8", "rollout.block_length=4", "objective.num_updates=1",
            "objective.kl_coef=0.1", "objective.kl_estimator=k2",
            f"objective.normalization={normalization}",
        )  # fmt: skip
        views = build_views(rollout.trace, rollout.rows_B, config.masking, KEY)
        used_N = views.row_N < 2 * GROUP  # the third group has equal rewards
        (whole,) = micro_batches(rollout, views, policy.special, 100_000)
        entropy_N = score(policy, whole, 1.0)[1][used_N[whole.token_N]]
        assert len(entropy_N) == used_N.sum()
        expected = entropy_N.mean().item()
        engine = Engine(ClusterConfig(name="local"), Dtype.float32)
        config.optim = replace(config.optim, tokens_per_forward=3 * 13)
        trained, reference = toy(), make_policy(seed=2).double()
        engine.prepare(trained, config.optim, 1)
        rewards_B = torch.tensor([1.0, 0, 0, 0.5, 0, 0, 1, 1, 1, 1, 1, 1])
        advantages = estimate(rewards_B, GROUP, config.objective.advantage)
        found = update(engine, trained, reference, rollout, advantages, [views], config).metrics
        logged.append((found["policy/entropy"], found["kl/k2"]))
    for entropy, kl in logged:
        assert entropy == pytest.approx(expected, rel=1e-5)
        assert kl == pytest.approx(logged[0][1], rel=1e-5)
    assert logged[0][1] > 0


@pytest.mark.parametrize("name", [n for n in CHOICES if "masking=sequential" in overrides_of(n)])
def test_some_candidates_of_these_choices_are_likely_and_some_are_not(name: str) -> None:
    config = composed(*overrides_of(name), "rollout.gen_length=8", "rollout.block_length=4")
    rollout = sampled()
    for views in draw_views(rollout.trace, rollout.rows_B, config, KEY):
        with torch.no_grad():
            kept_N = likely(views, all_logps(toy(), rollout, views))[views.candidate_N]
        assert 0.1 < kept_N.float().mean() < 0.9
