"""The loss and gradient of objectives and presets against the papers' formulas; refusals.

The presets of which the code was read are in test_published.py.
"""

import re

import pytest
import torch
from torch import Tensor

from drift.common import rng
from drift.common.errors import ConfigError
from drift.config.checks import idle_settings, validate
from drift.config.commands import RunConfig
from drift.config.compose import CONF, typed
from drift.config.objective import KLReference, Level, Normalization
from drift.learner.advantage import estimate
from drift.learner.masking import build_views
from drift.learner.objective import (
    ScoredTokens,
    Weights,
    kl_weights,
    local_counts,
    policy_objective,
    weigh,
)
from drift.learner.sequence_objective import ScoredRows, sequence_objective, upper_bound
from drift.learner.update import likely, restrict
from drift.learner.value import step_targets, value_loss, with_value_loss
from tests import configs, published
from tests.conftest import ROOT, as_views, make_trace
from tests.formulas import CANVAS, FORMULAS, GROUP, Batch

PAPERS = sorted(
    path.stem
    for path in (CONF / "experiment").glob("*.yaml")
    if not path.stem.startswith(("llada", "dream"))
)
LOSSES = ["reinforce", "grpo", "dr_grpo", "rloo", "gspo"]


def composed(*overrides: str) -> RunConfig:
    config = typed(configs.composed(*overrides))
    validate(config)
    return config


def random_batch(*overrides: str) -> Batch:
    config = composed("rollout.gen_length=6", "rollout.block_length=2", *overrides)
    generator = torch.Generator().manual_seed(7)
    lengths = [6, 6, 4, 6, 2, 6, 6, 4, 6, 6, 6, 6]
    steps = [
        [int(s) for s in torch.randperm(n, generator=generator)] + [-1] * (CANVAS - n)
        for n in lengths
    ]
    trace = make_trace(steps)
    views = build_views(trace, torch.arange(12), config.masking, rng.stream(3, "presets"))
    shape = (int(views.order_J.max()) + 1, 12, CANVAS)
    old, reference, current = (
        torch.rand(shape, generator=generator, dtype=torch.float64).log().clamp(min=-3)
        for _ in range(3)
    )
    current = (old + 0.6 * (current - current.mean())).clamp(max=-0.01)
    rewards = torch.tensor([1.0, 0, 0, 0.5, 0, 0, 1, 1, 1, 1, 1, 1])
    return Batch(
        config=config,
        trace=trace,
        rewards_B=rewards,
        views=views,
        logp=current.requires_grad_(),
        old=old,
        reference=reference,
        value=torch.rand(shape, generator=generator).requires_grad_(),
        old_value=torch.rand(shape, generator=generator),
    )


def by_parts(batch: Batch) -> Tensor:
    """The loss as `update` puts it together."""
    objective = batch.config.objective
    advantages = estimate(batch.rewards_B, GROUP, objective.advantage)

    def pick(value_KBC: Tensor) -> Tensor:
        return value_KBC[views.order_J[views.state_N], views.row_N, views.column_N]

    views = restrict(batch.views, advantages.used_B)
    views = views.keep(likely(views, pick(batch.old)))
    counts = local_counts(views, views.length_B)
    weights = weigh(views, views.length_B, objective.normalization, counts, CANVAS)
    logp_N, old_N, reference_N = (pick(x) for x in (batch.logp, batch.old, batch.reference))
    if objective.kl_reference == KLReference.before:
        reference_N = old_N
    if objective.level != Level.view:
        rows = ScoredRows(
            logp_N=logp_N,
            old_logp_N=old_N,
            reference_logp_N=reference_N,
            advantage_B=advantages.values_B,
            views=views,
            weights=weights,
            group_size=GROUP,
        )
        return sequence_objective(rows, objective).loss
    advantage_N, targets = advantages.values_B[views.row_N], None
    if advantages.at_end:
        mean = weigh(views, views.length_B, Normalization.sample, counts, CANVAS)
        targets = step_targets(
            advantages.values_B, pick(batch.old_value), views, mean.token_N, objective.value
        )
        advantage_N = targets.advantage_N
    tokens = ScoredTokens(
        logp_N=logp_N,
        entropy_N=torch.zeros_like(logp_N),
        old_logp_N=old_N,
        reference_logp_N=reference_N,
        advantage_N=advantage_N,
        weight_N=weights.token_N,
        kl_weight_N=kl_weights(views, weights.token_N, objective.kl_reduction),
        num_tokens=len(logp_N),
    )
    output = policy_objective(tokens, objective)
    if targets is not None:
        value_N, clip = pick(batch.value), objective.value.clip
        loss = value_loss(value_N, targets.old_N, targets.return_N, targets.weight_N, clip)
        output = with_value_loss(output, loss, objective.value.coef)
    return output.loss


