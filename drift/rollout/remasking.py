"""Which of the masked positions of a block to commit at this denoising step. Pure functions.

Every rule has the same form and is entered in `ROLLOUTS` under the class of its settings:
    confidence_BK: [B, K] float32, how sure the network is of the token drawn at each position.
    masked_BK: [B, K] bool, positions still masked; K is the block length.
    steps_left_B: [B] int64 >= 1, denoising steps left for the block, this one counted.
    config: the rule's own.
    returns [B, K] bool, a subset of masked; not empty where masked is not, but for the schedule of
    Dream, whose step can commit nothing; all of it at the last step, so that a block never needs
    more steps than it has.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from drift.config.rollout import (
    ROLLOUTS,
    DynamicConfig,
    FactorConfig,
    RolloutConfig,
    Schedule,
    StaticConfig,
    ThresholdConfig,
)


def ranks(confidence_BK: Tensor, masked_BK: Tensor) -> Tensor:
    """0 for the most confident masked position, then 1, ...; the first wins a tie."""
    order = confidence_BK.masked_fill(~masked_BK, -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    return order.argsort(dim=1)


def static_count(masked_B: Tensor, steps_left_B: Tensor, config: StaticConfig) -> Tensor:
    """How many of the masked positions a step of `rollout=static` commits: [B] int64.

    `equal`: ceil(masked / steps left), an equal share (LLaDA, arXiv 2502.09992). `dream`:
    floor(masked * (1 - t_{i+1} / t_i)) at step i of T, with t_i = 1 - (1 - 1e-3) i / T, all at the
    last (`diffusion_generate` of Dream, arXiv 2508.15487): 1 - t_{i+1} / t_i is 999 / (1000 T -
    999 i), so whole numbers count it without rounding. `sdar`: as `sdar_count`.
    """
    if config.schedule == Schedule.equal:
        return -(-masked_B // steps_left_B)
    if config.schedule == Schedule.sdar:
        return sdar_count(steps_left_B, config)
    steps = config.steps_of_block
    count_B = 999 * masked_B // (1000 * steps - 999 * (steps - steps_left_B))
    return torch.where(steps_left_B == 1, masked_B, count_B)


def sdar_count(steps_left_B: Tensor, config: RolloutConfig) -> Tensor:
    """Tokens of a step by SDAR's schedule (arXiv 2510.06303): [B] int64.

    The block's B tokens in equal shares over its T steps, one more in each of the first B mod T.
    Tokens of the prompt in a block do not make the shares smaller, so such a block ends early.
    """
    steps, size = config.steps_of_block, config.block_length
    return size // steps + (steps - steps_left_B < size % steps).long()


@ROLLOUTS.implements(StaticConfig)
def static(
    confidence_BK: Tensor, masked_BK: Tensor, steps_left_B: Tensor, config: StaticConfig
) -> Tensor:
    """The most confident positions; the schedule sets how many."""
    count_B = static_count(masked_BK.sum(1), steps_left_B, config)
    return (ranks(confidence_BK, masked_BK) < count_B[:, None]) & masked_BK


@ROLLOUTS.implements(ThresholdConfig)
def threshold(
    confidence_BK: Tensor, masked_BK: Tensor, steps_left_B: Tensor, config: ThresholdConfig
) -> Tensor:
    """Every position at or above the threshold, and at least one (Fast-dLLM, arXiv 2505.22618)."""
    sure_BK = confidence_BK >= config.threshold
    first_BK = ranks(confidence_BK, masked_BK) == 0
    return (sure_BK | first_BK | (steps_left_B == 1)[:, None]) & masked_BK


@ROLLOUTS.implements(DynamicConfig)
def dynamic(
    confidence_BK: Tensor, masked_BK: Tensor, steps_left_B: Tensor, config: DynamicConfig
) -> Tensor:
    """Every position above the threshold if they are at least as many as the schedule says.

    Else as many as it says, the most confident (SDAR's `low_confidence_dynamic`, arXiv 2510.06303).
    """
    sure_BK = (confidence_BK > config.threshold) & masked_BK
    count_B1 = sdar_count(steps_left_B, config)[:, None]
    scheduled_BK = (ranks(confidence_BK, masked_BK) < count_B1) & masked_BK
    enough_B1 = sure_BK.sum(1, keepdim=True) >= count_B1
    last_BK = (steps_left_B == 1)[:, None] & masked_BK
    return torch.where(enough_B1, sure_BK, scheduled_BK) | last_BK


@ROLLOUTS.implements(FactorConfig)
def factor(
    confidence_BK: Tensor, masked_BK: Tensor, steps_left_B: Tensor, config: FactorConfig
) -> Tensor:
    """The n most confident for the largest n with (n + 1)(1 - confidence of the n-th) < factor.

    At least one. The more tokens are committed together, the surer each must be (Fast-dLLM's
    factor rule, arXiv 2505.22618).
    """
    rank_BK = ranks(confidence_BK, masked_BK)
    holds_BK = (rank_BK + 2) * (1 - confidence_BK) < config.factor
    largest_B1 = torch.where(holds_BK & masked_BK, rank_BK, 0).amax(1, keepdim=True)
    return ((rank_BK <= largest_B1) | (steps_left_B == 1)[:, None]) & masked_BK


def shuffle(confidence_BK: Tensor, noise_BK: Tensor, temperature: float) -> Tensor:
    """Confidence with Gumbel noise, so that the order is drawn without replacement.

    Position i comes first with probability softmax(confidence / temperature)_i (Gumbel-top-k,
    arXiv 1903.06059; Dream's `alg_temp`).
    """
    gumbel_BK = -torch.log(-torch.log(noise_BK))
    return (confidence_BK.double() / temperature + gumbel_BK).float()


def rule_of(config: RolloutConfig) -> Callable[[Tensor, Tensor, Tensor, RolloutConfig], Tensor]:
    """The rule that the class of the settings chooses."""
    return ROLLOUTS.function(config)
