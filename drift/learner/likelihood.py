"""Log-probs of completion tokens under a policy, for the views of a masking.

The head runs on scored positions only.
"""

import torch
from torch import Tensor, nn

from drift.common import terminal
from drift.common.types import TokenLogps
from drift.config.objective import (
    AdvantageEstimator,
    Importance,
    Level,
    Normalization,
    ObjectiveConfig,
)
from drift.learner.layout import MicroBatch, MicroBatches

BY_ROW = (Normalization.sample, Normalization.sequence, Normalization.canvas)


def asks_old(objective: ObjectiveConfig, candidates: bool, rows_fit: bool) -> bool:
    """Whether the old policy scores the views before an update.

    Where one optimizer step is taken, candidates are chosen in the forward that trains, if what
    the loss is divided by is known there: the count of a view, of a row whose views are all in one
    forward, or one count for all, by which the gradient is scaled at the end.

    Args:
        objective: of the run.
        candidates: a view has some.
        rows_fit: all views of each row fit into one forward.
    """
    several = objective.num_steps > 1
    by_row = objective.level != Level.view
    corrected = objective.importance != Importance.none
    valued = objective.advantage == AdvantageEstimator.gae
    known = objective.normalization in (Normalization.view, Normalization.token)
    known = known or (rows_fit and objective.normalization in BY_ROW)
    return several or by_row or corrected or valued or (candidates and not known)


def score(
    model: nn.Module, batch: MicroBatch, temperature: float, least_prob: float | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-prob, entropy and value of the micro-batch's tokens, all [N] float32, with graph.

    The value is None where the policy has no value head; the log-prob is -inf for candidates that
    the policy gives less than `least_prob`.

    Args:
        model: a Policy, or its wrapped form in training.
        batch: what to score.
        temperature: the sampler's, so that the learner speaks of the sampler's distribution.
        least_prob: None: candidates are scored like the others.
    """
    terminal.beat()
    inputs = (batch.ids_MS, batch.length_M, batch.row_N, batch.position_N, batch.target_N)
    candidate_N = None if least_prob is None else batch.candidate_N
    return model(*inputs, temperature, candidate_N, least_prob or 0.0, batch.block_MJ)


@torch.no_grad()
def token_logps(model: nn.Module, batches: MicroBatches, temperature: float) -> TokenLogps:
    """Log-probs of the views' tokens, [N], without graph.

    Args:
        model: as `score`.
        batches: of the views.
        temperature: as `score`.
    """
    logp_N = torch.zeros(batches.views.state_N.shape, device=next(model.parameters()).device)
    entropy_N, value_N = torch.zeros_like(logp_N), None
    for batch in batches:
        logp, entropy, value = score(model, batch, temperature)
        logp_N[batch.token_N], entropy_N[batch.token_N] = logp.float(), entropy.float()
        if value is not None:
            value_N = torch.zeros_like(logp_N) if value_N is None else value_N
            value_N[batch.token_N] = value
    return TokenLogps(logp_N=logp_N, entropy_N=entropy_N, value_N=value_N)
