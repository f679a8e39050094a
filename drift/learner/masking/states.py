"""Maskings that follow an order: the sampler's own denoising steps, or left to right."""

import torch
from torch import Tensor

from drift.common import rng
from drift.common.types import MaskedViews, Trace
from drift.config.masking import (
    MASKINGS,
    LeftToRightConfig,
    ReplayConfig,
    SequentialConfig,
    TraceConfig,
)
from drift.learner.masking.basic import NO_CANDIDATES


def step_surprisal(trace: Trace, num_steps: int) -> tuple[Tensor, Tensor]:
    """Mean surprisal of each denoising step, w_s = -mean log p(tokens committed at s).

    Args:
        trace: of B rows.
        num_steps: T, more than every unmask step.

    Returns:
        [B, T] float32, 0 where a step committed nothing; [B, T] bool, steps that committed.
    """
    step_BC = trace.unmask_step_BC.clamp(min=0)
    committed_BC = trace.committed_BC.float()
    zeros_BT = torch.zeros(len(step_BC), num_steps, device=step_BC.device)
    count_BT = zeros_BT.scatter_add(1, step_BC, committed_BC)
    total_BT = zeros_BT.scatter_add(1, step_BC, -trace.logp_BC * committed_BC)
    return total_BT / count_BT.clamp(min=1), count_BT > 0


def draw_steps(trace: Trace, rows_B: Tensor, config: SequentialConfig, key: int) -> Tensor:
    """K denoising steps of each row, drawn from softmax(w / temperature): [K, B] int64.

    Without replacement, by Gumbel's top-k. A row of fewer than K steps takes all of them and then
    again, by the same order. Temperature inf: uniform; 0: the K largest w.
    """
    num_steps = int(trace.unmask_step_BC.max()) + 1
    surprisal_BT, real_BT = step_surprisal(trace, num_steps)
    steps_T = torch.arange(num_steps, device=rows_B.device)
    gumbel_BT = -(-rng.uniform(key, rows_B[:, None], steps_T).log()).log()
    if config.temperature == 0:
        score_BT = surprisal_BT.double()
    else:
        score_BT = surprisal_BT.double() / config.temperature + gumbel_BT
    order_BT = score_BT.masked_fill(~real_BT, -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    count_B1 = real_BT.sum(1, keepdim=True).clamp(min=1)
    nth_K = torch.arange(config.num_views, device=rows_B.device)
    return order_BT.gather(1, nth_K[None] % count_B1).T


@MASKINGS.implements(SequentialConfig)
def sequential(trace: Trace, rows_B: Tensor, config: SequentialConfig, key: int) -> MaskedViews:
    """K states of the row's own denoising (RLDF, arXiv 2605.25638).

    The view of step s shows exactly what the sampler saw at s: tokens committed at s or later are
    hidden. Scored are the tokens committed at s; candidates, scored if the old policy finds them
    likely enough, are the tokens committed later.
    """
    step_KB1 = draw_steps(trace, rows_B, config, key)[:, :, None]
    hidden_KBC, scored_KBC = trace.state(step_KB1)
    candidate_KBC = hidden_KBC & trace.committed_BC & ~scored_KBC
    if config.low_prob_threshold == NO_CANDIDATES:
        candidate_KBC = torch.zeros_like(candidate_KBC)
    return MaskedViews(
        hidden_KBC=hidden_KBC,
        scored_KBC=scored_KBC,
        candidate_KBC=candidate_KBC,
        candidate_min_prob=config.low_prob_threshold,
    )


def in_order(trace: Trace, order_BC: Tensor, group: int) -> MaskedViews:
    """A view for every `group` numbers of an order: hides them and what follows, scores them.

    Args:
        trace: of B rows.
        order_BC: [B, C] int64, a number for each committed token; a smaller one comes first.
        group: numbers of a view.
    """
    group_BC = torch.where(trace.committed_BC, order_BC // group, -1)
    views_K11 = torch.arange(int(group_BC.max()) + 1, device=order_BC.device)[:, None, None]
    scored_KBC = group_BC == views_K11
    return MaskedViews(
        hidden_KBC=(group_BC >= views_K11) | ~trace.committed_BC,
        scored_KBC=scored_KBC,
        candidate_KBC=torch.zeros_like(scored_KBC),
        candidate_min_prob=NO_CANDIDATES,
    )


@MASKINGS.implements(TraceConfig)
def trace_groups(trace: Trace, rows_B: Tensor, config: TraceConfig, key: int) -> MaskedViews:
    """A view for each group of `shrink` denoising steps (TraceRL, arXiv 2509.06949).

    It hides what was committed in the group or later, and scores what was committed in the group.
    """
    return in_order(trace, trace.unmask_step_BC, config.shrink)


@MASKINGS.implements(ReplayConfig)
def replay(trace: Trace, rows_B: Tensor, config: ReplayConfig, key: int) -> MaskedViews:
    """A view for each denoising step: every token is scored in the state that committed it.

    The sum of the log-probs is the sampler's own, sum of `trace.logp_BC`, so its gradient is that
    of the trajectory's tokens, without bias.
    """
    return in_order(trace, trace.unmask_step_BC, 1)


@MASKINGS.implements(LeftToRightConfig)
def left_to_right(trace: Trace, rows_B: Tensor, config: LeftToRightConfig, key: int) -> MaskedViews:
    """A view for each token, which shows the tokens before it (JustGRPO, arXiv 2601.15165).

    The sum of the log-probs is the exact log-likelihood of an autoregressive sampler.
    """
    before_BC = trace.committed_BC.cumsum(1) - 1
    return in_order(trace, before_BC, 1)
