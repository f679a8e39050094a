"""Bias and variance of likelihood estimates and gradients, on a toy whose truth can be counted.

Every estimate of this package is a sum of log-probs of a table (model.py) with coefficients, so its
gradient is the same sum of the table's gradients. Averages over trajectories are exact; those
over masks are over a number of draws, and come with their standard error.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from drift.common import rng
from drift.common.types import Advantages, MaskedViews, Rollout, TokenLogps
from drift.config.masking import MaskingConfig
from drift.config.objective import Level, Normalization, ObjectiveConfig
from drift.learner.advantage import estimate
from drift.learner.masking import build_views
from drift.learner.objective import (
    ScoredTokens,
    Weights,
    local_counts,
    policy_objective,
    weigh,
)
from drift.learner.sequence_objective import ScoredRows, row_gradient
from drift.learner.update import likely, restrict
from drift.toy.model import sampled
from drift.toy.truth import Lookup, Truth, as_rollout, look_up

PAIR = 2  # draws that give one estimate of the variance over masks
CHUNK = 4096  # rows whose products are computed together


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One draw of masks for every row: its estimate and its gradient, by coefficients.

    Draw(entry_BN=[[3, 8]], value_BN=[[1.0, 0.5]], loglik_B=[-2.1], forwards_B=[2])
    """

    entry_BN: Tensor  # int64, N the most tokens that a row has in all its views
    value_BN: Tensor  # float64, 0 where a row has fewer
    loglik_B: Tensor  # float64, estimate of the row's log-likelihood
    forwards_B: Tensor  # int64, views that have something to score

    def dot(self, other: "Draw", gram_EE: Tensor) -> Tensor:
        """Row by row, the inner product of two draws' gradients: [B]."""
        parts: list[Tensor] = []
        for rows in torch.arange(len(self.entry_BN)).split(CHUNK):
            gram = gram_EE[self.entry_BN[rows][:, :, None], other.entry_BN[rows][:, None, :]]
            left, right = self.value_BN[rows], other.value_BN[rows]
            parts.append(torch.einsum("bn,bnm,bm->b", left, gram, right))
        return torch.cat(parts)

    def total(self, weight_B: Tensor, size: int) -> Tensor:
        """The weighted sum of the rows' gradients: coefficients [E]."""
        total_E = torch.zeros(size, dtype=torch.float64)
        values = (self.value_BN * weight_B[:, None]).flatten()
        return total_E.index_add(0, self.entry_BN.flatten(), values)


def draw_masks(truth: Truth, rollout: Rollout, config: MaskingConfig, key: int) -> Draw:
    """Views of the masking, scored as the trainer would, and what they say of the likelihood."""
    views = build_views(rollout.trace, rollout.rows_B, config, key)
    where = look_up(truth, rollout, views)
    used_B = torch.ones(len(rollout.rows_B), dtype=torch.bool)
    before = where.logps(truth.table_TCW)
    kept_N, weights = settled(views, before, rollout, Normalization.sequence, used_B)
    state_N, column_N, word_N = (x[kept_N] for x in where.place())
    value_N = weights.share_N.double() * weights.length_B[weights.row_N]
    loglik_N = value_N * truth.table_TCW[state_N, column_N, word_N]
    size = len(rollout.rows_B)
    return Draw(
        entry_BN=by_row(truth.entry_TCW[state_N, column_N, word_N], weights.row_N, size),
        value_BN=by_row(value_N, weights.row_N, size),
        loglik_B=value_N.new_zeros(size).index_add(0, weights.row_N, loglik_N),
        forwards_B=torch.bincount(views.row_J[views.state_N[kept_N].unique()], minlength=size),
    )


def by_row(value_N: Tensor, row_N: Tensor, num_rows: int) -> Tensor:
    """The values of each row beside one another, 0 where a row has fewer: row_N ascends."""
    count_B = torch.bincount(row_N, minlength=num_rows)
    slot_N = torch.arange(len(row_N)) - (count_B.cumsum(0) - count_B)[row_N]
    found = value_N.new_zeros(num_rows, int(count_B.max()))
    found[row_N, slot_N] = value_N
    return found


