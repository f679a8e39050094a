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
from drift.learner.masking.views import hide_and_score, scorable


def noise(rows_M: Tensor, key: int | Tensor, size: int) -> Tensor:
    """A uniform number for each of `size` places of each row: [M, size] float64.

    Args:
        rows_M: [M] int64, numbers that name the rows.
        key: of the random numbers; or one for each row, [M] int64.
        size: places.
    """
    key = key[:, None] if isinstance(key, Tensor) else key
    return rng.uniform(key, rows_M[:, None], torch.arange(size, device=rows_M.device))


def random_ranks(chosen_MC: Tensor, rows_M: Tensor, key: int | Tensor) -> Tensor:
    """A random rank 0..n-1 for the n chosen tokens of each row, C for the others: [M, C]."""
    size = chosen_MC.shape[1]
    noise_MC = noise(rows_M, key, size).masked_fill(~chosen_MC, 2.0)
    return noise_MC.argsort(dim=1).argsort(dim=1).masked_fill(~chosen_MC, size)


@MASKINGS.implements(AllConfig)
def all_(trace: Trace, rows_B: Tensor, config: AllConfig, key: int) -> MaskedViews:
    """K views that hide and score every token (diffu-GRPO, arXiv 2504.12216).

    More than one view makes sense where they differ by their prompt masks.
    """

    def chosen(row_M: Tensor, view_M: Tensor) -> Tensor:
        return torch.ones_like(trace.committed_BC[row_M])

    return hide_and_score(trace, rows_B, config, config.num_views, chosen)


@MASKINGS.implements(RandomConfig)
def random_(trace: Trace, rows_B: Tensor, config: RandomConfig, key: int) -> MaskedViews:
    """K independent views, each hides floor(ratio * n) of the n tokens, at least one."""
    can_BC = scorable(trace, config)
    count_B = (can_BC.sum(1) * config.ratio).long().clamp(min=1)
    key_K = rng.streams(key, "random", config.num_views, rows_B.device)

    def chosen(row_M: Tensor, view_M: Tensor) -> Tensor:
        ranks_MC = random_ranks(can_BC[row_M], rows_B[row_M], key_K[view_M])
        return ranks_MC < count_B[row_M, None]

    return hide_and_score(trace, rows_B, config, config.num_views, chosen)


@MASKINGS.implements(CoupledConfig)
def coupled(trace: Trace, rows_B: Tensor, config: CoupledConfig, key: int) -> MaskedViews:
    """Pairs of views: one hides half of the tokens, the other the rest.

    Every token is scored exactly once in a pair, so the pair has no sampling noise in which tokens
    count (the idea of coupled-GRPO, arXiv 2506.20639, with a 50/50 split).
    """
    can_BC = scorable(trace, config)
    half_B = can_BC.sum(1) // 2
    key_P = rng.streams(key, "coupled", config.num_views // 2, rows_B.device)

    def chosen(row_M: Tensor, view_M: Tensor) -> Tensor:
        ranks_MC = random_ranks(can_BC[row_M], rows_B[row_M], key_P[view_M // 2])
        return (ranks_MC < half_B[row_M, None]) ^ (view_M % 2 == 1)[:, None]

    return hide_and_score(trace, rows_B, config, config.num_views, chosen)


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
    triples, size = config.num_views // 3, trace.canvas_BC.shape[1]
    draw_TB = torch.stack(
        [rng.uniform(rng.stream(key, "ratio", triple), rows_B) for triple in range(triples)]
    )
    ratio_TB = config.min_ratio + (config.max_ratio - config.min_ratio) * draw_TB
    key_T = rng.streams(key, "part", triples, rows_B.device)

    def chosen(row_M: Tensor, view_M: Tensor) -> Tensor:
        triple_M, third_M1 = view_M // 3, (view_M % 3)[:, None]
        noise_MC = noise(rows_B[row_M], key_T[triple_M], size)
        part_MC = noise_MC < ratio_TB[triple_M, row_M][:, None]
        return (third_M1 == 0) | (part_MC == (third_M1 == 1))

    weight_T3B = torch.stack([torch.ones_like(ratio_TB), 1 / ratio_TB, 1 / (1 - ratio_TB)], dim=1)
    weight_KB = weight_T3B.flatten(0, 1) / (2 * triples)
    return hide_and_score(trace, rows_B, config, config.num_views, chosen, weight_KB)
