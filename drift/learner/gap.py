"""The gap between sampler and learner: how far a rollout's log-probs are from the policy's own.

A cache approximates, a replica rounds: then tokens are drawn from another distribution than the
one that is trained. The gap is measured at every step on the sampler's own states, one of each of a
few rows, and `objective.importance=truncated` corrects the loss for it.
"""

import logging

import torch
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import rng
from drift.common.types import MaskedViews, Rollout, TokenLogps
from drift.config.commands import RunConfig
from drift.learner.layout import micro_batches
from drift.learner.likelihood import token_logps
from drift.learner.masking.states import at_steps
from drift.learner.objective import k3
from drift.policy.base import Policy

MAX_ROWS = 64  # rows measured at each step on one rank
WARN_KL = 0.02  # nats a token: beyond it, clipped ratios of 0.2 no longer mean much
log = logging.getLogger("drift")


def one_state_each(rollout: Rollout, key: int) -> MaskedViews:
    """A random state of each row, as the sampler saw it; what was committed there is scored.

    Of the states where something was committed. Nothing is scored in rows that are left out.
    """
    trace, rows_B = rollout.trace, rollout.rows_B
    sorted_BC = trace.unmask_step_BC.sort(1).values
    new_BC = sorted_BC.diff(dim=1, prepend=torch.full_like(sorted_BC[:, :1], -1)) > 0
    nth_B = (rng.uniform(key, rows_B) * new_BC.sum(1)).long()
    place_B1 = (new_BC.cumsum(1) > nth_B[:, None]).int().argmax(1, keepdim=True)
    step_J = sorted_BC.gather(1, place_B1)[:, 0]
    views = at_steps(trace, rows_B, trace.committed_BC, step_J, own=True)
    every = -(-len(rows_B) // MAX_ROWS)
    return views.keep(views.row_N % max(every, 1) == 0)


def sampler_gap(
    engine: Engine, policy: Policy, rollout: Rollout, config: RunConfig, key: int
) -> dict[str, float]:
    """KL(sampler || policy) and effective sample size, over all ranks; before the update.

    With r = policy's probability of a token over the sampler's: the KL is the mean of
    r - 1 - log r (`objective.k3`), and the effective sample size is (sum r)^2 / (n sum r^2), which
    is 1 where the two agree (Kong 1992).

    Returns:
        gap/kl in nats a token, gap/ess from 0 to 1.
    """
    assert engine.model is not None
    views = one_state_each(rollout, key)
    batches = micro_batches(rollout, views, policy.special, config.optim.tokens_per_forward)
    batches.pad(int(engine.max(len(batches))))
    found = token_logps(engine.model, batches, rollout.temperature)
    policy_N = found.logp_N.double()
    sampler_N = rollout.trace.logp_BC[views.row_N, views.column_N].double()
    ratio_N = (policy_N - sampler_N).exp()
    total = engine.sum(
        {
            "tokens": float(len(ratio_N)),
            "kl": float(k3(sampler_N, policy_N).sum()),
            "weight": float(ratio_N.sum()),
            "square": float(ratio_N.square().sum()),
        }
    )
    kl = total["kl"] / total["tokens"]
    return {"gap/kl": kl, "gap/ess": total["weight"] ** 2 / (total["tokens"] * total["square"])}


def warn_of_gap(kl: float) -> None:
    """Say that the sampler is no longer the policy."""
    if kl > WARN_KL:
        log.warning(
            "gap/kl=%.3f: rollouts are far from the policy's own distribution; use "
            "rollout.cache=none or a longer rollout.horizon, or objective.importance=truncated",
            kl,
        )


def importance_weights(views: MaskedViews, old: TokenLogps, rollout: Rollout, cap: float) -> Tensor:
    """min(p_old / p_sampler, cap) of each scored token: [N] (truncated importance sampling).

    Only where the view is the state in which the sampler committed the token; 1 elsewhere.
    """
    sampler_N = rollout.trace.logp_BC[views.row_N, views.column_N]
    ratio_N = (old.logp_N - sampler_N).exp().clamp(max=cap)
    return torch.where(views.candidate_N, 1.0, ratio_N)
