"""Advantages: how much better a completion is than the others of its prompt."""

from collections.abc import Callable

import torch
from torch import Tensor

from drift.common.types import Advantages
from drift.config.objective import AdvantageEstimator

MIN_STD = 1e-2  # bounds the scale where a group's rewards are nearly equal
SAME_REWARD = 1e-6


def _groups(rewards_B: Tensor, group_size: int) -> Tensor:
    if len(rewards_B) % group_size or group_size < 2:
        raise ValueError(f"{len(rewards_B)} rewards do not make groups of {group_size} (>= 2)")
    return rewards_B.view(-1, group_size)


def spread(rewards_B: Tensor, group_size: int) -> Tensor:
    """Highest minus lowest reward of each group: [P]. Arguments and errors as `group_centered`."""
    rewards_PG = _groups(rewards_B, group_size)
    return rewards_PG.amax(1) - rewards_PG.amin(1)


def group_centered(rewards_B: Tensor, group_size: int) -> Tensor:
    """Reward minus its group's mean (Dr. GRPO, arXiv 2503.20783).

    Args:
        rewards_B: [B] float32, rows of a group adjacent.
        group_size: G >= 2, divides B.

    Returns:
        [B] float32; each group sums to 0.

    Raises:
        ValueError: G does not divide B or is below 2.
    """
    rewards_PG = _groups(rewards_B, group_size)
    return (rewards_PG - rewards_PG.mean(1, keepdim=True)).flatten()


def group_normalized(rewards_B: Tensor, group_size: int) -> Tensor:
    """Reward minus its group's mean, over the group's sample std, at least 0.01.

    GRPO (arXiv 2402.03300); the floor as in RLDF (arXiv 2605.25638). Arguments, return and errors
    as `group_centered`.
    """
    std_P1 = _groups(rewards_B, group_size).std(1, keepdim=True).clamp(min=MIN_STD)
    return (group_centered(rewards_B, group_size).view(-1, group_size) / std_P1).flatten()


def z_score(rewards_B: Tensor, group_size: int) -> Tensor:
    """Reward minus its group's mean, over the group's population std; 0 where all are equal.

    TraceRL (the code of arXiv 2509.06949). Arguments, return and errors as `group_centered`.
    """
    rewards_PG = _groups(rewards_B, group_size)
    std_P1 = rewards_PG.std(1, keepdim=True, correction=0)
    centered_PG = group_centered(rewards_B, group_size).view(-1, group_size)
    # the std of equal rewards may be a rounding error
    varied_P1 = spread(rewards_B, group_size)[:, None] > SAME_REWARD
    return torch.where(varied_P1, centered_PG / std_P1, 0.0).flatten()


def leave_one_out(rewards_B: Tensor, group_size: int) -> Tensor:
    """Reward minus the mean of the others of its group (RLOO, arXiv 2402.14740).

    Equal to `group_centered` times G / (G - 1). Arguments, return and errors as there.
    """
    return group_centered(rewards_B, group_size) * (group_size / (group_size - 1))


def softmax(rewards_B: Tensor, group_size: int) -> Tensor:
    """G (softmax(c) - softmax(-c)) over each group, c the centered rewards (wd1, arXiv 2507.08838).

    wd1 raises the log-likelihood of the good answers and lowers that of the bad ones by their
    softmax weights, which bound what one answer can weigh. The factor G makes the mean over a
    group's rows the sum that wd1 has. Arguments, return and errors as `group_centered`.
    """
    centered_PG = group_centered(rewards_B, group_size).view(-1, group_size)
    contrast_PG = centered_PG.softmax(1) - (-centered_PG).softmax(1)
    return group_size * contrast_PG.flatten()


def _of_end(rewards_B: Tensor, group_size: int) -> Tensor:
    """The rewards as they are: `value.step_targets` makes advantages of them."""
    return rewards_B


ESTIMATORS: dict[AdvantageEstimator, Callable[[Tensor, int], Tensor]] = {
    AdvantageEstimator.group_centered: group_centered,
    AdvantageEstimator.group_normalized: group_normalized,
    AdvantageEstimator.z_score: z_score,
    AdvantageEstimator.leave_one_out: leave_one_out,
    AdvantageEstimator.softmax: softmax,
    AdvantageEstimator.gae: _of_end,
}


def estimate(rewards_B: Tensor, group_size: int, estimator: AdvantageEstimator) -> Advantages:
    """Advantages, and which rows can teach: a group of equal rewards is left out and counted.

    With a value model (gae) it is counted, but teaches like any other: its rows are compared with
    what was expected of them, not with one another.

    Args:
        rewards_B: [B] float32, rows of a group adjacent.
        group_size: G >= 2, divides B.
        estimator: one of ESTIMATORS.
    """
    varied_P = spread(rewards_B, group_size) > SAME_REWARD
    values_B = ESTIMATORS[estimator](rewards_B, group_size)
    at_end = estimator == AdvantageEstimator.gae
    used_B = (varied_P | at_end).repeat_interleave(group_size)
    return Advantages(
        values_B=torch.where(used_B, values_B, 0.0),
        used_B=used_B,
        zero_variance_groups=int((~varied_P).sum()),
        at_end=at_end,
    )
