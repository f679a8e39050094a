"""The value model's side of the loss: what reward was expected of each step of a trace.

Step-wise generalized advantage estimation (GAE, arXiv 1506.02438) over the steps of a trace, as
TraceRL has it (arXiv 2509.06949): a view is a step, a token's value is what the head says of it
in the view that scores it. Pure tensors: no model, no rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from drift.common.types import LossOutput
from drift.config.objective import ValueConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTargets:
    """What the tokens of B rows are trained towards; all [K, B, C] float32, 0 where not scored.

    One row, reward 1, two steps of one token that were given 0.2 and 0.7, gamma = gae_lambda = 1:
    ValueTargets(old_KBC=[[[0.2, 0]], [[0, 0.7]]], return_KBC=[[[1, 0]], [[0, 1]]],
                 advantage_KBC=[[[0.8, 0]], [[0, 0.3]]], weight_KBC=[[[0.5, 0]], [[0, 0.5]]])
    """

    old_KBC: Tensor  # values before the update
    return_KBC: Tensor
    advantage_KBC: Tensor
    weight_KBC: Tensor  # adds up to 1 over the tokens of all ranks


def step_targets(
    reward_B: Tensor,
    old_KBC: Tensor,
    scored_KBC: Tensor,
    weight_KBC: Tensor,
    config: ValueConfig,
) -> ValueTargets:
    """The return and the advantage of every token of every step.

    Views are the steps in order; the reward r comes at a row's last step that scores a token, and
    a view that scores none of its tokens is no step of the row. With V_j the old value of token j
    of step t, V_t the mean over the step's tokens, and everything behind the last step 0:

        R_j = r_t + gamma R_{t+1}                                      (R_t is the same for all j)
        A_j = r_t - V_j + gamma V_{t+1} + gamma gae_lambda A_{t+1}     (A_t the mean over j)

    The steps' values and the tokens' advantages are TraceRL's (arXiv 2509.06949), whose code gives
    the answer's reward to the last step too.

    Args:
        reward_B: [B] float32, of the completion.
        old_KBC: [K, B, C] float32, the value of each scored token before the update.
        scored_KBC: [K, B, C] bool; each token in one view.
        weight_KBC: [K, B, C] float32, what each token counts in the value loss.
        config: gamma and gae_lambda.
    """
    count_KB = scored_KBC.sum(2)
    next_value_B, next_return_B, next_advantage_B = (torch.zeros_like(reward_B) for _ in range(3))
    behind_B = torch.zeros_like(reward_B, dtype=torch.bool)  # a step of the row comes later
    return_KBC, advantage_KBC = torch.zeros_like(old_KBC), torch.zeros_like(old_KBC)
    for k in reversed(range(len(scored_KBC))):
        scored_BC, step_B = scored_KBC[k], count_KB[k] > 0
        reward_now_B = torch.where(behind_B, 0.0, reward_B)
        future_B = config.gamma * (next_value_B + config.gae_lambda * next_advantage_B)
        return_B = reward_now_B + config.gamma * next_return_B
        advantage_BC = (reward_now_B + future_B)[:, None] - old_KBC[k]
        return_KBC[k] = torch.where(scored_BC, return_B[:, None], 0.0)
        advantage_KBC[k] = torch.where(scored_BC, advantage_BC, 0.0)
        value_B, mean_B = (
            torch.where(scored_BC, x, 0.0).sum(1) / count_KB[k].clamp(min=1)
            for x in (old_KBC[k], advantage_BC)
        )
        next_value_B = torch.where(step_B, value_B, next_value_B)
        next_return_B = torch.where(step_B, return_B, next_return_B)
        next_advantage_B = torch.where(step_B, mean_B, next_advantage_B)
        behind_B = behind_B | step_B
    return ValueTargets(
        old_KBC=old_KBC,
        return_KBC=return_KBC,
        advantage_KBC=advantage_KBC,
        weight_KBC=weight_KBC,
    )


def value_loss(
    value_N: Tensor, old_N: Tensor, return_N: Tensor, weight_N: Tensor, clip: float
) -> Tensor:
    """sum_j w_j max((V_j - R_j)^2, (V_clip,j - R_j)^2) / 2, a scalar (TraceRL, arXiv 2509.06949).

    V_clip is V, kept within `clip` of its old value: what went further towards the return than that
    has no gradient.

    Args:
        value_N: [N] float32, with graph.
        old_N, return_N: [N].
        weight_N: [N], of `ValueTargets.weight_KBC`.
        clip: > 0.
    """
    clipped_N = old_N + (value_N - old_N).clamp(-clip, clip)
    error_N = torch.maximum((value_N - return_N).square(), (clipped_N - return_N).square())
    return (weight_N * error_N).sum() / 2


def with_value_loss(output: LossOutput, value_loss: Tensor, coef: float) -> LossOutput:
    """The policy's loss of a micro-batch plus coef times the value model's."""
    found, total = value_loss.detach(), output.sums["loss/total"]
    sums = output.sums | {"value/loss": found, "loss/total": total + coef * found}
    return LossOutput(loss=output.loss + coef * value_loss, sums=sums)


def moments(targets: ValueTargets) -> dict[str, float]:
    """This rank's sums for `summary`."""
    value, wanted, weight = targets.old_KBC, targets.return_KBC, targets.weight_KBC
    error = wanted - value
    return {
        "value": float((weight * value).sum()),
        "return": float((weight * wanted).sum()),
        "return^2": float((weight * wanted.square()).sum()),
        "error": float((weight * error).sum()),
        "error^2": float((weight * error.square()).sum()),
    }


def summary(sums: dict[str, float]) -> dict[str, float]:
    """value/mean, and value/explained_variance = 1 - Var(R - V) / Var(R) of the old values.

    Args:
        sums: of `moments` over all ranks. Where all returns are equal there is no variance to
            explain, and it is left out.
    """
    found = {"value/mean": sums["value"]}
    variance = sums["return^2"] - sums["return"] ** 2
    if variance > 1e-6:
        unexplained = sums["error^2"] - sums["error"] ** 2
        found["value/explained_variance"] = 1 - unexplained / variance
    return found
