"""One update of the policy from one rollout: views -> log-probs -> loss -> optimizer."""

from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import (
    Advantages,
    LossOutput,
    MaskedViews,
    Rollout,
    StepReport,
    TokenLogps,
    distinct,
)
from drift.config.commands import RunConfig
from drift.config.objective import (
    Importance,
    KLReduction,
    KLReference,
    Level,
    Normalization,
    ObjectiveConfig,
)
from drift.learner.gap import importance_weights
from drift.learner.layout import MicroBatch, MicroBatches, micro_batches, row_tokens
from drift.learner.likelihood import asks_old, score, token_logps
from drift.learner.objective import (
    Counts,
    ScoredTokens,
    Weights,
    kl_weights,
    local_counts,
    policy_objective,
    weigh,
)
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

SCORED = "masking/scored_tokens"


def likely(views: MaskedViews, logp_N: Tensor, token_N: Tensor | None = None) -> Tensor:
    """The tokens that the loss scores: those of the views, and candidates likely enough: [N] bool.

    A candidate counts if the policy gives it at least `candidate_min_prob` in its view.

    Args:
        views: with candidates or without.
        logp_N: [N] of the tokens.
        token_N: [N] int64, which of the views' tokens; None: all.
    """
    candidate_N = views.candidate_N if token_N is None else views.candidate_N[token_N]
    return ~candidate_N | (logp_N.exp() >= views.candidate_min_prob)


