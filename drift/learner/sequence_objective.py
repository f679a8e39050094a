"""Losses that are functions of a whole completion's log-prob, or of a token's over several views.

A ratio of sequence likelihoods, or a bound that is the logarithm of a sum over views, needs all
views of a row at once, and micro-batches cut rows apart. So the gradient is taken in two passes,
which is the chain rule and exact: without graph, every log-prob of the views is computed, and
`row_gradient` gives the loss and its derivative by each of them; then the micro-batches
back-propagate sum(derivative * log p), in constant memory for any number of views. The first update
on a rollout needs no pass of its own: the old policy's log-probs are the current ones. Rows of a
group are on one rank, so nothing has to be communicated.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drift.common.types import LossOutput, MaskedViews, distinct
from drift.config.objective import (
    OBJECTIVES,
    BoundaryConfig,
    Level,
    ObjectiveConfig,
    PpoClipConfig,
    SandwichConfig,
    SelfNormalizedConfig,
)
from drift.learner.objective import KL_ESTIMATORS, Weights, clip, ppo_clip


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRows:
    """The log-probs of the N scored tokens of all views of B rows.

    ScoredRows(logp_N=[-0.7], old_logp_N=[-0.7], reference_logp_N=None, advantage_B=[1.2],
               views=MaskedViews(...), weights=Weights(...), group_size=1)
    """

    logp_N: Tensor  # with graph
    old_logp_N: Tensor
    reference_logp_N: Tensor | None
    advantage_B: Tensor
    views: MaskedViews
    weights: Weights
    group_size: int  # rows of a group are adjacent

    def sums(self, value_N: Tensor) -> Tensor:
        """The sum over each row's scored tokens: [B]."""
        return added(value_N, self.weights.row_N, len(self.advantage_B))

    def means(self, logp_N: Tensor) -> Tensor:
        """A row's log-likelihood over its length: [B]."""
        return self.sums(self.weights.share_N * logp_N)

    def tokens(self) -> tuple[Tensor, Tensor]:
        """The distinct tokens of the views: the row of each [T], and which one each is [N]."""
        size = int(self.views.column_N.max()) + 1 if len(self.views.column_N) else 1
        number_N = self.weights.row_N * size + self.views.column_N
        number_T, token_N = distinct(number_N)
        return number_T // size, token_N


def added(value_N: Tensor, place_N: Tensor, size: int) -> Tensor:
    """The sum of the values of each place: [size]."""
    return value_N.new_zeros(size).index_add(0, place_N, value_N)


@OBJECTIVES.implements(PpoClipConfig, Level.sequence)
def ratio_of_rows(rows: ScoredRows, config: PpoClipConfig) -> tuple[Tensor, Tensor]:
    """PPO's clip of r = exp((L - L_old) / n), L the row's log-likelihood and n its length.

    GSPO (arXiv 2507.18071); with the ELBO for L it is ESPO (arXiv 2512.03759).

    Args:
        rows: of the batch.
        config: the clip.

    Returns:
        loss [B]; [B] bool: rows whose gradient the clip stops.
    """
    current_B, old_B = rows.means(rows.logp_N), rows.means(rows.old_logp_N)
    return ppo_clip(current_B, old_B, rows.advantage_B, config)


@OBJECTIVES.implements(PpoClipConfig, Level.token)
def ratio_of_tokens(rows: ScoredRows, config: PpoClipConfig) -> tuple[Tensor, Tensor]:
    """PPO's clip for each token, whose log-prob is the weighted sum over its views.

    coupled-GRPO (arXiv 2506.20639). Arguments and return as `ratio_of_rows`, a row's loss being the
    mean over its tokens and its clipped share a float.
    """
    row_T, token_N = rows.tokens()
    current_T, old_T = (
        token_sums(rows, x, token_N, len(row_T)) for x in (rows.logp_N, rows.old_logp_N)
    )
    loss_T, clipped_T = ppo_clip(current_T, old_T, rows.advantage_B[row_T], config)
    return mean_of_tokens(rows, loss_T, row_T), mean_of_tokens(rows, clipped_T.float(), row_T)


def token_sums(rows: ScoredRows, logp_N: Tensor, token_N: Tensor, num_tokens: int) -> Tensor:
    """A token's log-prob, its views added up by their weights: [T].

    The sum over a row's tokens is the estimate of its log-likelihood.
    """
    length_N = rows.weights.length_B[rows.weights.row_N]
    return added(rows.weights.share_N * logp_N * length_N, token_N, num_tokens)


