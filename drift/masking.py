"""Masking: which tokens of a completion to hide, and which hidden ones to score.

A strategy is a function (Trace, rows, config, key) -> MaskedViews. It depends on nothing but its
arguments: the same row gets the same views in any batch and on any number of ranks. Tokens that
the sampler never committed (behind the end of sequence) are hidden in every view and never
scored, as the sampler saw them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from drift import rng
from drift.config import (
    AllConfig,
    CoupledConfig,
    MaskingConfig,
    MaskingStrategy,
    RandomConfig,
    SequentialConfig,
)
from drift.types import MaskedViews, Trace

NO_CANDIDATES = 1.0  # a min_prob that scores nothing more


def _ranks_of_committed(trace: Trace, rows_B: Tensor, key: int) -> Tensor:
    """A random rank 0..n-1 for the n committed tokens of each row, C for the others: [B, C]."""
    size = trace.canvas_BC.shape[1]
    noise_BC = rng.uniform(key, rows_B[:, None], torch.arange(size, device=rows_B.device))
    order_BC = noise_BC.masked_fill(~trace.committed_BC, 2.0).argsort(dim=1).argsort(dim=1)
    return order_BC.masked_fill(~trace.committed_BC, size)


def _views(trace: Trace, chosen_KBC: Tensor) -> MaskedViews:
    """Hide and score the chosen committed tokens."""
    scored_KBC = chosen_KBC & trace.committed_BC
    return MaskedViews(
        hidden_KBC=scored_KBC | ~trace.committed_BC,
        scored_KBC=scored_KBC,
        candidate_KBC=torch.zeros_like(scored_KBC),
        candidate_min_prob=NO_CANDIDATES,
    )


def all_(trace: Trace, rows_B: Tensor, config: MaskingConfig, key: int) -> MaskedViews:
    """One view that hides and scores every token (diffu-GRPO, arXiv 2504.12216)."""
    assert isinstance(config, AllConfig)
    return _views(trace, trace.committed_BC[None])


def random_(trace: Trace, rows_B: Tensor, config: MaskingConfig, key: int) -> MaskedViews:
    """K independent views, each hides floor(ratio * n) of the n committed tokens, at least one."""
    assert isinstance(config, RandomConfig)
    count_B = (trace.committed_BC.sum(1) * config.ratio).long().clamp(min=1)
    views = [
        _ranks_of_committed(trace, rows_B, rng.stream(key, "random", k)) < count_B[:, None]
        for k in range(config.num_views)
    ]
    return _views(trace, torch.stack(views))


def coupled(trace: Trace, rows_B: Tensor, config: MaskingConfig, key: int) -> MaskedViews:
    """Pairs of views: one hides half of the committed tokens, the other the rest.

    Every token is scored exactly once in a pair, so the pair has no sampling noise in which tokens
    count (the idea of coupled-GRPO, arXiv 2506.20639, with a 50/50 split).
    """
    assert isinstance(config, CoupledConfig)
    half_B = trace.committed_BC.sum(1) // 2
    views: list[Tensor] = []
    for pair in range(config.num_views // 2):
        ranks_BC = _ranks_of_committed(trace, rows_B, rng.stream(key, "coupled", pair))
        first_BC = ranks_BC < half_B[:, None]
        views += [first_BC, ~first_BC]
    return _views(trace, torch.stack(views))


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


def sequential(trace: Trace, rows_B: Tensor, config: MaskingConfig, key: int) -> MaskedViews:
    """K states of the row's own denoising (RLDF, arXiv 2605.25638).

    The view of step s shows exactly what the sampler saw at s: tokens committed at s or later are
    hidden. Scored are the tokens committed at s; candidates, scored if the old policy finds them
    likely enough, are the tokens committed later.
    """
    assert isinstance(config, SequentialConfig)
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


STRATEGIES: dict[MaskingStrategy, Callable[[Trace, Tensor, MaskingConfig, int], MaskedViews]] = {
    MaskingStrategy.sequential: sequential,
    MaskingStrategy.random: random_,
    MaskingStrategy.coupled: coupled,
    MaskingStrategy.all: all_,
}


def build_views(trace: Trace, rows_B: Tensor, config: MaskingConfig, key: int) -> MaskedViews:
    """The K views of each row, by the chosen strategy.

    Args:
        trace: of B rows; every row has at least one committed token.
        rows_B: [B] int64, numbers that name the rows in the random numbers.
        config: of the strategy; K = config.num_views.
        key: of the random numbers, from `rng.stream`.
    """
    return STRATEGIES[config.strategy](trace, rows_B, config, key)