def restrict(views: MaskedViews, used_B: Tensor) -> MaskedViews:
    """Drop the scored tokens of rows with zero advantage."""
    kept = views.keep(used_B[views.row_N])
    return replace(kept, length_B=views.length_B * used_B)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one optimizer step needs: Work(batches=[...], old=None, ...)."""

    batches: MicroBatches
    old: TokenLogps | None  # of the policy before the update; None where it is not needed
    reference: TokenLogps | None
    weights: Weights
    token_N: Tensor  # the weights of the tokens, with the correction of a cached sampler
    kl_N: Tensor  # the weights of their KL
    num_tokens: int  # scored tokens over all views and ranks, candidates included
    candidates: bool  # are chosen in the forward that trains
    targets: ValueTargets | None = None  # of a value model

    @property
    def views(self) -> MaskedViews:
        return self.batches.views


def count(engine: Engine, views: MaskedViews) -> Counts:
    """The counts of all ranks."""
    local = local_counts(views, views.length_B)
    orders = int(engine.max(len(local.order_tokens)))
    padded = local.order_tokens + [0] * (orders - len(local.order_tokens))
    own = {
        "rows": local.rows,
        "size": local.size,
        "tokens": local.tokens,
        "states": local.states,
        **{f"order {k}": tokens for k, tokens in enumerate(padded)},
    }
    total = engine.sum({name: float(value) for name, value in own.items()})
    return Counts(
        rows=int(total["rows"]),
        size=int(total["size"]),
        tokens=int(total["tokens"]),
        states=int(total["states"]),
        order_tokens=[int(total[f"order {k}"]) for k in range(orders)],
    )


def prepare(
    engine: Engine,
    policy: Policy,
    reference: Policy | None,
    rollout: Rollout,
    views: MaskedViews,
    advantages: Advantages,
    config: RunConfig,
) -> tuple[list[Work], ValueTargets | None]:
    """Log-probs of the frozen policies, the scored tokens and their weights, before any update.

    Returns:
        One Work for each of `objective.num_minibatches`; and what the value model is trained
        towards over all of them, None without one.
    """
    objective, temperature = config.objective, rollout.temperature
    assert engine.model is not None

    tokens = config.optim.tokens_per_forward
    candidates = engine.max(float(views.candidate_N.any())) > 0
    rows_fit = candidates and engine.max(row_tokens(rollout, views)) <= tokens

    def cut(views: MaskedViews) -> MicroBatches:
        batches = micro_batches(rollout, views, policy.special, tokens, whole_rows=rows_fit)
        batches.pad(int(engine.max(len(batches))))
        return batches

    old, batches = None, cut(views)
    if asks_old(objective, candidates, rows_fit):
        old = token_logps(engine.model, batches, temperature)
        if candidates:
            kept_N = likely(views, old.logp_N)
            views, old, candidates = views.keep(kept_N), old.keep(kept_N), False
            batches = cut(views)
    frozen = old if objective.kl_reference == KLReference.before else None
    if reference is not None:
        own = reference is policy
        model = engine.model if own else reference
        with engine.autocast(), adapter_off(policy) if own else nullcontext():
            frozen = token_logps(model, batches, temperature)
    targets = settle_targets(engine, views, old, advantages, objective)
    works: list[Work] = []
    for part_N in parts(views, objective.num_minibatches):
        own_views = views.keep(part_N)
        counts = count(engine, own_views)
        weights = weigh(
            own_views,
            own_views.length_B,
            objective.normalization,
            counts,
            rollout.trace.gen_length,
        )
        own_old = None if old is None else old.keep(part_N)
        token_N = weights.token_N
        kl_N = kl_weights(own_views, token_N, objective.kl_reduction)
        if objective.importance == Importance.truncated and own_old is not None:
            cap = objective.importance_cap
            correction_N = importance_weights(own_views, own_old, rollout, cap)
            token_N, kl_N = token_N * correction_N, kl_N * correction_N
        works.append(
            Work(
                batches=batches if objective.num_minibatches == 1 else cut(own_views),
                old=own_old,
                reference=None if frozen is None else frozen.keep(part_N),
                weights=weights,
                token_N=token_N,
                kl_N=kl_N,
                num_tokens=counts.tokens,
                candidates=candidates,
                targets=None if targets is None else targets_of(targets, part_N, own_views, counts),
            )
        )
    return works, targets


def targets_of(
    targets: ValueTargets, part_N: Tensor, views: MaskedViews, counts: Counts
) -> ValueTargets:
    """The targets of a mini-batch: its rows are weighed like those of a batch."""
    weights = weigh(views, views.length_B, Normalization.sample, counts, 1)
    return replace(targets.keep(part_N), weight_N=weights.token_N)


def parts(views: MaskedViews, number: int) -> list[Tensor]:
    """The tokens [N] bool of each part of the views; a state's tokens are in one part.

    A state's part is drawn by its row's number and its order, so that it does not depend on ranks.
    """
    key = rng.stream(views.key, "parts")
    part_J = (rng.uniform(key, views.rows_B[views.row_J], views.order_J) * number).long()
    return [part_J[views.state_N] == i for i in range(number)]


def settle_targets(
    engine: Engine,
    views: MaskedViews,
    old: TokenLogps | None,
    advantages: Advantages,
    objective: ObjectiveConfig,
) -> ValueTargets | None:
    """What the value model is trained towards and makes of the rewards; None without one.

    Whatever the policy loss's normalization, a row counts by the mean over its tokens.
    """
    if not advantages.at_end:
        return None
    assert old is not None and old.value_N is not None
    weights = weigh(views, views.length_B, Normalization.sample, count(engine, views), 1)
    return step_targets(advantages.values_B, old.value_N, views, weights.token_N, objective.value)


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
        current = token_logps(engine.model, work.batches, rollout.temperature)
    rows = ScoredRows(
        logp_N=current.logp_N,
        old_logp_N=work.old.logp_N,
        reference_logp_N=None if work.reference is None else work.reference.logp_N,
        advantage_B=advantages.values_B,
        views=work.views,
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
    gradient_N: Tensor | None,
    advantages: Advantages,
    objective: ObjectiveConfig,
) -> LossOutput:
    """The loss of a micro-batch; with the derivatives of a loss of whole rows, its second pass."""
    place_N, targets = batch.token_N, work.targets
    weight_N, kl_weight_N = work.token_N[place_N], work.kl_N[place_N]
    if gradient_N is not None:
        coef = objective.entropy_coef
        return surrogate(logp_N, entropy_N, gradient_N[place_N], weight_N, work.num_tokens, coef)
    before_N = logp_N.detach() if work.old is None else work.old.logp_N[place_N]
    reference_N = None if work.reference is None else work.reference.logp_N[place_N]
    if objective.kl_reference == KLReference.before:
        reference_N = before_N
    tokens = ScoredTokens(
        logp_N=logp_N,
        entropy_N=entropy_N,
        old_logp_N=before_N,
        reference_logp_N=reference_N,
        advantage_N=advantages.values_B[work.weights.row_N[place_N]]
        if targets is None
        else targets.advantage_N[place_N],
        weight_N=weight_N,
        kl_weight_N=kl_weight_N,
        num_tokens=work.num_tokens,
    )
    if work.candidates:
        tokens = without_unlikely(tokens, batch, work, objective)
    output = policy_objective(tokens, objective)
    output.sums[SCORED] = torch.tensor(float(len(tokens.logp_N)))
    if targets is None or value_N is None:
        return output
    old_N, return_N = targets.old_N[place_N], targets.return_N[place_N]
    settings, weight_N = objective.value, targets.weight_N[place_N]
    loss = value_loss(value_N, old_N, return_N, weight_N, settings.clip)
    return with_value_loss(output, loss, settings.coef)


def without_unlikely(
    tokens: ScoredTokens, batch: MicroBatch, work: Work, objective: ObjectiveConfig
) -> ScoredTokens:
    """The tokens that the loss scores, by the log-probs of the forward that trains.

    What a view scores is counted here, or a row whose views are all in this forward. For
    normalization=token the whole gradient is scaled when all are counted (`take_step`).
    """
    kept_N = likely(work.views, tokens.logp_N.detach(), batch.token_N)
    weight_N, kl_weight_N = tokens.weight_N, tokens.kl_weight_N
    if objective.normalization != Normalization.token:
        by_view = objective.normalization == Normalization.view
        of_N = work.views.state_N if by_view else work.weights.row_N
        unit_N = distinct(of_N[batch.token_N])[1]
        asked_U = torch.bincount(unit_N)
        kept_U = torch.bincount(unit_N[kept_N], minlength=len(asked_U))
        weight_N = weight_N * (asked_U / kept_U.clamp(min=1))[unit_N]
        if objective.kl_reduction == KLReduction.mean:
            kl_weight_N = weight_N
    reference_N = tokens.reference_logp_N
    return ScoredTokens(
        logp_N=tokens.logp_N[kept_N],
        entropy_N=tokens.entropy_N[kept_N],
        old_logp_N=tokens.old_logp_N[kept_N],
        reference_logp_N=None if reference_N is None else reference_N[kept_N],
        advantage_N=tokens.advantage_N[kept_N],
        weight_N=weight_N[kept_N],
        kl_weight_N=kl_weight_N[kept_N],
        num_tokens=tokens.num_tokens,
    )


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
    gradient_N = None
    least_prob = work.views.candidate_min_prob if work.candidates else None
    if config.objective.level != Level.view:
        gradient_N, sums = derivatives(engine, work, rollout, advantages, config, first)
        total.update({name: float(value) for name, value in sums.items()})
    for i, batch in enumerate(work.batches):
        with engine.micro_batch(last=i == len(work.batches) - 1):
            scores = score(engine.model, batch, rollout.temperature, least_prob)
            output = micro_loss(batch, *scores, work, gradient_N, advantages, config.objective)
            engine.backward(output.loss)
        for name, value in output.sums.items():
            total[name] += float(value)
    return total


def take_step(
    engine: Engine, work: Work, sums: dict[str, float], objective: ObjectiveConfig
) -> dict[str, float]:
    """One optimizer step on the gradient that has been added up.

    Where candidates were chosen on the way, the number of scored tokens is known only now: what was
    divided by the number of all that were asked is scaled up.

    Args:
        engine: holds the gradient.
        work: whose gradient it is.
        sums: of `accumulate`, over all ranks.
        objective: says what was divided.

    Returns:
        What is logged.
    """
    tokens = sums.get(SCORED, float(work.num_tokens))
    factor = work.num_tokens / tokens
    by_token = objective.normalization == Normalization.token
    scaled = {
        name: value * factor if by_token or not name.startswith("loss/") else value
        for name, value in sums.items()
    }
    if not by_token and "loss/clip_frac" in sums:
        scaled["loss/clip_frac"] = sums["loss/clip_frac"] * factor
    norm = engine.step(factor if by_token else 1.0)
    return scaled | {SCORED: tokens, "optim/grad_norm": norm}


def padding(engine: Engine, batches: MicroBatches) -> float:
    """The share of the learner's tokens that only fill rows up to the longest of their forward."""
    sizes = {"real": float(batches.num_tokens), "all": float(batches.num_padded)}
    total = engine.sum(sizes)
    return 1 - total["real"] / total["all"]


