"""The loss of token log-probs. Pure tensors: no model, no rank, no config but the objective's.

All denominators are counts over the whole batch, known before the first forward: the weight of a
token is fixed by `token_weights`, and the losses of all micro-batches and ranks add up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drift.config import KLEstimator, Normalization, ObjectiveConfig, PolicyLoss
from drift.types import LossOutput


def token_weights(
    scored_KBC: Tensor, normalization: Normalization, num_rows: int, num_tokens: int
) -> Tensor:
    """The weight of each scored token in the loss: [K, B, C] float32, 0 where not scored.

    token: 1 / num_tokens, every token counts the same (DAPO, arXiv 2503.14476).
    sample: 1 / (num_rows * n_b), n_b the row's scored tokens over its K views: every completion
    counts the same (GRPO, arXiv 2402.03300).

    Args:
        scored_KBC: [K, B, C] bool, this rank's rows.
        normalization: token or sample.
        num_rows: rows with a scored token, over all ranks.
        num_tokens: scored tokens, over all ranks.
    """
    if normalization == Normalization.token:
        return scored_KBC.float() / max(num_tokens, 1)
    count_B = scored_KBC.sum(dim=(0, 2)).clamp(min=1)
    return scored_KBC.float() / (max(num_rows, 1) * count_B[:, None])


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


def ppo_clip(
    logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = p / p_old (PPO, arXiv 1707.06347).

    Arguments and return as `reinforce`; clipped are the tokens whose gradient the clip stops.
    """
    ratio_N = (logp_N - old_logp_N).exp()
    clipped_N = ratio_N.clamp(1 - config.clip_low, 1 + config.clip_high)
    plain_N, bounded_N = ratio_N * advantage_N, clipped_N * advantage_N
    return -torch.minimum(plain_N, bounded_N), bounded_N < plain_N


POLICY_LOSSES: dict[
    PolicyLoss, Callable[[Tensor, Tensor, Tensor, ObjectiveConfig], tuple[Tensor, Tensor]]
] = {PolicyLoss.reinforce: reinforce, PolicyLoss.ppo_clip: ppo_clip}


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
                 advantage_N=[1.2], weight_N=[0.01])
    """

    logp_N: Tensor  # with graph
    entropy_N: Tensor  # with graph, nats
    old_logp_N: Tensor
    reference_logp_N: Tensor | None
    advantage_N: Tensor
    weight_N: Tensor  # from token_weights


def policy_objective(tokens: ScoredTokens, config: ObjectiveConfig) -> LossOutput:
    """sum_i w_i (policy loss_i + kl_coef KL_i - entropy_coef H_i).

    Args:
        tokens: of one micro-batch.
        config: which policy loss, KL estimator and coefficients.

    Raises:
        ValueError: kl_coef is not 0 and there are no reference log-probs.
    """
    weight_N = tokens.weight_N
    policy_N, clipped_N = POLICY_LOSSES[config.policy_loss](
        tokens.logp_N, tokens.old_logp_N, tokens.advantage_N, config
    )
    loss_N = policy_N - config.entropy_coef * tokens.entropy_N
    sums = {
        "loss/policy": (weight_N * policy_N).sum(),
        "loss/clip_frac": (weight_N * clipped_N).sum(),
        "policy/entropy": (weight_N * tokens.entropy_N).sum(),
    }
    if config.kl_coef != 0:
        if tokens.reference_logp_N is None:
            raise ValueError("objective.kl_coef is not 0, but there are no reference log-probs")
        kl_N = KL_ESTIMATORS[config.kl_estimator](tokens.logp_N, tokens.reference_logp_N)
        loss_N = loss_N + config.kl_coef * kl_N
        sums[f"kl/{config.kl_estimator}"] = (weight_N * kl_N).sum()
    loss = (weight_N * loss_N).sum()
    sums["loss/total"] = loss
    return LossOutput(loss=loss, sums={name: value.detach() for name, value in sums.items()})
