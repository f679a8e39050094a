"""Every preset through `update`: micro-batches add up to the gradient of the whole batch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import Advantages, MaskedViews, Rollout, TokenLogps
from drift.config.cluster import ClusterConfig
from drift.config.commands import RunConfig
from drift.config.model import Dtype
from drift.config.objective import Level, Normalization
from drift.learner.advantage import estimate
from drift.learner.likelihood import micro_batches, score
from drift.learner.masking import build_views, prompt_masks
from drift.learner.objective import ScoredTokens, policy_objective, row_sizes, weigh
from drift.learner.sequence_objective import ScoredRows, sequence_objective
from drift.learner.update import restrict, settle_scored, update
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
    """Log-probs of everything that is hidden and committed, with graph, in one forward."""
    wanted_KBC = views.hidden_KBC & rollout.trace.committed_BC
    masks = prompt_masks(views, rollout)
    (batch,) = micro_batches(rollout, views.hidden_KBC, wanted_KBC, policy.special, 10_000, masks)
    logp_N, *_ = score(policy, batch, 1.0)
    place = (batch.view_N, batch.batch_N, batch.canvas_N)
    return torch.zeros(views.hidden_KBC.shape).index_put(place, logp_N)


def whole_loss(
    policy: Policy,
    before: Policy,
    reference: Policy,
    rollout: Rollout,
    views: MaskedViews,
    advantages: Advantages,
    config: RunConfig,
) -> Tensor:
    """The loss of the whole batch in one graph."""
    objective = config.objective
    views = restrict(views, advantages.used_B)
    current = all_logps(policy, rollout, views)
    old, frozen = (all_logps(p, rollout, views).detach() for p in (before, reference))
    scored_KBC = settle_scored(views, TokenLogps(logp_KBC=old, entropy_KBC=old))
    length_B = rollout.trace.committed_BC.sum(1) * advantages.used_B
    size_B = row_sizes(scored_KBC, views.weight_KB, length_B)
    num_rows, num_tokens = int((size_B > 0).sum()), int(size_B.sum())
    weights = weigh(
        scored_KBC, views.weight_KB, length_B, objective.normalization, num_rows, num_tokens
    )
    if objective.level != Level.view:
        return sequence_objective(
            ScoredRows(
                logp_KBC=current,
                old_logp_KBC=old,
                reference_logp_KBC=frozen,
                advantage_B=advantages.values_B,
                weights=weights,
                group_size=GROUP,
            ),
            objective,
        ).loss
    tokens = ScoredTokens(
        logp_N=current[scored_KBC],
        entropy_N=torch.zeros(int(scored_KBC.sum())),
        old_logp_N=old[scored_KBC],
        reference_logp_N=frozen[scored_KBC],
        advantage_N=advantages.values_B[:, None].expand_as(scored_KBC)[scored_KBC],
        weight_N=weights.token_KBC[scored_KBC],
        num_tokens=int(scored_KBC.sum()),
    )
    return policy_objective(tokens, objective).loss


@pytest.mark.parametrize("name", [*LOSSES, *(n for n in PAPERS if n != VALUED)])
def test_the_updates_gradients_are_those_of_the_whole_batch(name: str) -> None:
    choice = f"experiment={name}" if name in PAPERS else f"objective={name}"
    config = composed(choice, "rollout.gen_length=8", "rollout.block_length=4")
    policy, rollout = toy(), sampled()
    reference = make_policy(seed=2).double() if config.objective.kl_coef else None
    states: list[dict[str, Tensor]] = []
    gradients: list[Tensor] = []

    class Watched(Engine):
        def step(self) -> float:
            states.append({k: v.clone() for k, v in policy.state_dict().items()})
            parts = [p.grad.flatten() for p in policy.parameters()]  # type: ignore[union-attr]
            gradients.append(torch.cat(parts).clone())
            return super().step()

    engine = Watched(ClusterConfig(name="local"), Dtype.float32)
    config.optim = replace(config.optim, lr=3e-3, tokens_per_forward=3 * 13)
    engine.prepare(policy, config.optim, 8)
    rewards_B = torch.tensor([1.0, 0, 0, 0.5, 0, 0, 1, 1, 1, 1, 1, 1])
    advantages = estimate(rewards_B, GROUP, config.objective.advantage)
    views = build_views(rollout.trace, rollout.rows_B, config.masking, KEY)
    report = update(engine, policy, reference, rollout, advantages, views, config)
    assert len(gradients) == config.objective.num_updates
    totals = []
    for state, found in zip(states, gradients, strict=True):
        current = toy()
        current.load_state_dict(state)
        frozen = toy() if reference is None else reference
        loss = whole_loss(current, toy(), frozen, rollout, views, advantages, config)
        parts = torch.autograd.grad(loss, list(current.parameters()))
        expected = torch.cat([part.flatten() for part in parts])
        assert (found - expected).norm() < 1e-5 * expected.norm()
        totals.append(loss.item())
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
        report = update(engine, policy, None, rollout, advantages, views, config)
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
    for normalization in Normalization:
        config = composed(
            *choice, "rollout.gen_length=8", "rollout.block_length=4", "objective.num_updates=1",
            "objective.kl_coef=0.1", "objective.kl_estimator=k2",
            f"objective.normalization={normalization}",
        )  # fmt: skip
        views = build_views(rollout.trace, rollout.rows_B, config.masking, KEY)
        scored_KBC = views.scored_KBC[:, : 2 * GROUP]  # the third group has equal rewards
        (whole,) = micro_batches(rollout, views.hidden_KBC, views.scored_KBC, policy.special, 999)
        entropy_N = score(policy, whole, 1.0)[1][whole.batch_N < 2 * GROUP]
        assert len(entropy_N) == scored_KBC.sum()
        expected = entropy_N.mean().item()
        engine = Engine(ClusterConfig(name="local"), Dtype.float32)
        config.optim = replace(config.optim, tokens_per_forward=3 * 13)
        trained, reference = toy(), make_policy(seed=2).double()
        engine.prepare(trained, config.optim, 1)
        rewards_B = torch.tensor([1.0, 0, 0, 0.5, 0, 0, 1, 1, 1, 1, 1, 1])
        advantages = estimate(rewards_B, GROUP, config.objective.advantage)
        found = update(engine, trained, reference, rollout, advantages, views, config).metrics
        logged.append((found["policy/entropy"], found["kl/k2"]))
    for entropy, kl in logged:
        assert entropy == pytest.approx(expected, rel=1e-5)
        assert kl == pytest.approx(logged[0][1], rel=1e-5)
    assert logged[0][1] > 0