@pytest.mark.parametrize("name", FORMULAS)
def test_a_presets_loss_and_gradient_are_its_published_formula(name: str) -> None:
    choice = [f"experiment={name}"] if name in PAPERS else [f"objective={name}", "masking=replay"]
    if name.startswith("tracerl"):
        choice.append("masking.shrink=2")  # several groups of steps in six tokens
    batch = random_batch(*choice)
    found, expected = by_parts(batch), FORMULAS[name](batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
    for leaf in [batch.logp, *([batch.value] if name == "tracerl_value" else [])]:
        (by_loss,) = torch.autograd.grad(found, leaf, retain_graph=True)
        (by_formula,) = torch.autograd.grad(expected, leaf, retain_graph=True)
        torch.testing.assert_close(by_loss, by_formula, atol=1e-7, rtol=1e-5)
        assert by_loss.abs().max() > 1e-3  # something is learned


def test_bgpo_is_the_ratio_where_the_policy_has_not_moved() -> None:
    batch = random_batch("experiment=bgpo")
    batch.logp = batch.old.clone().requires_grad_()
    (found,) = torch.autograd.grad(by_parts(batch), batch.logp)
    ratio = random_batch("experiment=bgpo", "objective=ppo_clip", "objective.level=sequence")
    ratio.logp = ratio.old.clone().requires_grad_()
    (expected,) = torch.autograd.grad(by_parts(ratio), ratio.logp)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)
    assert by_parts(batch).item() == pytest.approx(by_parts(ratio).item(), abs=1e-7)


def test_the_upper_bound_is_above_the_lower_and_has_a_gradient_where_nothing_is_hidden() -> None:
    # weights of a token's views that add up to 1: Jensen; the last token is hidden in no view
    generator = torch.Generator().manual_seed(0)
    logp = torch.rand(3, 5, 4, generator=generator).log().requires_grad_()
    share = torch.rand(3, 5, 4, generator=generator)
    share = share / share.sum(0) / 3
    share[:, :, 3] = 0
    length = torch.full((5,), 3)
    views = as_views(share > 0)
    picked = (views.order_J[views.state_N], views.row_N, views.column_N)
    rows = ScoredRows(
        logp_N=logp[picked],
        old_logp_N=logp[picked].detach(),
        reference_logp_N=None,
        advantage_B=torch.zeros(5),
        views=views,
        weights=Weights(
            row_N=views.row_N,
            share_N=share[picked],
            row_B=torch.ones(5),
            mean_B=torch.ones(5) / 5,
            length_B=length,
        ),
        group_size=5,
    )
    upper = upper_bound(rows, 1.5)
    assert (upper > rows.means(rows.logp_N)).all()
    (gradient,) = torch.autograd.grad(upper.sum(), logp)
    assert gradient.isfinite().all()
    assert (gradient[:, :, 3] == 0).all()


def test_no_presets_name_stands_where_training_happens() -> None:
    names = {*PAPERS, *LOSSES} - {"reinforce"}
    folders = (ROOT / "drift" / name for name in ("policy", "rollout", "cluster", "training"))
    paths = [path for folder in folders for path in folder.glob("*.py")]
    paths += [ROOT / "drift" / "learner" / f"{name}.py" for name in ("likelihood", "update", "gap")]
    for path in paths:
        found = re.findall(rf"(?i)\b({'|'.join(sorted(names))})\b", path.read_text())
        assert not found, path


