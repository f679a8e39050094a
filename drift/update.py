"""One update of the policy from one rollout: views -> log-probs -> loss -> optimizer."""

from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor

from drift.config import Importance, RunConfig
from drift.engine import Engine
from drift.gap import importance_weights
from drift.likelihood import MicroBatch, micro_batches, pad_batches, score, token_logps
from drift.objective import ScoredTokens, policy_objective, token_weights
from drift.policy.base import Policy
from drift.policy.lora import adapter_off
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the optimizer steps of one update share: Work(batches=[...], old=None, ...)."""

    batches: list[MicroBatch]
    old: TokenLogps | None  # of the policy before this update; None where it is not needed
    reference: TokenLogps | None
    weight_KBC: Tensor
    num_tokens: int  # scored tokens over all views and ranks


def prepare(
    engine: Engine,
    policy: Policy,
    reference: Policy | None,
    rollout: Rollout,
    views: MaskedViews,
    config: RunConfig,
) -> Work:
    """Log-probs of the frozen policies, the scored tokens and their weights, before any update."""
    shape, temperature = views.hidden_KBC.shape, rollout.temperature
    assert engine.model is not None

    def cut(wanted_KBC: Tensor) -> list[MicroBatch]:
        rows = config.optim.rows_per_forward
        batches = micro_batches(rollout, views.hidden_KBC, wanted_KBC, policy.special, rows)
        pad_batches(batches, int(engine.max(len(batches))), policy.special.pad, policy.device)
        return batches

    old = None
    corrected = config.objective.importance == Importance.truncated
    candidates = engine.max(float(views.candidate_KBC.any()))
    if config.objective.num_updates > 1 or corrected or candidates:
        wanted_KBC = views.scored_KBC | views.candidate_KBC
        old = token_logps(engine.model, cut(wanted_KBC), shape, temperature)
    scored_KBC = settle_scored(views, old)
    batches = cut(scored_KBC)
    frozen = None
    if reference is not None:
        model = engine.model if reference is policy else reference
        with engine.autocast(), adapter_off(reference):
            frozen = token_logps(model, batches, shape, temperature)
    num_rows = float(scored_KBC.any(dim=2).any(dim=0).sum())
    counts = engine.sum({"rows": num_rows, "tokens": float(scored_KBC.sum())})
    num_rows, num_tokens = int(counts["rows"]), int(counts["tokens"])
    weight_KBC = token_weights(scored_KBC, config.objective.normalization, num_rows, num_tokens)
    if corrected and old is not None:
        weight_KBC *= importance_weights(views, old, rollout, config.objective.importance_cap)
    return Work(
        batches=batches, old=old, reference=frozen, weight_KBC=weight_KBC, num_tokens=num_tokens
    )


def accumulate(
    engine: Engine, work: Work, rollout: Rollout, advantages: Advantages, config: RunConfig
) -> dict[str, float]:
    """Add up the gradient of every micro-batch; returns this rank's sums of what is logged."""
    total: defaultdict[str, float] = defaultdict(float)
    assert engine.model is not None
    for i, batch in enumerate(work.batches):
        with engine.micro_batch(last=i == len(work.batches) - 1):
            logp_N, entropy_N = score(engine.model, batch, rollout.temperature)
            tokens = ScoredTokens(
                logp_N=logp_N,
                entropy_N=entropy_N,
                old_logp_N=logp_N.detach() if work.old is None else batch.pick(work.old.logp_KBC),
                reference_logp_N=(
                    None if work.reference is None else batch.pick(work.reference.logp_KBC)
                ),
                advantage_N=advantages.values_B[batch.batch_N],
                weight_N=batch.pick(work.weight_KBC),
            )
            output = policy_objective(tokens, config.objective)
            engine.backward(output.loss)
        for name, value in output.sums.items():
            total[name] += float(value)
    return total


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

    Current, old and reference policy see the same views. The reference may be the policy itself
    where it has a LoRA adapter, which is then switched off. Rows of zero-variance groups are left
    out; if nothing is left on any rank, nothing is updated.

    Returns:
        loss/*, kl/*, policy/entropy, optim/grad_norm, optim/lr, masking/scored_tokens, means over
        the updates, the same on all ranks.
    """
    work = prepare(engine, policy, reference, rollout, restrict(views, advantages.used_B), config)
    metrics = {"masking/scored_tokens": float(work.num_tokens), "optim/lr": engine.lr}
    num_updates = config.objective.num_updates
    if work.num_tokens == 0:
        for _ in range(num_updates):
            engine.skip_step()
        return StepReport(metrics=metrics)
    total: defaultdict[str, float] = defaultdict(float)
    for _ in range(num_updates):
        sums = engine.sum(accumulate(engine, work, rollout, advantages, config))
        for name, value in (sums | {"optim/grad_norm": engine.step()}).items():
            total[name] += value / num_updates
    return StepReport(metrics=metrics | total)
