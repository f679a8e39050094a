"""The loss of token log-probs. Pure tensors: no model, no rank, no config but the objective's.

All denominators are counts over the whole batch, known before the first forward: the weight of a
token is fixed by `weigh`, and the losses of all micro-batches and ranks add up. Losses that are no
sum over scored tokens are in sequence_objective.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drift.common.types import LossOutput, MaskedViews
from drift.config.objective import (
    OBJECTIVES,
    DualClippedConfig,
    KLEstimator,
    KLReduction,
    Level,
    Normalization,
    ObjectiveConfig,
    PpoClipConfig,
    ReinforceConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What each scored token and each row counts in the loss; fixed before the first forward.

    One view of two rows with 2 and 1 scored tokens, normalization=sample:
    Weights(row_N=[0, 0, 1], share_N=[0.5, 0.5, 1], row_B=[0.5, 0.5], mean_B=[0.5, 0.5],
            length_B=[2, 1])
    """

    row_N: Tensor  # int64; the row of each scored token
    share_N: Tensor  # float32; sum(share * log p) over a row's tokens is its mean log-prob
    row_B: Tensor  # float32; the rows of the batch add up to the loss
    mean_B: Tensor  # float32; the rows of the batch add up to their mean, whatever the loss
    length_B: Tensor  # int64; tokens of the row that may be scored, 0 for rows that are left out

    @property
    def token_N(self) -> Tensor:
        """[N] float32: what each scored token counts in a sum over tokens."""
        return self.share_N * self.row_B[self.row_N]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the denominators of the loss are made of, over all ranks.

    Counts(rows=2, size=3, tokens=3, states=2, order_tokens=[3])
    """

    rows: int  # with something to score
    size: int  # the sum of their sizes (`row_sizes`)
    tokens: int  # scored, over all views
    states: int  # with something to score
    order_tokens: list[int]  # tokens scored in the first view of the rows, in the second, ...


def row_sizes(views: MaskedViews, length_B: Tensor) -> Tensor:
    """What the weights of a row's scored tokens add up to, [B]: their number, or the row's length.

    The views of a weighted masking estimate the row's log-likelihood, a sum over its length_B
    tokens, whichever of them happen to be scored.
    """
    if views.weight_J is not None:
        return length_B
    return torch.bincount(views.row_N, minlength=len(length_B))


def local_counts(views: MaskedViews, length_B: Tensor) -> Counts:
    """The counts of this rank; those of several ranks add up."""
    size_B = row_sizes(views, length_B)
    orders = torch.bincount(views.order_J[views.state_N])
    return Counts(
        rows=int((size_B > 0).sum()),
        size=int(size_B.sum()),
        tokens=len(views.state_N),
        states=int((torch.bincount(views.state_N) > 0).sum()),
        order_tokens=[int(tokens) for tokens in orders],
    )


def weigh(
    views: MaskedViews,
    length_B: Tensor,
    normalization: Normalization,
    counts: Counts,
    canvas_length: int,
) -> Weights:
    """The weights of the scored tokens and of the rows.

    With m the mean log-prob of a row (or a function of it) and n its tokens, the loss is

    sample: the mean of m over rows: every completion counts the same (GRPO, arXiv 2402.03300).
    token: the mean over tokens: every scored token counts the same (DAPO, arXiv 2503.14476).
    sequence: the mean of n m over rows, the log-likelihood (REINFORCE; RLOO, arXiv 2402.14740).
    canvas: the mean of n m / C, C the canvas length (Dr. GRPO, arXiv 2503.20783).
    view: the mean over views of the mean over the view's own scored tokens: every view counts the
        same, and m is a row's mean over views (RLDF, arXiv 2605.25638; TraceRL, arXiv 2509.06949).
    view_token: the mean over tokens in the k-th view of every row, then the mean over k (the code
        of RLDF, `loss_norm: token`).

    The views of a weighted masking count by their weights: for them the last two are as sample.

    Args:
        views: of this rank's rows, no candidates left.
        length_B: [B] int64, tokens of each row that may be scored; 0 for rows that are left out.
        normalization: one of the six.
        counts: over all ranks.
        canvas_length: C.
    """
    row_N, size_B = views.row_N, row_sizes(views, length_B)
    used_B, num_rows = size_B > 0, max(counts.rows, 1)
    by_view = normalization in (Normalization.view, Normalization.view_token)
    if by_view and views.weight_J is None:
        weight_N = view_weights(views, normalization, counts)
        total_B = torch.zeros(len(size_B), device=row_N.device).index_add(0, row_N, weight_N)
        share_N, row_B = weight_N / total_B[row_N], total_B
    else:
        ones = torch.ones_like(row_N, dtype=torch.float32)
        weight_N = ones if views.weight_J is None else views.weight_J[views.state_N]
        share_N = weight_N / size_B.clamp(min=1)[row_N]
        numerators_B = {
            Normalization.token: size_B,
            Normalization.sequence: length_B,
            Normalization.canvas: length_B / canvas_length,
        }
        denominator = counts.size if normalization == Normalization.token else num_rows
        numerator_B = numerators_B.get(normalization, torch.ones_like(size_B))
        row_B = numerator_B * used_B / max(denominator, 1)
    return Weights(
        row_N=row_N, share_N=share_N, row_B=row_B, mean_B=used_B / num_rows, length_B=length_B
    )


def kl_weights(views: MaskedViews, weight_N: Tensor, reduction: KLReduction) -> Tensor:
    """What the KL of each scored token counts: as the token, or summed over its view: [N]."""
    if reduction == KLReduction.mean:
        return weight_N
    own_J = torch.bincount(views.state_N, minlength=len(views.row_J))
    return weight_N * own_J[views.state_N]


def view_weights(views: MaskedViews, normalization: Normalization, counts: Counts) -> Tensor:
    """What each scored token counts where views count: [N] float32, over all ranks 1 in sum."""
    if normalization == Normalization.view:
        own_J = torch.bincount(views.state_N, minlength=len(views.row_J))
        return 1.0 / (counts.states * own_J[views.state_N])
    tokens_K = torch.tensor(counts.order_tokens, device=views.state_N.device)
    return 1.0 / (int((tokens_K > 0).sum()) * tokens_K[views.order_J[views.state_N]])


@OBJECTIVES.implements(ReinforceConfig, Level.view)
def reinforce(
    logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """-A log p (Williams 1992), for one update on a fresh rollout.

    Args:
        logp_N: [N] float32, with graph.
        old_logp_N: [N], of the policy before this update; not used.
        advantage_N: [N].
        config: not used.

    Returns:
        loss [N], and [N] bool: which tokens were clipped (none).
    """
    return -advantage_N * logp_N, torch.zeros_like(logp_N, dtype=torch.bool)


@OBJECTIVES.implements(PpoClipConfig, Level.view)
def ppo_clip(
    logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, config: DualClippedConfig
) -> tuple[Tensor, Tensor]:
    """`clip` of r = p / p_old. Arguments and return as `reinforce`."""
    return clip((logp_N - old_logp_N).exp(), advantage_N, config)


def clip(ratio_N: Tensor, advantage_N: Tensor, config: DualClippedConfig) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (PPO, arXiv 1707.06347).

    With clip_dual = c, and A < 0, at most -c A (dual-clip PPO, arXiv 1912.09729).

    Returns:
        loss [N], and [N] bool: the tokens whose gradient a clip stops.
    """
    clipped_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    plain_N, bounded_N = ratio_N * advantage_N, clipped_N * advantage_N
    loss_N, stopped_N = -torch.minimum(plain_N, bounded_N), bounded_N < plain_N
    if config.clip_dual is None:
        return loss_N, stopped_N
    most_N = torch.where(advantage_N < 0, -config.clip_dual * advantage_N, torch.inf)
    return torch.minimum(loss_N, most_N), stopped_N | (loss_N > most_N)


