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
from drift.learner.likelihood import longest_row, micro_batches, pad_batches, token_logps
from drift.learner.objective import k3
from drift.policy.base import Policy

MAX_ROWS = 64  # rows measured at each step on one rank
WARN_KL = 0.02  # nats a token: beyond it, clipped ratios of 0.2 no longer mean much
log = logging.getLogger("drift")


def one_state_each(rollout: Rollout, key: int) -> tuple[Tensor, Tensor]:
    """A random step of some rows: what the sampler saw then as masked, and what it committed.

    Returns:
        hidden and committed, both [1, B, C] bool; nothing is committed in rows that are left out.
    """
    trace, device = rollout.trace, rollout.rows_B.device
    step_B1 = (rng.uniform(key, rollout.rows_B) * trace.nfe_B).long()[:, None]
    num_rows = len(step_B1)
    every = -(-num_rows // MAX_ROWS)
    measured_B = torch.arange(num_rows, device=device) % every == 0
    hidden_BC, committed_BC = trace.state(step_B1)
    return hidden_BC[None], (committed_BC & measured_B[:, None])[None]


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
    hidden_1BC, committed_1BC = one_state_each(rollout, key)
    rows = max(1, config.optim.tokens_per_forward // longest_row(rollout))
    batches = micro_batches(rollout, hidden_1BC, committed_1BC, policy.special, rows)
    pad_batches(batches, int(engine.max(len(batches))), policy.special.pad, policy.device)
    found = token_logps(engine.model, batches, committed_1BC.shape, rollout.temperature)
    policy_N = found.logp_KBC[committed_1BC].double()
    sampler_N = rollout.trace.logp_BC[committed_1BC[0]].double()
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
    """min(p_old / p_sampler, cap) of each scored token: [K, B, C] (truncated importance sampling).

    Only where the view is the state in which the sampler committed the token; 1 elsewhere.
    """
    ratio_KBC = (old.logp_KBC - rollout.trace.logp_BC).exp().clamp(max=cap)
    return torch.where(views.scored_KBC, ratio_KBC, 1.0)