def mean_of_tokens(rows: ScoredRows, value_T: Tensor, row_T: Tensor) -> Tensor:
    """The mean over a row's tokens, those that no view scores counting 0: [B]."""
    total_B = added(value_T, row_T, len(rows.advantage_B))
    return total_B / rows.weights.length_B.clamp(min=1)


def upper_bound(rows: ScoredRows, exponent: float) -> Tensor:
    """The mean over tokens of (1 / b) log sum_k w_k p_k^b, b > 1: [B] (SPG, arXiv 2510.09541).

    w_k are the views' 1/t weights; the mean is over the tokens that a view hides. Up to a
    constant it bounds the log-likelihood from above, as the ELBO does from below.
    """
    row_T, token_N = rows.tokens()
    weight_N = rows.weights.share_N * rows.weights.length_B[rows.weights.row_N]
    term_N = exponent * rows.logp_N + weight_N.log()
    most_T = term_N.detach().new_full((len(row_T),), -torch.inf)
    most_T = most_T.scatter_reduce(0, token_N, term_N.detach(), "amax")
    total_T = added((term_N - most_T[token_N]).exp(), token_N, len(row_T))
    bound_T = (total_T.log() + most_T) / exponent
    total_B = added(bound_T, row_T, len(rows.advantage_B))
    return total_B / torch.bincount(row_T, minlength=len(total_B)).clamp(min=1)


@OBJECTIVES.implements(SandwichConfig, Level.sequence)
def sandwich(rows: ScoredRows, config: SandwichConfig) -> tuple[Tensor, Tensor]:
    """-A times the lower bound of the log-likelihood where A >= 0, else a mixture with the upper.

    Raising a lower bound raises the likelihood; lowering it need not lower the likelihood, lowering
    an upper bound does. The mixture is share * upper + (1 - share) * lower (SPG, arXiv 2510.09541).
    No ratio, no clip. Arguments and return as `ratio_of_rows`.
    """
    lower_B = rows.means(rows.logp_N)
    upper_B = upper_bound(rows, config.bound_exponent)
    mixed_B = config.bound_share * upper_B + (1 - config.bound_share) * lower_B
    value_B = torch.where(rows.advantage_B >= 0, lower_B, mixed_B)
    return -rows.advantage_B * value_B, torch.zeros_like(value_B)


@OBJECTIVES.implements(BoundaryConfig, Level.sequence)
def boundary(rows: ScoredRows, config: BoundaryConfig) -> tuple[Tensor, Tensor]:
    """A bound of -A exp(l - l_old) from above that is a sum over views (BGPO, arXiv 2510.11683).

    l is the mean over views of l_k, each view's own estimate of the row's log-likelihood over its
    length. A >= 0: exp(x) >= 1 + x gives the mean of 1 + l_k - l_old,k. A < 0: by Jensen the mean
    of exp(l_k - l_old,k). Each view's own term is clipped as a ratio is. Value and gradient are
    those of the ratio where l = l_old. Arguments and return as `ratio_of_tokens`.
    """
    views, share_N = rows.views, rows.weights.share_N
    num_views_B = torch.bincount(views.row_J, minlength=len(rows.advantage_B))
    part_J = added(share_N * (rows.logp_N - rows.old_logp_N), views.state_N, len(views.row_J))
    difference_J = num_views_B[views.row_J] * part_J
    advantage_J = rows.advantage_B[views.row_J]
    ratio_J = torch.where(advantage_J >= 0, 1 + difference_J, difference_J.exp())
    loss_J, clipped_J = clip(ratio_J, advantage_J, config)
    loss_B, clipped_B = (
        added(x, views.row_J, len(num_views_B)) / num_views_B for x in (loss_J, clipped_J.float())
    )
    return loss_B, clipped_B