def test_every_preset_is_compared_with_its_source_and_names_it() -> None:
    presets = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    assert {*FORMULAS, *published.LOSSES} == {*LOSSES, *presets}
    for name in PAPERS:
        assert "arXiv" in (CONF / "experiment" / f"{name}.yaml").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective.level=sequence"],
            "objective.level=sequence does not go with objective=reinforce; use level=view",
        ),
        (
            ["objective=ppo_clip", "objective.level=token"],
            "objective.level=token adds up a token's views, but masking=sequential scores some",
        ),
        (
            ["objective=ppo_clip", "objective.level=token", "masking=block"],
            "objective.level=token adds up a token's views, but masking=block scores some",
        ),
        (
            ["experiment=spg", "masking=coupled"],
            "objective=sandwich bounds the likelihood by views at several t, which "
            "masking=coupled has not; use masking=elbo, quadrature or block",
        ),
        (
            ["experiment=spg", "objective.bound_exponent=0.9"],
            "objective.bound_exponent=0.9 must be",
        ),
        (["experiment=spg", "objective.num_updates=2"], "objective.num_updates=2 needs a ratio"),
        (
            ["objective.importance_cap=9"],
            "objective.importance_cap=9.0 does not apply; remove it or set objective.importance=",
        ),
        (
            ["objective=boundary", "masking=replay"],
            "objective=boundary needs views that each estimate the whole likelihood, "
            "which those of masking=replay do not; use masking=elbo, random or all",
        ),
        (
            ["objective=gspo", "objective.kl_coef=0.1"],
            "objective.kl_estimator=k3 is the exponential of a whole completion's log-ratio",
        ),
        (
            ["experiment=stable_drl", "objective.normalization=token"],
            "objective.normalization=token does not apply to objective=self_normalized",
        ),
        (
            ["objective=gspo", "objective.importance=truncated"],
            "objective.importance=truncated weighs each token in its view",
        ),
        (["experiment=espo", "masking.num_views=3"], "masking.num_views=3 must be even for"),
        (
            ["masking=elbo", "masking.least_count=1"],
            "masking.least_count=1 applies to masking.exact_count=true only; set "
            "masking.exact_count=true or masking.least_count=0",
        ),
        (
            ["experiment=espo", "masking.least_count=1"],
            "masking.least_count=1 does not go with masking.times=antithetic",
        ),
        (["masking=coupled_ratio", "masking.num_views=2"], "must be a multiple of 3"),
        (
            ["masking=coupled_ratio", "masking.max_ratio=1"],
            "max_ratio=1.0 must be above 0 and below 1: both",
        ),
        (["masking=block", "masking.block_length=5"], "masking.block_length=5 must divide"),
        (
            ["masking=trace", "masking.shrink=0"],
            "masking.shrink=0 must be a whole number of",
        ),
        (
            ["objective.advantage=gae"],
            "objective.advantage=gae has a value for each step of the trace, which the views of "
            "masking=sequential are not; use masking=trace or replay",
        ),
        (
            ["experiment=tracerl_value", "objective.level=sequence", "objective.kl_coef=0"],
            "objective.advantage=gae gives every token an advantage of its own, which "
            "objective.level=sequence cannot take; use level=view",
        ),
        (
            ["experiment=tracerl", "objective.value.gamma=0.9"],
            "objective.value.gamma=0.9 applies to objective.advantage=gae only; remove it or set",
        ),
        (
            ["experiment=tracerl_value", "objective.value.gae_lambda=2"],
            "objective.value.gae_lambda=2.0 must be from 0 to 1",
        ),
        (["experiment=tracerl_value", "objective.value.clip=0"], "objective.value.clip=0.0 must"),
        (
            ["objective=gspo", "objective.normalization=view"],
            "objective.normalization=view counts views apart, which objective.level=sequence adds "
            "up; use normalization=sample or level=view",
        ),
        (
            ["objective=ppo_clip", "objective.num_minibatches=2"],
            "objective.num_minibatches=2 cuts the views of a completion apart; use "
            "objective.normalization=view, or objective.num_minibatches=1",
        ),
        (
            ["objective.num_minibatches=4"],
            "objective.num_minibatches=4 needs a ratio to the old policy, which "
            "objective=reinforce does not have, and cuts the views of a completion apart; use "
            "objective=ppo_clip and objective.normalization=view, or objective.num_minibatches=1",
        ),
        (
            ["objective=boundary", "masking=elbo", "objective.num_minibatches=4"],
            "use objective=ppo_clip, objective.normalization=view and a masking whose views have "
            "no weights (masking=sequential or trace), or objective.num_minibatches=1",
        ),
        (
            ["objective=gspo", "objective.num_minibatches=4", "objective.normalization=view"],
            "use objective.level=view, or objective.num_minibatches=1",
        ),
        (
            ["objective.num_minibatches=2", "objective.normalization=view"],
            "objective.num_minibatches=2 needs a ratio to the old policy",
        ),
        (
            ["experiment=tracerl", "masking=elbo"],
            "objective.kl_reduction=sum adds up the KL of a view; use",
        ),
        (
            ["objective.kl_coef=0.1", "objective.kl_reference=follow", "model.lora.rank=4"],
            "objective.kl_reference=follow needs a reference of its own, but with "
            "model.lora.rank=4 the reference is the adapter's base; use start or before",
        ),
        (
            ["experiment=coupled_grpo", "objective.num_updates=8", "objective.follow_every=7"],
            "objective.follow_every=7 is below the 8 optimizer steps of a rollout (num_updates * "
            "num_minibatches), after which the reference can move once; use "
            "objective.follow_every=8 or more",
        ),
        (
            ["objective.follow_every=8"],
            "objective.follow_every=8 applies to objective.kl_reference=follow only; remove it",
        ),
        (
            ["objective=ppo_clip", "objective.clip_dual=1"],
            "objective.clip_dual=1.0 must be above 1",
        ),
        (["masking.prompt_mask_prob=1"], "masking.prompt_mask_prob=1.0 must be from 0 to below 1"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], []),
        (["experiment=espo"], []),
        (["experiment=espo", "objective.kl_coef=0"], ["objective.kl_estimator=k2 changes nothing"]),
        (
            ["experiment=coupled_grpo", "objective.num_updates=1"],
            ["objective.clip_low=0.5 and clip_high=0.5 change nothing at objective.num_updates=1"],
        ),
        (
            ["masking.redraw=true", "objective.kl_reference=before", "objective.kl_coef=0.1"],
            [
                "masking.redraw=true changes nothing at objective.num_updates=1",
                "objective.kl_coef=0.1 has no effect: with kl_reference=before and one optimizer "
                "step per rollout the KL and its gradient are 0; use num_updates or",
            ],
        ),
        (
            ["objective.kl_reference=before", "objective.kl_coef=0.1", "objective.kl_estimator=k1"],
            ["objective.kl_coef=0.1 only adds noise: with kl_reference=before and one"],
        ),
        (["experiment=tracerl"], []),
        (
            ["masking=elbo", "objective.normalization=view"],
            ["objective.normalization=view is the same as sample with masking=elbo, whose views"],
        ),
        (
            ["masking=coupled_ratio", "objective.normalization=view_token"],
            ["objective.normalization=view_token is the same as sample with masking=coupled_ratio"],
        ),
        (["objective.normalization=view"], []),
        (
            ["experiment=bgpo"],
            ["objective.clip_dual=3.0 changes nothing at objective.num_updates=1: the only update"],
        ),
        (["experiment=bgpo", "objective.num_updates=2"], []),
        (
            ["experiment=tracerl", "objective.kl_coef=0"],
            [
                "objective.kl_reduction=sum changes nothing at objective.kl_coef=0",
                "objective.kl_reference=before changes nothing at objective.kl_coef=0",
            ],
        ),
        (["num_steps=3", "optim.warmup_steps=2"], []),
        (
            ["objective=ppo_clip", "num_steps=3", "optim.warmup_steps=6"],
            ["optim.warmup_steps=6: the run ends within the warm-up, after 6 optimizer steps"],
        ),
    ],
)
def test_what_changes_nothing_is_told(overrides: list[str], said: list[str]) -> None:
    lines = list(idle_settings(composed(*overrides)))
    assert len(lines) == len(said)
    assert all(line.startswith(words) for line, words in zip(lines, said, strict=True))