def k1(logp_N: Tensor, reference_N: Tensor) -> Tensor:
    """log p - log q: unbiased for KL(p, q) under p (Schulman, Approximating KL Divergence).

    As a loss it pulls nowhere on average: the expectation of grad log p is 0. Use k2 or k3.
    """
    return logp_N - reference_N


def k2(logp_N: Tensor, reference_N: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: biased, low variance; its gradient is that of KL(p, q) under p."""
    return (logp_N - reference_N).square() / 2


def k3(logp_N: Tensor, reference_N: Tensor) -> Tensor:
    """q / p - 1 - log(q / p): unbiased for KL(p, q) under p, never negative."""
    log_ratio_N = reference_N - logp_N
    return log_ratio_N.exp() - 1 - log_ratio_N


KL_ESTIMATORS: dict[KLEstimator, Callable[[Tensor, Tensor], Tensor]] = {
    KLEstimator.k1: k1,
    KLEstimator.k2: k2,
    KLEstimator.k3: k3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTokens:
    """N scored tokens of a micro-batch, flat.

    ScoredTokens(logp_N=[-0.7], entropy_N=[0.9], old_logp_N=[-0.7], reference_logp_N=None,
                 advantage_N=[1.2], weight_N=[0.01], kl_weight_N=[0.01], num_tokens=120)
    """

    logp_N: Tensor  # with graph
    entropy_N: Tensor  # with graph, nats
    old_logp_N: Tensor
    reference_logp_N: Tensor | None
    advantage_N: Tensor
    weight_N: Tensor  # of `Weights.token_N`
    kl_weight_N: Tensor  # the same for the KL
    num_tokens: int  # scored in the batch, over all views, micro-batches and ranks


def policy_objective(tokens: ScoredTokens, config: ObjectiveConfig) -> LossOutput:
    """sum_i w_i (policy loss_i - entropy_coef H_i) + sum_i v_i kl_coef KL_i.

    What is logged of the clip, the KL and the entropy is a plain mean over the scored tokens.

    Args:
        tokens: of one micro-batch.
        config: which policy loss, KL estimator and coefficients.

    Raises:
        ValueError: kl_coef is not 0 and there are no reference log-probs.
    """
    weight_N = tokens.weight_N
    policy_N, clipped_N = OBJECTIVES.function(config, Level.view)(
        tokens.logp_N, tokens.old_logp_N, tokens.advantage_N, config
    )
    loss = (weight_N * (policy_N - config.entropy_coef * tokens.entropy_N)).sum()
    sums = {
        "loss/policy": (weight_N * policy_N).sum(),
        "loss/clip_frac": clipped_N.sum() / tokens.num_tokens,
        "policy/entropy": tokens.entropy_N.sum() / tokens.num_tokens,
    }
    if config.kl_coef != 0:
        if tokens.reference_logp_N is None:
            raise ValueError("objective.kl_coef is not 0, but there are no reference log-probs")
        kl_N = KL_ESTIMATORS[config.kl_estimator](tokens.logp_N, tokens.reference_logp_N)
        loss = loss + config.kl_coef * (tokens.kl_weight_N * kl_N).sum()
        sums[f"kl/{config.kl_estimator}"] = kl_N.sum() / tokens.num_tokens
    sums["loss/total"] = loss
    return LossOutput(loss=loss, sums={name: value.detach() for name, value in sums.items()})
