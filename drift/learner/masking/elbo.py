"""Maskings whose views are weighted by 1/t, for the evidence lower bound (ELBO):

    log p(y) >= E_{t ~ U(0,1)} (1/t) sum_i 1[i hidden] log p(y_i | what is not hidden),

every token hidden with probability t (LLaDA, arXiv 2502.09992; MDLM, arXiv 2406.07524). Equality
would need that every order of unmasking gives the same probability. `elbo` and `quadrature`
estimate it, `block` does not.
"""

import numpy as np
import torch
from torch import Tensor

from drift.common import rng
from drift.common.types import MaskedViews, Trace
from drift.config.masking import MASKINGS, BlockConfig, ElboConfig, QuadratureConfig, Times
from drift.learner.masking.basic import hide_and_score, random_ranks


def draw_times(rows_B: Tensor, num_views: int, times: Times, key: int) -> Tensor:
    """K masking times of each row in (0, 1): [K, B] float64; one of them at random is uniform.

    independent: each is uniform. antithetic: a uniform t and 1 - t in turn. stratified: one uniform
    number, by which the K equal parts of (0, 1) are entered alike.
    """
    views_K1 = torch.arange(num_views, device=rows_B.device)[:, None]
    if times == Times.stratified:
        return (views_K1 + rng.uniform(key, rows_B)) / num_views
    if times == Times.antithetic:
        first_KB = rng.uniform(key, rows_B, views_K1 // 2)
        return torch.where(views_K1 % 2 == 0, first_KB, 1 - first_KB)
    return rng.uniform(key, rows_B, views_K1)


@MASKINGS.implements(ElboConfig)
def elbo(trace: Trace, rows_B: Tensor, config: ElboConfig, key: int) -> MaskedViews:
    """K unbiased draws of the ELBO, averaged.

    Each committed token is hidden with probability t and weighs 1 / (K t). With `exact_count`,
    floor(t (n + 1)) of the n tokens are hidden, a number uniform over 0..n, and weigh
    (n + 1) / (K count): the same expectation, with less noise where t is small (ESPO, arXiv
    2512.03759). Antithetic views come in pairs, the second hides what the first shows, so that
    every token is scored once in a pair (ESPO; the idea of coupled-GRPO).
    """
    time_KB = draw_times(rows_B, config.num_views, config.times, rng.stream(key, "times"))
    length_B = trace.committed_BC.sum(1).double()
    whole_B = length_B / (length_B + 1) if config.exact_count else torch.ones_like(length_B)
    views: list[Tensor] = []
    shares: list[Tensor] = []
    for k, time_B in enumerate(time_KB):
        stream = rng.stream(key, "elbo", k)
        if config.times == Times.antithetic and k % 2:
            hidden_BC, share_B = ~views[-1], whole_B - shares[-1]
        elif config.exact_count:
            count_B = (time_B * (length_B + 1)).floor()
            ranks_BC = random_ranks(trace.committed_BC, rows_B, stream)
            hidden_BC, share_B = ranks_BC < count_B[:, None], count_B / (length_B + 1)
        else:
            hidden_BC, share_B = bernoulli(trace, rows_B, time_B, stream), time_B
        views.append(hidden_BC)
        shares.append(share_B)
    share_KB = torch.stack(shares)
    weight_KB = torch.where(share_KB > 0, 1 / (config.num_views * share_KB), 0.0)
    return hide_and_score(trace, torch.stack(views), weight_KB.float())


def bernoulli(trace: Trace, rows_B: Tensor, time_B: Tensor, key: int) -> Tensor:
    """Each token with probability t: [B, C] bool."""
    positions_C = torch.arange(trace.canvas_BC.shape[1], device=rows_B.device)
    return rng.uniform(key, rows_B[:, None], positions_C) < time_B[:, None]


@MASKINGS.implements(QuadratureConfig)
def quadrature(trace: Trace, rows_B: Tensor, config: QuadratureConfig, key: int) -> MaskedViews:
    """Gauss-Legendre points t_k over (0, 1) with weights g_k; one mask at each.

    Only the masks are drawn, not the times: sum_k (g_k / t_k) sum_i 1[i hidden] log p_i (GDPO's
    semi-deterministic estimate, arXiv 2510.08554). The integral over t is that of a polynomial of
    degree n - 1, so K points with 2K >= n leave no bias against the ELBO.
    """
    points, gauss = np.polynomial.legendre.leggauss(config.num_views)
    times, weights = (points + 1) / 2, gauss / 2
    ones_B = torch.ones(len(rows_B), dtype=torch.float64, device=rows_B.device)
    views = [
        bernoulli(trace, rows_B, ones_B * float(time), rng.stream(key, "quadrature", k))
        for k, time in enumerate(times)
    ]
    weight_KB = torch.tensor(weights / times, device=rows_B.device)[:, None] * ones_B
    return hide_and_score(trace, torch.stack(views), weight_KB.float())


@MASKINGS.implements(BlockConfig)
def block(trace: Trace, rows_B: Tensor, config: BlockConfig, key: int) -> MaskedViews:
    """K blocks of the canvas: the blocks before are shown, of the block some, behind it nothing.

    As the sampler's states are (SPG's block-wise masking, arXiv 2510.09541): a row's blocks are
    drawn without replacement, then again; in the block 1 to all of its tokens are hidden, every
    number as likely. Every hidden token is scored and weighs 1 / (K t), t being the hidden share
    of the row's tokens.

    So as in SPG's code, and no estimate of the ELBO: that asks a mean of 1 for the sum of a token's
    weights, and here it is n times the mean of 1[hidden] / (number hidden), small in the first
    block and large in the last. On 256 tokens in blocks of 32 it is 0.07, 0.21, 0.38, 0.58, 0.83,
    1.17, 1.70 and 3.07 in blocks 1 to 8; over all tokens the mean is 1.
    """
    committed_BC, device = trace.committed_BC, rows_B.device
    size = trace.canvas_BC.shape[1]
    block_C = torch.arange(size, device=device) // config.block_length
    num_blocks = int(block_C[-1]) + 1
    in_block_BN = torch.zeros(len(rows_B), num_blocks, device=device).index_add(
        1, block_C, committed_BC.float()
    )
    order_BN = random_ranks(in_block_BN > 0, rows_B, rng.stream(key, "blocks")).argsort(dim=1)
    real_B1 = (in_block_BN > 0).sum(1, keepdim=True).clamp(min=1)
    views: list[Tensor] = []
    for k in range(config.num_views):
        chosen_B1 = order_BN.gather(1, k % real_B1)
        here_BC = (block_C == chosen_B1) & committed_BC
        noise_B = rng.uniform(rng.stream(key, "count", k), rows_B)
        count_B = (noise_B * here_BC.sum(1)).long() + 1
        ranks_BC = random_ranks(here_BC, rows_B, rng.stream(key, "block", k))
        views.append((ranks_BC < count_B[:, None]) | ((block_C > chosen_B1) & committed_BC))
    hidden_KBC = torch.stack(views)
    share_KB = hidden_KBC.sum(2) / committed_BC.sum(1).clamp(min=1)
    return hide_and_score(trace, hidden_KBC, 1 / (config.num_views * share_KB))