@OBJECTIVES.implements(SelfNormalizedConfig, Level.sequence)
def self_normalized(rows: ScoredRows, config: SelfNormalizedConfig) -> tuple[Tensor, Tensor]:
    """-sum_i c_i A_i l_i / sum_j c_j over each group (StableDRL, arXiv 2603.06743).

    c is the sequence ratio clipped on both sides whatever A's sign, without gradient; l the row's
    log-likelihood over its length. So an update stays among the rows' own gradients: noise in a
    ratio can neither pass the clip nor scale the batch. Arguments and return as `ratio_of_rows`.
    """
    current_B, old_B = rows.means(rows.logp_N), rows.means(rows.old_logp_N)
    ratio_B = (current_B - old_B).detach().exp()
    clipped_B = ratio_B.clamp(1 - config.clip_low, 1 + config.clip_high)
    groups_PG = clipped_B.view(-1, rows.group_size)
    share_B = (groups_PG / groups_PG.mean(1, keepdim=True)).flatten()
    return -share_B * rows.advantage_B * current_B, clipped_B != ratio_B


def divergence(rows: ScoredRows, reference_N: Tensor, config: ObjectiveConfig) -> Tensor:
    """The KL estimate per token, [B]: of the tokens' log-probs, or of the row's over its length.

    level=token: the mean over tokens. level=sequence: the estimator of the whole log-likelihoods,
    divided by n (ESPO, arXiv 2512.03759).
    """
    estimator = KL_ESTIMATORS[config.kl_estimator]
    if config.level == Level.token:
        row_T, token_N = rows.tokens()
        tokens_T, reference_T = (
            token_sums(rows, x, token_N, len(row_T)) for x in (rows.logp_N, reference_N)
        )
        return mean_of_tokens(rows, estimator(tokens_T, reference_T), row_T)
    length_B = rows.weights.length_B
    total_B, reference_B = (length_B * rows.means(x) for x in (rows.logp_N, reference_N))
    return estimator(total_B, reference_B) / length_B.clamp(min=1)


def sequence_objective(rows: ScoredRows, config: ObjectiveConfig) -> LossOutput:
    """sum_b w_b (policy loss_b + kl_coef KL_b); the entropy is a sum over tokens, added there.

    What is logged of the clip and the KL is a plain mean over the rows.

    Raises:
        ValueError: kl_coef is not 0 and there are no reference log-probs.
    """
    weight_B, mean_B = rows.weights.row_B, rows.weights.mean_B
    policy_B, clipped_B = OBJECTIVES.function(config, config.level)(rows, config)
    loss_B = policy_B
    sums = {
        "loss/policy": (weight_B * policy_B).sum(),
        "loss/clip_frac": (mean_B * clipped_B).sum(),
    }
    if config.kl_coef != 0:
        if rows.reference_logp_N is None:
            raise ValueError("objective.kl_coef is not 0, but there are no reference log-probs")
        kl_B = divergence(rows, rows.reference_logp_N, config)
        loss_B = loss_B + config.kl_coef * kl_B
        sums[f"kl/{config.kl_estimator}"] = (mean_B * kl_B).sum()
    loss = (weight_B * loss_B).sum()
    sums["loss/total"] = loss
    return LossOutput(loss=loss, sums={name: value.detach() for name, value in sums.items()})


def row_gradient(rows: ScoredRows, config: ObjectiveConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The derivative of `sequence_objective` by each log-prob, [N], and its sums.

    Args:
        rows: log-probs without graph.
        config: which policy loss, level, KL estimator and coefficients.
    """
    with torch.enable_grad():
        leaf = rows.logp_N.detach().requires_grad_()
        output = sequence_objective(replace(rows, logp_N=leaf), config)
        (gradient_N,) = torch.autograd.grad(output.loss, leaf)
    return gradient_N, output.sums


def surrogate(
    logp_N: Tensor,
    entropy_N: Tensor,
    gradient_N: Tensor,
    weight_N: Tensor,
    num_tokens: int,
    entropy_coef: float,
) -> LossOutput:
    """The micro-batch's part of the second pass: its gradient is that of the whole loss.

    Args:
        logp_N, entropy_N: [N] float32, with graph.
        gradient_N: [N], of `row_gradient`.
        weight_N: [N], of `Weights.token_N`, for the entropy.
        num_tokens: as in `ScoredTokens`.
        entropy_coef: as in the config.
    """
    bonus = entropy_coef * (weight_N * entropy_N).sum()
    mean = entropy_N.detach().sum() / num_tokens
    sums = {"policy/entropy": mean, "loss/total": -bonus.detach()}
    return LossOutput(loss=(gradient_N * logp_N).sum() - bonus, sums=sums)
