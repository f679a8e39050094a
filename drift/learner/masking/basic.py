"""Maskings that know nothing of the order in which the tokens were committed."""

import torch
from torch import Tensor

from drift.common import rng
from drift.common.types import MaskedViews, Trace
from drift.config.masking import (
    MASKINGS,
    AllConfig,
    CoupledConfig,
    CoupledRatioConfig,
    RandomConfig,
)

NO_CANDIDATES = 1.0  # a min_prob that scores nothing more


def random_ranks(chosen_BC: Tensor, rows_B: Tensor, key: int) -> Tensor:
    """A random rank 0..n-1 for the n chosen tokens of each row, C for the others: [B, C]."""
    size = chosen_BC.shape[1]
    noise_BC = rng.uniform(key, rows_B[:, None], torch.arange(size, device=rows_B.device))
    order_BC = noise_BC.masked_fill(~chosen_BC, 2.0).argsort(dim=1).argsort(dim=1)
    return order_BC.masked_fill(~chosen_BC, size)


def hide_and_score(
    trace: Trace, chosen_KBC: Tensor, weight_KB: Tensor | None = None
) -> MaskedViews:
    """Hide and score the chosen committed tokens.

    Args:
        trace: of B rows.
        chosen_KBC: [K, B, C] bool; tokens that were never committed are left out.
        weight_KB: of the views, as in `MaskedViews`.
    """
    scored_KBC = chosen_KBC & trace.committed_BC
    return MaskedViews(
        hidden_KBC=scored_KBC | ~trace.committed_BC,
        scored_KBC=scored_KBC,
        candidate_KBC=torch.zeros_like(scored_KBC),
        candidate_min_prob=NO_CANDIDATES,
        weight_KB=weight_KB,
    )


@MASKINGS.implements(AllConfig)
def all_(trace: Trace, rows_B: Tensor, config: AllConfig, key: int) -> MaskedViews:
    """K views that hide and score every token (diffu-GRPO, arXiv 2504.12216).

    More than one view makes sense where they differ by their prompt masks.
    """
    return hide_and_score(trace, trace.committed_BC.expand(config.num_views, -1, -1))


@MASKINGS.implements(RandomConfig)
def random_(trace: Trace, rows_B: Tensor, config: RandomConfig, key: int) -> MaskedViews:
    """K independent views, each hides floor(ratio * n) of the n committed tokens, at least one."""
    count_B = (trace.committed_BC.sum(1) * config.ratio).long().clamp(min=1)
    views = [
        random_ranks(trace.committed_BC, rows_B, rng.stream(key, "random", k)) < count_B[:, None]
        for k in range(config.num_views)
    ]
    return hide_and_score(trace, torch.stack(views))


@MASKINGS.implements(CoupledConfig)
def coupled(trace: Trace, rows_B: Tensor, config: CoupledConfig, key: int) -> MaskedViews:
    """Pairs of views: one hides half of the committed tokens, the other the rest.

    Every token is scored exactly once in a pair, so the pair has no sampling noise in which tokens
    count (the idea of coupled-GRPO, arXiv 2506.20639, with a 50/50 split).
    """
    half_B = trace.committed_BC.sum(1) // 2
    views: list[Tensor] = []
    for pair in range(config.num_views // 2):
        ranks_BC = random_ranks(trace.committed_BC, rows_B, rng.stream(key, "coupled", pair))
        first_BC = ranks_BC < half_B[:, None]
        views += [first_BC, ~first_BC]
    return hide_and_score(trace, torch.stack(views))


@MASKINGS.implements(CoupledRatioConfig)
def coupled_ratio(
    trace: Trace, rows_B: Tensor, config: CoupledRatioConfig, key: int
) -> MaskedViews:
    """Triples of views: everything hidden; each token with probability u; the others.

    coupled-GRPO as DiffuCoder has it (arXiv 2506.20639): with u ~ U(min_ratio, max_ratio) drawn for
    each row and triple, a token's log-prob is (log p_all + w log p_k) / 2, where k is the view of
    the two that hides it and w is 1/u or 1/(1-u). These weights, its code's, add up to 3/2 on
    average and not to 1: ratios and KL are of a log-prob that is half too large.
    """
    triples = config.num_views // 3
    size = trace.canvas_BC.shape[1]
    positions_C = torch.arange(size, device=rows_B.device)
    views: list[Tensor] = []
    weights: list[Tensor] = []
    for triple in range(triples):
        draw_B = rng.uniform(rng.stream(key, "ratio", triple), rows_B)
        ratio_B = config.min_ratio + (config.max_ratio - config.min_ratio) * draw_B
        noise_BC = rng.uniform(rng.stream(key, "part", triple), rows_B[:, None], positions_C)
        part_BC = noise_BC < ratio_B[:, None]
        views += [torch.ones_like(part_BC), part_BC, ~part_BC]
        weights += [torch.ones_like(ratio_B), 1 / ratio_B, 1 / (1 - ratio_B)]
    weight_KB = (torch.stack(weights) / (2 * triples)).float()
    return hide_and_score(trace, torch.stack(views), weight_KB)
