"""One update of the policy from one rollout: views -> log-probs -> loss -> optimizer."""

from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, replace

from torch import Tensor

from drift.cluster.engine import Engine
from drift.common.types import Advantages, LossOutput, MaskedViews, Rollout, StepReport, TokenLogps
from drift.config.commands import RunConfig
from drift.config.objective import Importance, Level, Normalization, ObjectiveConfig
from drift.learner.gap import importance_weights
from drift.learner.likelihood import (
    MicroBatch,
    asks_old,
    longest_row,
    micro_batches,
    pad_batches,
    score,
    token_logps,
)
from drift.learner.masking import prompt_masks
from drift.learner.objective import ScoredTokens, Weights, policy_objective, row_sizes, weigh
from drift.learner.sequence_objective import ScoredRows, row_gradient, surrogate
from drift.learner.value import (
    ValueTargets,
    moments,
    step_targets,
    summary,
    value_loss,
    with_value_loss,
)
from drift.policy.base import Policy
from drift.policy.lora import adapter_off


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
    return replace(
        views,
        scored_KBC=views.scored_KBC & used_B[:, None],
        candidate_KBC=views.candidate_KBC & used_B[:, None],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the optimizer steps of one update share: Work(batches=[...], old=None, ...)."""

    batches: list[MicroBatch]
    old: TokenLogps | None  # of the policy before this update; None where it is not needed
    reference: TokenLogps | None
    weights: Weights
    token_KBC: Tensor  # the weights of the tokens, with the correction of a cached sampler
    num_tokens: int  # scored tokens over all views and ranks
    targets: ValueTargets | None = None  # of a value model


def settle_weights(
    engine: Engine,
    scored_KBC: Tensor,
    views: MaskedViews,
    length_B: Tensor,
    normalization: Normalization,
) -> tuple[Weights, int]:
    """The weights of the loss and the number of scored tokens, counted over all ranks."""
    size_B = row_sizes(scored_KBC, views.weight_KB, length_B)
    counts = engine.sum(
        {
            "rows": float((size_B > 0).sum()),
            "size": float(size_B.sum()),
            "tokens": float(scored_KBC.sum()),
        }
    )
    weights = weigh(
        scored_KBC,
        views.weight_KB,
        length_B,
        normalization,
        num_rows=int(counts["rows"]),
        num_tokens=int(counts["size"]),
    )
    return weights, int(counts["tokens"])


def prepare(
    engine: Engine,
    policy: Policy,
    reference: Policy | None,
    rollout: Rollout,
    views: MaskedViews,
    advantages: Advantages,
    config: RunConfig,
) -> Work:
    """Log-probs of the frozen policies, the scored tokens and their weights, before any update."""
    shape, temperature = views.hidden_KBC.shape, rollout.temperature
    assert engine.model is not None

    prompt_hidden_KBL = prompt_masks(views, rollout)
    rows = max(1, config.optim.tokens_per_forward // longest_row(rollout))

    def cut(wanted_KBC: Tensor) -> list[MicroBatch]:
        batches = micro_batches(
            rollout,
            views.hidden_KBC,
            wanted_KBC,
            policy.special,
            rows,
            prompt_hidden_KBL,
        )
        pad_batches(batches, int(engine.max(len(batches))), policy.special.pad, policy.device)
        return batches

    old, objective = None, config.objective
    corrected = objective.importance == Importance.truncated
    candidates = engine.max(float(views.candidate_KBC.any())) > 0
    if asks_old(objective, candidates):
        wanted_KBC = views.scored_KBC | views.candidate_KBC
        old = token_logps(engine.model, cut(wanted_KBC), shape, temperature)
    scored_KBC = settle_scored(views, old)
    batches = cut(scored_KBC)
    frozen = None
    if reference is not None:
        own = reference is policy
        model = engine.model if own else reference
        with engine.autocast(), adapter_off(policy) if own else nullcontext():
            frozen = token_logps(model, batches, shape, temperature)
    length_B = rollout.trace.committed_BC.sum(1) * advantages.used_B
    weights, num_tokens = settle_weights(
        engine, scored_KBC, views, length_B, objective.normalization
    )
    token_KBC = weights.token_KBC
    if corrected and old is not None:
        token_KBC = token_KBC * importance_weights(views, old, rollout, objective.importance_cap)
    return Work(
        batches=batches,
        old=old,
        reference=frozen,
        weights=weights,
        token_KBC=token_KBC,
        num_tokens=num_tokens,
        targets=settle_targets(engine, scored_KBC, views, length_B, old, advantages, objective),
    )


def settle_targets(
    engine: Engine,
    scored_KBC: Tensor,
    views: MaskedViews,
    length_B: Tensor,
    old: TokenLogps | None,
    advantages: Advantages,
    objective: ObjectiveConfig,
) -> ValueTargets | None:
    """What the value model is trained towards and makes of the rewards; None without one.

    Whatever the policy loss's normalization, a row counts by the mean over its tokens.
    """
    if not advantages.at_end:
        return None
    assert old is not None and old.value_KBC is not None
    weights, _ = settle_weights(engine, scored_KBC, views, length_B, Normalization.sample)
    reward_B, weight_KBC = advantages.values_B, weights.token_KBC
    return step_targets(reward_B, old.value_KBC, scored_KBC, weight_KBC, objective.value)


def derivatives(
    engine: Engine,
    work: Work,
    rollout: Rollout,
    advantages: Advantages,
    config: RunConfig,
    first: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The first pass of a loss of whole rows: its derivative by each log-prob, and its sums."""
    assert engine.model is not None and work.old is not None
    current = work.old
    if not first:
        shape = work.token_KBC.shape
        current = token_logps(engine.model, work.batches, shape, rollout.temperature)
    rows = ScoredRows(
        logp_KBC=current.logp_KBC,
        old_logp_KBC=work.old.logp_KBC,
        reference_logp_KBC=None if work.reference is None else work.reference.logp_KBC,
        advantage_B=advantages.values_B,
        weights=work.weights,
        group_size=rollout.group_size,
    )
    return row_gradient(rows, config.objective)


def micro_loss(
    batch: MicroBatch,
    logp_N: Tensor,
    entropy_N: Tensor,
    value_N: Tensor | None,
    work: Work,
    gradient_KBC: Tensor | None,
    advantages: Advantages,
    objective: ObjectiveConfig,
) -> LossOutput:
    """The loss of a micro-batch; with the derivatives of a loss of whole rows, its second pass."""
    weight_N, targets = batch.pick(work.token_KBC), work.targets
    if gradient_KBC is not None:
        gradient_N = batch.pick(gradient_KBC)
        coef = objective.entropy_coef
        return surrogate(logp_N, entropy_N, gradient_N, weight_N, work.num_tokens, coef)
    tokens = ScoredTokens(
        logp_N=logp_N,
        entropy_N=entropy_N,
        old_logp_N=logp_N.detach() if work.old is None else batch.pick(work.old.logp_KBC),
        reference_logp_N=None if work.reference is None else batch.pick(work.reference.logp_KBC),
        advantage_N=advantages.values_B[batch.batch_N]
        if targets is None
        else batch.pick(targets.advantage_KBC),
        weight_N=weight_N,
        num_tokens=work.num_tokens,
    )
    output = policy_objective(tokens, objective)
    if targets is None or value_N is None:
        return output
    old_N, return_N = batch.pick(targets.old_KBC), batch.pick(targets.return_KBC)
    settings, weight_N = objective.value, batch.pick(targets.weight_KBC)
    loss = value_loss(value_N, old_N, return_N, weight_N, settings.clip)
    return with_value_loss(output, loss, settings.coef)


def accumulate(
    engine: Engine,
    work: Work,
    rollout: Rollout,
    advantages: Advantages,
    config: RunConfig,
    first: bool,
) -> dict[str, float]:
    """Add up the gradient of every micro-batch; returns this rank's sums of what is logged.

    first: the policy is still the one that `work.old` is of.
    """
    total: defaultdict[str, float] = defaultdict(float)
    assert engine.model is not None
    gradient_KBC = None
    if config.objective.level != Level.view:
        gradient_KBC, sums = derivatives(engine, work, rollout, advantages, config, first)
        total.update({name: float(value) for name, value in sums.items()})
    for i, batch in enumerate(work.batches):
        with engine.micro_batch(last=i == len(work.batches) - 1):
            scores = score(engine.model, batch, rollout.temperature)
            output = micro_loss(batch, *scores, work, gradient_KBC, advantages, config.objective)
            engine.backward(output.loss)
        for name, value in output.sums.items():
            total[name] += float(value)
    return total


def padding(engine: Engine, batches: list[MicroBatch]) -> float:
    """The share of the learner's tokens that only fill rows up to the longest of their forward."""
    sizes = {
        "real": float(sum(batch.length_M.sum() for batch in batches)),
        "all": float(sum(batch.ids_MS.numel() for batch in batches)),
    }
    total = engine.sum(sizes)
    return 1 - total["real"] / total["all"]


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
    out; if nothing is left on any rank, nothing is updated. With a value model (advantage=gae) no
    row is, and the values before the update make advantages of the rewards.

    Returns:
        loss/*, kl/*, policy/entropy, optim/*, masking/scored_tokens, value/*,
        means over the updates, the same on all ranks.
    """
    views = restrict(views, advantages.used_B)
    work = prepare(engine, policy, reference, rollout, views, advantages, config)
    metrics = {"masking/scored_tokens": float(work.num_tokens), "optim/lr": engine.lr}
    num_updates = config.objective.num_updates
    if work.num_tokens == 0:
        for _ in range(num_updates):
            engine.skip_step()
        return StepReport(metrics=metrics)
    metrics["optim/padding_frac"] = padding(engine, work.batches)
    if work.targets is not None:
        metrics |= summary(engine.sum(moments(work.targets)))
    total: defaultdict[str, float] = defaultdict(float)
    for i in range(num_updates):
        sums = engine.sum(accumulate(engine, work, rollout, advantages, config, first=i == 0))
        for name, value in (sums | {"optim/grad_norm": engine.step()}).items():
            total[name] += value / num_updates
    return StepReport(metrics=metrics | total)