def update(
    engine: Engine,
    policy: Policy,
    reference: Policy | None,
    rollout: Rollout,
    advantages: Advantages,
    draws: list[MaskedViews],
    config: RunConfig,
) -> StepReport:
    """Change the policy by optimizer steps on one rollout.

    `objective.num_updates` passes over the views, each in `objective.num_minibatches` steps.
    Current, old and reference policy see the same views. The reference may be the policy itself
    where it has a LoRA adapter, which is then switched off. Rows of zero-variance groups are left
    out; if nothing is left on any rank, nothing is updated. With a value model (advantage=gae) no
    row is, and the values before the update make advantages of the rewards.

    Args:
        engine: holds the policy and the optimizer.
        policy: that is trained.
        reference: of the KL, if it has a model of its own.
        rollout: B rows of this rank.
        advantages: of the rows.
        draws: the views of the rows; with `masking.redraw` those of each pass.
        config: of the run.

    Returns:
        loss/*, kl/*, policy/entropy, optim/*, value/*: means over the optimizer steps;
        masking/scored_tokens: the sum over mini-batches, the mean over passes. The same on all
        ranks.
    """
    metrics = {"optim/lr": engine.lr}
    passes: list[list[Work]] = []
    targets: ValueTargets | None = None
    for views in draws:
        views = restrict(views, advantages.used_B)
        works, found = prepare(engine, policy, reference, rollout, views, advantages, config)
        passes.append(works)
        targets = targets or found
    if targets is not None:
        metrics |= summary(engine.sum(moments(targets)))
    num_updates = config.objective.num_updates
    steps = [work for i in range(num_updates) for work in passes[i % len(passes)]]
    num_taken = sum(work.num_tokens > 0 for work in steps)
    total: defaultdict[str, float] = defaultdict(float)
    total[SCORED] = 0.0
    for i, work in enumerate(steps):
        if not work.num_tokens:
            engine.skip_step()
            continue
        if "optim/padding_frac" not in metrics:
            metrics["optim/padding_frac"] = padding(engine, work.batches)
        sums = accumulate(engine, work, rollout, advantages, config, first=i == 0)
        done = take_step(engine, work, engine.sum(sums), config.objective)
        for name, value in done.items():
            total[name] += value / (num_updates if name == SCORED else num_taken)
    return StepReport(metrics=metrics | total)