def settled(
    views: MaskedViews,
    old: TokenLogps,
    rollout: Rollout,
    normalization: Normalization,
    used_B: Tensor,
) -> tuple[Tensor, Weights]:
    """Which tokens are scored, and their weights, as `update.prepare` has them on one rank."""
    kept_N = likely(views, old.logp_N)
    scored = restrict(views.keep(kept_N), used_B)
    canvas_length = rollout.trace.canvas_BC.shape[1]
    counts = local_counts(scored, scored.length_B)
    return kept_N, weigh(scored, scored.length_B, normalization, counts, canvas_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskingReport:
    """What a masking makes of the likelihood and of the gradient of REINFORCE.

    Gradients are compared for one completion with A = R - E[R]; biases and deviations are shares of
    the length of the exact gradient.
    """

    forwards: float  # of the learner, for one completion
    loglik_bias: float  # nats, mean over answers of E[estimate] - log p(answer)
    loglik_rms: float  # nats, root mean square of that over answers
    loglik_std: float  # nats, of the estimate about its mean for the answer
    bias: float  # |E[g] - exact| / |exact|
    bias_se: float  # standard error of the masks drawn
    trace_bias: float  # |E[g] - sampler's| / |sampler's|
    cosine: float  # of E[g] and the exact gradient
    norm: float  # |E[g]| / |exact|
    std: float  # of g about its mean, all causes
    masking_std: float  # of g about its mean for the trajectory: what the masks add


def measure_masking(truth: Truth, config: MaskingConfig, draws: int, key: int) -> MaskingReport:
    """Bias and variance of a masking, every trajectory weighed by its probability.

    Args:
        truth: of the toy.
        config: of the masking.
        draws: of masks for each trajectory; even.
        key: of their random numbers.
    """
    rollout = as_rollout(truth, torch.arange(len(truth.prob_B)), 1)
    prob_B, size = truth.prob_B, len(truth.gram_EE)
    value_B = truth.reward_B - truth.mean_reward
    mean_E = torch.zeros(size, dtype=torch.float64)
    square_B, cross_B, forwards_B = (torch.zeros_like(prob_B) for _ in range(3))
    logliks: list[Tensor] = []
    for pair in range(draws // PAIR):
        keys = [rng.stream(key, "lab", PAIR * pair + i) for i in range(PAIR)]
        one, two = (draw_masks(truth, rollout, config, k) for k in keys)
        for found in (one, two):
            mean_E += found.total(prob_B * value_B, size) / draws
            square_B += found.dot(found, truth.gram_EE) / draws
            forwards_B += found.forwards_B / draws
            logliks.append(found.loglik_B)
        cross_B += one.dot(two, truth.gram_EE) / (draws // PAIR)
    answer_B = truth.space.number(truth.trajectories.digits_BC)
    loglik = loglik_report(truth, torch.stack(logliks), answer_B)
    within_B = square_B - cross_B
    exact, trace = (math.sqrt(truth.product(t, t)) for t in (truth.exact_E, truth.trace_E))
    mean = math.sqrt(truth.product(mean_E, mean_E))
    variance = float((prob_B * value_B**2 * square_B).sum()) - mean**2
    masking_variance = float((prob_B * value_B**2 * within_B).sum())
    noise = float((prob_B**2 * value_B**2 * within_B).sum()) / draws
    return MaskingReport(
        forwards=float((prob_B * forwards_B).sum()),
        **loglik,
        bias=distance(truth, mean_E, truth.exact_E, noise) / exact,
        bias_se=math.sqrt(max(noise, 0.0)) / exact,
        trace_bias=distance(truth, mean_E, truth.trace_E, noise) / trace,
        cosine=truth.product(mean_E, truth.exact_E) / (mean * exact),
        norm=mean / exact,
        std=math.sqrt(max(variance, 0.0)) / exact,
        masking_std=math.sqrt(max(masking_variance, 0.0)) / exact,
    )


def distance(truth: Truth, mean_E: Tensor, target_E: Tensor, noise: float) -> float:
    """|mean - target| without what the noise of the mean adds to its square."""
    difference_E = mean_E - target_E
    return math.sqrt(max(truth.product(difference_E, difference_E) - noise, 0.0))


def loglik_report(truth: Truth, estimate_DB: Tensor, answer_B: Tensor) -> dict[str, float]:
    """Bias, root mean square of the bias over answers, and deviation within an answer."""
    prob_B, size = truth.prob_B, truth.space.num_canvases

    def by_answer(value_B: Tensor) -> Tensor:
        """The mean over an answer's trajectories, for each trajectory."""
        zeros = torch.zeros(size, dtype=torch.float64)
        total = zeros.index_add(0, answer_B, prob_B * value_B)
        return (total / zeros.index_add(0, answer_B, prob_B).clamp(min=1e-300))[answer_B]

    mean_B = by_answer(estimate_DB.mean(0))
    bias_B = mean_B - truth.loglik_B
    variance = float((prob_B * (estimate_DB - mean_B).square().mean(0)).sum())
    return {
        "loglik_bias": float((prob_B * bias_B).sum()),
        "loglik_rms": math.sqrt(float((prob_B * bias_B.square()).sum())),
        "loglik_std": math.sqrt(variance),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveReport:
    """The gradient that an objective gives to one group of completions, against the exact one."""

    cosine: float  # of the mean over groups and the exact gradient, corrected for its noise
    norm: float  # |mean| / |exact|
    std: float  # of a group's gradient about the mean, as a share of |mean|


def measure_objective(
    truth: Truth,
    old: Tensor,
    masking: MaskingConfig,
    objective: ObjectiveConfig,
    group_size: int,
    groups: int,
    key: int,
) -> ObjectiveReport:
    """Draw groups of completions and masks, and take the objective's own gradient of each group.

    Args:
        truth: of the policy that is trained; its trajectories are the sampler's.
        old: the sampler's table, [states, C, W].
        masking: which views.
        objective: which loss and advantage.
        group_size: completions of a group.
        groups: drawn.
        key: of the random numbers.
    """
    chosen_B = sampled(truth.trajectories, groups * group_size, rng.stream(key, "groups"))
    rollout = as_rollout(truth, chosen_B, group_size)
    rewards_B = truth.reward_B[chosen_B].float()
    advantages = estimate(rewards_B, group_size, objective.advantage)
    views = build_views(rollout.trace, rollout.rows_B, masking, rng.stream(key, "masks"))
    views = restrict(views, advantages.used_B)
    where = look_up(truth, rollout, views)
    gradient_N = objective_gradient(truth, old, rollout, views, where, advantages, objective)
    size, group_N = len(truth.gram_EE), views.row_N // group_size
    group_GE = torch.zeros(groups, size, dtype=torch.float64)
    place = (group_N, truth.entry_TCW[where.place()])
    group_GE.index_put_(place, -gradient_N.double(), accumulate=True)
    mean_E = group_GE.sum(0)  # the loss is a mean over groups already
    square = float(((group_GE @ truth.gram_EE) * group_GE).sum()) * groups
    mean_square = truth.product(mean_E, mean_E)
    variance = (square - mean_square) * groups / (groups - 1)
    signal = math.sqrt(max(mean_square - variance / groups, 1e-300))
    exact = math.sqrt(truth.product(truth.exact_E, truth.exact_E))
    return ObjectiveReport(
        cosine=truth.product(mean_E, truth.exact_E) / (signal * exact),
        norm=signal / exact,
        std=math.sqrt(max(variance, 0.0)) / signal,
    )


def objective_gradient(
    truth: Truth,
    old: Tensor,
    rollout: Rollout,
    views: MaskedViews,
    where: Lookup,
    advantages: Advantages,
    objective: ObjectiveConfig,
) -> Tensor:
    """The derivative of the loss by each log-prob of the views: [N], 0 where not scored."""
    current, before = where.logps(truth.table_TCW), where.logps(old)
    kept_N, weights = settled(views, before, rollout, objective.normalization, advantages.used_B)
    gradient_N = torch.zeros_like(current.logp_N)
    current, before = current.keep(kept_N), before.keep(kept_N)
    if objective.level != Level.view:
        rows = ScoredRows(
            logp_N=current.logp_N,
            old_logp_N=before.logp_N,
            reference_logp_N=None,
            advantage_B=advantages.values_B,
            views=views.keep(kept_N),
            weights=weights,
            group_size=rollout.group_size,
        )
        gradient_N[kept_N] = row_gradient(rows, objective)[0]
        return gradient_N
    leaf_N = current.logp_N.requires_grad_()
    tokens = ScoredTokens(
        logp_N=leaf_N,
        entropy_N=torch.zeros_like(leaf_N),
        old_logp_N=before.logp_N,
        reference_logp_N=None,
        advantage_N=advantages.values_B[weights.row_N],
        weight_N=weights.token_N,
        kl_weight_N=weights.token_N,
        num_tokens=len(leaf_N),
    )
    (gradient_N[kept_N],) = torch.autograd.grad(policy_objective(tokens, objective).loss, leaf_N)
    return gradient_N
