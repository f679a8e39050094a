"""The loss of token log-probs. Pure tensors: no model, no rank, no config but the objective's.

All denominators are counts over the whole batch, known before the first forward: the weight of a
token is fixed by `weigh`, and the losses of all micro-batches and ranks add up. Losses that are no
sum over scored tokens are in sequence_objective.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drift.common.types import LossOutput
from drift.config.objective import (
    OBJECTIVES,
    ClippedConfig,
    KLEstimator,
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
    Weights(share_KBC=[[[0.5, 0.5], [1, 0]]], row_B=[0.5, 0.5], mean_B=[0.5, 0.5],
            length_B=[2, 1])
    """

    share_KBC: Tensor  # float32, 0 where not scored; sum(share * log p) is the row's mean log-prob
    row_B: Tensor  # float32; the rows of the batch add up to the loss
    mean_B: Tensor  # float32; the rows of the batch add up to their mean, whatever the loss
    length_B: Tensor  # int64; committed tokens of the row, 0 for rows that are left out

    @property
    def token_KBC(self) -> Tensor:
        """[K, B, C] float32: what each scored token counts in a sum over tokens."""
        return self.share_KBC * self.row_B[:, None]


def row_sizes(scored_KBC: Tensor, weight_KB: Tensor | None, length_B: Tensor) -> Tensor:
    """What the weights of a row's scored tokens add up to, [B]: their number, or the row's length.

    The views of a weighted masking estimate the row's log-likelihood, a sum over its length_B
    tokens, whichever of them happen to be scored.
    """
    return scored_KBC.sum(dim=(0, 2)) if weight_KB is None else length_B


def weigh(
    scored_KBC: Tensor,
    weight_KB: Tensor | None,
    length_B: Tensor,
    normalization: Normalization,
    num_rows: int,
    num_tokens: int,
) -> Weights:
    """The weights of the scored tokens and of the rows.

    With m the mean log-prob of a row (or a function of it) and n its tokens, the loss is

    sample: the mean of m over rows: every completion counts the same (GRPO, arXiv 2402.03300).
    token: the mean over tokens: every scored token counts the same (DAPO, arXiv 2503.14476).
    sequence: the mean of n m over rows, the log-likelihood (REINFORCE; RLOO, arXiv 2402.14740).
    canvas: the mean of n m / C, C the canvas length (Dr. GRPO, arXiv 2503.20783).

    Args:
        scored_KBC: [K, B, C] bool, this rank's rows.
        weight_KB: the views' weights, as in `MaskedViews`; None: scored tokens count alike.
        length_B: [B] int64, committed tokens of each row; 0 for rows that are left out.
        normalization: one of the four.
        num_rows: rows with a size above 0 (`row_sizes`), over all ranks.
        num_tokens: the sum of the sizes, over all ranks.
    """
    size_B = row_sizes(scored_KBC, weight_KB, length_B)
    weighted_KBC = scored_KBC.float() if weight_KB is None else scored_KBC * weight_KB[:, :, None]
    numerators_B = {
        Normalization.sample: torch.ones_like(size_B),
        Normalization.token: size_B,
        Normalization.sequence: length_B,
        Normalization.canvas: length_B / scored_KBC.shape[2],
    }
    denominator = num_tokens if normalization == Normalization.token else num_rows
    return Weights(
        share_KBC=weighted_KBC / size_B.clamp(min=1)[:, None],
        row_B=numerators_B[normalization] * (size_B > 0) / max(denominator, 1),
        mean_B=(size_B > 0) / max(num_rows, 1),
        length_B=length_B,
    )


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
    logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, config: ClippedConfig
) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = p / p_old (PPO, arXiv 1707.06347).

    Arguments and return as `reinforce`; clipped are the tokens whose gradient the clip stops.
    """
    ratio_N = (logp_N - old_logp_N).exp()
    clipped_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    plain_N, bounded_N = ratio_N * advantage_N, clipped_N * advantage_N
    return -torch.minimum(plain_N, bounded_N), bounded_N < plain_N


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
                 advantage_N=[1.2], weight_N=[0.01], num_tokens=120)
    """

    logp_N: Tensor  # with graph
    entropy_N: Tensor  # with graph, nats
    old_logp_N: Tensor
    reference_logp_N: Tensor | None
    advantage_N: Tensor
    weight_N: Tensor  # of `Weights.token_KBC`
    num_tokens: int  # scored in the batch, over all views, micro-batches and ranks


def policy_objective(tokens: ScoredTokens, config: ObjectiveConfig) -> LossOutput:
    """sum_i w_i (policy loss_i + kl_coef KL_i - entropy_coef H_i).

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
    loss_N = policy_N - config.entropy_coef * tokens.entropy_N
    sums = {
        "loss/policy": (weight_N * policy_N).sum(),
        "loss/clip_frac": clipped_N.sum() / tokens.num_tokens,
        "policy/entropy": tokens.entropy_N.sum() / tokens.num_tokens,
    }
    if config.kl_coef != 0:
        if tokens.reference_logp_N is None:
            raise ValueError("objective.kl_coef is not 0, but there are no reference log-probs")
        kl_N = KL_ESTIMATORS[config.kl_estimator](tokens.logp_N, tokens.reference_logp_N)
        loss_N = loss_N + config.kl_coef * kl_N
        sums[f"kl/{config.kl_estimator}"] = kl_N.sum() / tokens.num_tokens
    loss = (weight_N * loss_N).sum()
    sums["loss/total"] = loss
    return LossOutput(loss=loss, sums={name: value.detach() for name, value in sums.items()})
