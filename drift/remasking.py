"""Which of the masked positions of a block to commit at this denoising step. Pure functions.

Every rule has the same form:
    confidence_BK: [B, K] float32 in [0, 1], probability of the token drawn at each position.
    masked_BK: [B, K] bool, positions still masked; K is the block length.
    steps_left_B: [B] int64 >= 1, denoising steps left for the block, this one counted.
    threshold: of the threshold rule.
    returns [B, K] bool, a subset of masked; not empty where masked is not; all of it at the last
    step, so that a block never needs more steps than it has.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from drift.config import RemaskingRule


def most_confident(confidence_BK: Tensor, masked_BK: Tensor, count_B: Tensor) -> Tensor:
    """The `count` most confident masked positions of each row; the first wins a tie."""
    order = confidence_BK.masked_fill(~masked_BK, -1.0).argsort(dim=1, descending=True, stable=True)
    rank_BK = order.argsort(dim=1)
    return (rank_BK < count_B[:, None]) & masked_BK


def static(
    confidence_BK: Tensor, masked_BK: Tensor, steps_left_B: Tensor, threshold: float | None
) -> Tensor:
    """ceil(masked / steps left) positions each step: an equal share (LLaDA, arXiv 2502.09992)."""
    del threshold
    count_B = -(-masked_BK.sum(1) // steps_left_B)
    return most_confident(confidence_BK, masked_BK, count_B)


def threshold_(
    confidence_BK: Tensor, masked_BK: Tensor, steps_left_B: Tensor, threshold: float | None
) -> Tensor:
    """Every position at or above the threshold, and at least one (Fast-dLLM, arXiv 2505.22618)."""
    assert threshold is not None
    sure_BK = (confidence_BK >= threshold) & masked_BK
    first_BK = most_confident(confidence_BK, masked_BK, torch.ones_like(steps_left_B))
    last_step_B = steps_left_B == 1
    return sure_BK | first_BK | (masked_BK & last_step_B[:, None])


RULES: dict[RemaskingRule, Callable[[Tensor, Tensor, Tensor, float | None], Tensor]] = {
    RemaskingRule.static: static,
    RemaskingRule.threshold: threshold_,
}
