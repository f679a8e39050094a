"""The value model's side of the loss: what reward was expected of each step of a trace.

Step-wise generalized advantage estimation (GAE, arXiv 1506.02438) over the steps of a trace, as
TraceRL has it (arXiv 2509.06949): a view is a step, a token's value is what the head says of it
in the view that scores it. Pure tensors: no model, no rank.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from drift.common.types import LossOutput, MaskedViews, distinct
from drift.config.objective import ValueConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTargets:
    """What the N scored tokens of B rows are trained towards; all [N] float32.

    One row, reward 1, two steps of one token that were given 0.2 and 0.7, gamma = gae_lambda = 1:
    ValueTargets(old_N=[0.2, 0.7], return_N=[1, 1], advantage_N=[0.8, 0.3], weight_N=[0.5, 0.5])
    """

    old_N: Tensor  # values before the update
    return_N: Tensor
    advantage_N: Tensor
    weight_N: Tensor  # adds up to 1 over the tokens of all ranks

    def keep(self, kept_N: Tensor) -> "ValueTargets":
        """Some of the tokens: kept_N [N] bool."""
        return ValueTargets(**{f.name: getattr(self, f.name)[kept_N] for f in fields(self)})


def step_targets(
    reward_B: Tensor,
    old_N: Tensor,
    views: MaskedViews,
    weight_N: Tensor,
    config: ValueConfig,
) -> ValueTargets:
    """The return and the advantage of every token of every step.

    A row's states are its steps in order; the reward r comes at the row's last step that scores a
    token, and a state that scores none of its tokens is no step of the row. With V_j the old value
    of token j of step t, V_t the mean over the step's tokens, and everything after the last step 0:

        R_j = r_t + gamma R_{t+1}                                      (R_t is the same for all j)
        A_j = r_t - V_j + gamma V_{t+1} + gamma gae_lambda A_{t+1}     (A_t the mean over j)

    The steps' values and the tokens' advantages are TraceRL's (arXiv 2509.06949), whose code gives
    the answer's reward to the last step too.

    Args:
        reward_B: [B] float32, of the completion.
        old_N: [N] float32, the value of each scored token before the update.
        views: each token is scored in one state.
        weight_N: [N] float32, what each token counts in the value loss.
        config: gamma and gae_lambda.
    """
    step_J, state_N = distinct(views.state_N)  # states with tokens
    row_J, size = views.row_J[step_J], len(step_J)
    count_J = torch.bincount(state_N, minlength=size)
    value_J = old_N.new_zeros(size).index_add(0, state_N, old_N) / count_J
    last_J = torch.ones_like(row_J, dtype=torch.bool)
    last_J[:-1] = row_J[1:] != row_J[:-1]
    reward_J = torch.where(last_J, reward_B[row_J], 0.0)
    # one step earlier for all rows at a time: nth_J counts from the end of the row
    steps_B = torch.bincount(row_J, minlength=len(reward_B))
    nth_J = steps_B.cumsum(0)[row_J] - 1 - torch.arange(size, device=row_J.device)
    future_J, return_J = torch.zeros_like(reward_J), torch.zeros_like(reward_J)
    for at_J in nth_J.argsort(stable=True).split(torch.bincount(nth_J).tolist()):
        later = at_J[~last_J[at_J]]
        if len(later):
            mean = reward_J[later + 1] + future_J[later + 1] - value_J[later + 1]  # A_{t+1}
            future_J[later] = config.gamma * (value_J[later + 1] + config.gae_lambda * mean)
            return_J[later] = config.gamma * return_J[later + 1]
        return_J[at_J] += reward_J[at_J]
    return ValueTargets(
        old_N=old_N,
        return_N=return_J[state_N],
        advantage_N=(reward_J + future_J)[state_N] - old_N,
        weight_N=weight_N,
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
        weight_N: [N], of `ValueTargets`.
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
    value, wanted, weight = targets.old_N, targets.return_N, targets.weight_N
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
