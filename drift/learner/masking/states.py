"""Maskings that follow an order: the sampler's own denoising steps, or left to right."""

from dataclasses import replace

import torch
from torch import Tensor

from drift.common import rng
from drift.common.types import MaskedViews, Trace, distinct
from drift.config.masking import (
    MASKINGS,
    LeftToRightConfig,
    MaskingConfig,
    ReplayConfig,
    SequentialConfig,
    TraceConfig,
)
from drift.learner.masking.views import NO_CANDIDATES, number_of, places, scorable


def step_surprisal(trace: Trace, can_BC: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Mean surprisal of each denoising step, w_s = -mean log p(tokens committed at s).

    Args:
        trace: of B rows.
        can_BC: [B, C] bool, the tokens that count.
        num_steps: T, more than every unmask step.

    Returns:
        [B, T] float32, 0 where a step committed nothing; [B, T] bool, steps that committed.
    """
    step_BC, counted_BC = trace.unmask_step_BC.clamp(min=0), can_BC.float()
    zeros_BT = torch.zeros(len(step_BC), num_steps, device=step_BC.device)
    count_BT = zeros_BT.scatter_add(1, step_BC, counted_BC)
    total_BT = zeros_BT.scatter_add(1, step_BC, -trace.logp_BC * counted_BC)
    return total_BT / count_BT.clamp(min=1), count_BT > 0


def draw_steps(trace: Trace, rows_B: Tensor, config: SequentialConfig, key: int) -> Tensor:
    """K denoising steps of each row, drawn from softmax(w / temperature): [K, B] int64.

    Without replacement, by Gumbel's top-k. A row of fewer than K steps takes all of them and then
    again, by the same order. Temperature inf: uniform; 0: the K largest w.
    """
    num_steps = int(trace.unmask_step_BC.max()) + 1
    surprisal_BT, real_BT = step_surprisal(trace, scorable(trace, config), num_steps)
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
    hidden. Scored are the tokens committed at s; candidates, scored if the policy finds them
    likely enough, are the tokens committed later: where attention is block-causal, those of the
    same block.
    """
    step_J = draw_steps(trace, rows_B, config, key).T.flatten()
    own = config.low_prob_threshold == NO_CANDIDATES
    views = at_steps(trace, rows_B, scorable(trace, config), step_J, own=own)
    return replace(views, candidate_min_prob=config.low_prob_threshold)


def at_steps(
    trace: Trace, rows_B: Tensor, can_BC: Tensor, step_J: Tensor, *, own: bool
) -> MaskedViews:
    """The sampler's states at some steps, as many of each row.

    Args:
        trace: of B rows.
        rows_B: [B] int64, numbers that name the rows.
        can_BC: [B, C] bool, tokens that may be scored.
        step_J: [J] int64, the steps of the first row, of the second, and so on.
        own: score the tokens committed at the step alone; else those committed later, too, are
            candidates.
    """
    row_J, order_J = number_of(rows_B, len(step_J) // max(len(rows_B), 1))

    def hide(state_M: Tensor) -> Tensor:
        step_MC = trace.unmask_step_BC[row_J[state_M]]
        return (step_MC >= step_J[state_M, None]) | (step_MC < 0)

    def asked(state_M: Tensor) -> Tensor:
        row_M = row_J[state_M]
        of_step_MC = trace.unmask_step_BC[row_M] == step_J[state_M, None]
        if own:
            return of_step_MC & can_BC[row_M]
        wanted_MC = hide(state_M) & can_BC[row_M]
        if trace.block_length:  # a state is of one block: that of its tokens
            block_MC = trace.block_BC[row_M]
            own_M = block_MC.gather(1, of_step_MC.int().argmax(1, keepdim=True))
            wanted_MC &= block_MC == own_M
        return wanted_MC

    state_N, column_N = places(asked, len(row_J), can_BC)
    later_N = trace.unmask_step_BC[row_J[state_N], column_N] > step_J[state_N]
    return MaskedViews(
        row_J=row_J,
        order_J=order_J,
        hide=hide,
        state_N=state_N,
        column_N=column_N,
        candidate_N=later_N,
        candidate_min_prob=NO_CANDIDATES,
        length_B=can_BC.sum(1),
        rows_B=rows_B,
    )


def in_order(
    trace: Trace, rows_B: Tensor, config: MaskingConfig, order_BC: Tensor, group: int
) -> MaskedViews:
    """A view for every `group` numbers of an order: hides them and what follows, scores them.

    Args:
        trace: of B rows.
        rows_B: [B] int64, numbers that name the rows.
        config: says which tokens may be scored.
        order_BC: [B, C] int64, a number for each committed token; a smaller one comes first.
        group: numbers of a view.
    """
    can_BC = scorable(trace, config)
    group_BC = torch.where(trace.committed_BC, order_BC // group, -1)
    num_groups = int(group_BC.max()) + 1 if group_BC.numel() else 1
    row_N, column_N = can_BC.nonzero(as_tuple=True)
    number_N = row_N * num_groups + group_BC[row_N, column_N]
    number_J, state_N = distinct(number_N)
    row_J, order_J = number_J // num_groups, number_J % num_groups
    by_state_N = state_N.argsort(stable=True)

    def hide(state_M: Tensor) -> Tensor:
        group_MC = group_BC[row_J[state_M]]
        return (group_MC >= order_J[state_M, None]) | (group_MC < 0)

    return MaskedViews(
        row_J=row_J,
        order_J=order_J,
        hide=hide,
        state_N=state_N[by_state_N],
        column_N=column_N[by_state_N],
        candidate_N=torch.zeros_like(state_N, dtype=torch.bool),
        candidate_min_prob=NO_CANDIDATES,
        length_B=can_BC.sum(1),
        rows_B=rows_B,
    )


@MASKINGS.implements(TraceConfig)
def trace_groups(trace: Trace, rows_B: Tensor, config: TraceConfig, key: int) -> MaskedViews:
    """A view for each group of `shrink` denoising steps (TraceRL, arXiv 2509.06949).

    It hides what was committed in the group or later, and scores what was committed in the group.
    Where attention is block-causal the steps of each block are grouped by themselves.
    """
    if not trace.block_length:
        return in_order(trace, rows_B, config, trace.unmask_step_BC, config.shrink)
    most = max(1, int(trace.unmask_step_BC.max()) + 1)
    group_BC = local_steps(trace) // config.shrink
    return in_order(trace, rows_B, config, trace.block_BC * most + group_BC, 1)


def local_steps(trace: Trace) -> Tensor:
    """The step that committed each token, counted from its block's first: [B, C]; -1 = never."""
    step_BC, block_BC = trace.unmask_step_BC, trace.block_BC - trace.block_BC[:, :1]
    most = max(1, int(step_BC.max()) + 1)
    first_BN = step_BC.new_full((len(step_BC), int(block_BC.max()) + 1), most)
    first_BC = step_BC.masked_fill(step_BC < 0, most)
    first_BN = first_BN.scatter_reduce(1, block_BC, first_BC, "amin")
    return torch.where(step_BC < 0, -1, step_BC - first_BN.gather(1, block_BC))


@MASKINGS.implements(ReplayConfig)
def replay(trace: Trace, rows_B: Tensor, config: ReplayConfig, key: int) -> MaskedViews:
    """A view for each denoising step: every token is scored in the state that committed it.

    The sum of the log-probs is the sampler's own, sum of `trace.logp_BC`, so its gradient is that
    of the trajectory's tokens, without bias.
    """
    return in_order(trace, rows_B, config, trace.unmask_step_BC, 1)


@MASKINGS.implements(LeftToRightConfig)
def left_to_right(trace: Trace, rows_B: Tensor, config: LeftToRightConfig, key: int) -> MaskedViews:
    """A view for each token, which shows the tokens before it (JustGRPO, arXiv 2601.15165).

    The sum of the log-probs is the exact log-likelihood of an autoregressive sampler.
    """
    before_BC = trace.committed_BC.cumsum(1) - 1
    return in_order(trace, rows_B, config, before_BC, 1)
