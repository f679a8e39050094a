"""One update of the policy from one rollout: views -> log-probs -> loss -> optimizer."""

from collections import defaultdict

from torch import Tensor

from drift.config import RunConfig
from drift.engine import Engine
from drift.likelihood import MicroBatch, micro_batches, score, token_logps
from drift.objective import ScoredTokens, policy_objective, token_weights
from drift.policy.base import Policy
from drift.types import Advantages, MaskedViews, Rollout, StepReport, TokenLogps


def settle_scored(views: MaskedViews, old: TokenLogps | None) -> Tensor:
    """The tokens that the loss scores: the views' own, and the candidates likely enough: [K,B,C].

    A candidate counts if the old policy gives it at least `candidate_min_prob` in its view; the
    set is fixed before the first update, so that every update has the same denominators.
    """
    if old is None:
        return views.scored_KBC
    likely_KBC = old.logp_KBC.exp() >= views.candidate_min_prob
    return views.scored_KBC | (views.candidate_KBC & likely_KBC)


def restrict(views: MaskedViews, used_B: Tensor) -> MaskedViews:
    """Score nothing in the rows that cannot teach."""
    return MaskedViews(
        hidden_KBC=views.hidden_KBC,
        scored_KBC=views.scored_KBC & used_B[:, None],
        candidate_KBC=views.candidate_KBC & used_B[:, None],
        candidate_min_prob=views.candidate_min_prob,
    )


def update(
    engine: Engine,
    policy: Policy,
    reference: Policy | None,
    rollout: Rollout,
    advantages: Advantages,
    views: MaskedViews,
    config: RunConfig,
) -> StepReport:
    """Change the policy by `objective.num_updates` optimizer steps on one rollout.

    Current, old and reference policy see the same views. Rows of zero-variance groups are left
    out; if nothing is left on any rank, nothing is updated.

    Returns:
        loss/*, kl/*, policy/entropy, optim/grad_norm, masking/scored_tokens, the same on all ranks.
    """
    views = restrict(views, advantages.used_B)
    shape, temperature = views.hidden_KBC.shape, rollout.temperature
    wanted_KBC = views.scored_KBC | views.candidate_KBC

    def cut(wanted: Tensor) -> list[MicroBatch]:
        rows = config.optim.rows_per_forward
        return micro_batches(rollout, views.hidden_KBC, wanted, policy.special, rows)

    model = engine.model
    assert model is not None
    old = None
    if config.objective.num_updates > 1 or bool(views.candidate_KBC.any()):
        old = token_logps(model, cut(wanted_KBC), shape, temperature)
    scored_KBC = settle_scored(views, old)
    batches = cut(scored_KBC)
    frozen = None
    if reference is not None:
        with engine.autocast():
            frozen = token_logps(reference, batches, shape, temperature)

    counts = engine.sum(
        {"rows": float(scored_KBC.any(2).any(0).sum()), "tokens": float(scored_KBC.sum())}
    )
    if counts["tokens"] == 0:
        return StepReport(metrics={"masking/scored_tokens": 0.0})
    weight_KBC = token_weights(
        scored_KBC, config.objective.normalization, int(counts["rows"]), int(counts["tokens"])
    )
    total: defaultdict[str, float] = defaultdict(float)
    for _ in range(config.objective.num_updates):
        for batch in batches:
            logp_N, entropy_N = score(model, batch, temperature)
            tokens = ScoredTokens(
                logp_N=logp_N,
                entropy_N=entropy_N,
                old_logp_N=logp_N.detach() if old is None else batch.pick(old.logp_KBC),
                reference_logp_N=None if frozen is None else batch.pick(frozen.logp_KBC),
                advantage_N=advantages.values_B[batch.batch_N],
                weight_N=batch.pick(weight_KBC),
            )
            output = policy_objective(tokens, config.objective)
            engine.backward(output.loss)
            for name, value in output.sums.items():
                total[name] += float(value)
        total["optim/grad_norm"] += engine.step() / engine.num_ranks
    metrics = engine.sum({n: v / config.objective.num_updates for n, v in total.items()})
    return StepReport(metrics=metrics | {"masking/scored_tokens": counts["tokens"]})
