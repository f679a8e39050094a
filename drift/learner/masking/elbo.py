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
from drift.learner.masking.basic import noise, random_ranks
from drift.learner.masking.views import hide_and_score, scorable


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

    Each token is hidden with probability t and weighs 1 / (K t). With `exact_count`,
    floor(t (n + 1)) of the n tokens are hidden, a number uniform over 0..n, and weigh
    (n + 1) / (K count): the same expectation, with less noise where t is small (ESPO, arXiv
    2512.03759). With `least_count=1` the number is uniform over 1..n and the weight n / (K count)
    (BGPO, arXiv 2510.11683). Antithetic views come in pairs, the second hides what the first
    shows, so that every token is scored once in a pair (ESPO; the idea of coupled-GRPO).
    """
    can_BC, num_views = scorable(trace, config), config.num_views
    time_KB = draw_times(rows_B, num_views, config.times, rng.stream(key, "times"))
    length_B = can_BC.sum(1).double()
    key_K = rng.streams(key, "elbo", num_views, rows_B.device)
    paired = config.times == Times.antithetic
    choices_B = length_B + 1 - config.least_count
    count_KB = config.least_count + (time_KB * choices_B).floor()
    share_KB = count_KB / choices_B if config.exact_count else time_KB.clone()
    if paired:
        whole_B = length_B / (length_B + 1) if config.exact_count else torch.ones_like(length_B)
        share_KB[1::2] = whole_B - share_KB[::2]

    def chosen(row_M: Tensor, view_M: Tensor) -> Tensor:
        first_M = view_M - view_M % 2 if paired else view_M
        if config.exact_count:
            ranks_MC = random_ranks(can_BC[row_M], rows_B[row_M], key_K[first_M])
            hidden_MC = ranks_MC < count_KB[first_M, row_M][:, None]
        else:
            noise_MC = noise(rows_B[row_M], key_K[first_M], can_BC.shape[1])
            hidden_MC = noise_MC < time_KB[first_M, row_M][:, None]
        return hidden_MC ^ (view_M != first_M)[:, None]

    weight_KB = torch.where(share_KB > 0, 1 / (num_views * share_KB), 0.0)
    return hide_and_score(trace, rows_B, config, num_views, chosen, weight_KB)


@MASKINGS.implements(QuadratureConfig)
def quadrature(trace: Trace, rows_B: Tensor, config: QuadratureConfig, key: int) -> MaskedViews:
    """Gauss-Legendre points t_k over (0, 1) with weights g_k; one mask at each.

    Only the masks are drawn, not the times: sum_k (g_k / t_k) sum_i 1[i hidden] log p_i (GDPO's
    semi-deterministic estimate, arXiv 2510.08554). The integral over t is that of a polynomial of
    degree n - 1, so K points with 2K >= n leave no bias against the ELBO.
    """
    points, gauss = np.polynomial.legendre.leggauss(config.num_views)
    times, weights = (points + 1) / 2, gauss / 2
    time_K = torch.tensor(times, device=rows_B.device)
    key_K = rng.streams(key, "quadrature", config.num_views, rows_B.device)

    def chosen(row_M: Tensor, view_M: Tensor) -> Tensor:
        noise_MC = noise(rows_B[row_M], key_K[view_M], trace.canvas_BC.shape[1])
        return noise_MC < time_K[view_M][:, None]

    weight_K = torch.tensor(weights / times, device=rows_B.device)
    weight_KB = weight_K[:, None].expand(-1, len(rows_B))
    return hide_and_score(trace, rows_B, config, config.num_views, chosen, weight_KB)


@MASKINGS.implements(BlockConfig)
def block(trace: Trace, rows_B: Tensor, config: BlockConfig, key: int) -> MaskedViews:
    """K blocks of the answer: the blocks before are shown, of the block some, after it nothing.

    As the sampler's states are (SPG's block-wise masking, arXiv 2510.09541): a row's blocks are
    drawn without replacement, then again; in the block 1 to all of its tokens are hidden, every
    number as likely. Every hidden token is scored and weighs 1 / (K t), t being the hidden share
    of the row's tokens.

    So as in SPG's code, and no estimate of the ELBO: that asks a mean of 1 for the sum of a token's
    weights, and here it is n times the mean of 1[hidden] / (number hidden), small in the first
    block and large in the last. On 256 tokens in blocks of 32 it is 0.07, 0.21, 0.38, 0.58, 0.83,
    1.17, 1.70 and 3.07 in blocks 1 to 8; over all tokens the mean is 1.

    Where attention is block-causal the blocks are the network's, and what follows the block, which
    it does not see, is not scored.
    """
    can_BC, device = scorable(trace, config), rows_B.device
    size, num_views = can_BC.shape[1], config.num_views
    causal = trace.block_length > 0
    if causal:
        block_BC = trace.block_BC - trace.block_BC[:, :1]
    else:
        block_BC = (torch.arange(size, device=device) // config.block_length).expand_as(can_BC)
    zeros_BN = torch.zeros(len(rows_B), int(block_BC.max()) + 1, device=device)
    in_block_BN = zeros_BN.scatter_add(1, block_BC, can_BC.float())
    order_BN = random_ranks(in_block_BN > 0, rows_B, rng.stream(key, "blocks")).argsort(dim=1)
    real_B1 = (in_block_BN > 0).sum(1, keepdim=True).clamp(min=1)
    views_K = torch.arange(num_views, device=device)
    block_BK = order_BN.gather(1, views_K % real_B1)
    draws = [rng.uniform(rng.stream(key, "count", k), rows_B) for k in range(num_views)]
    count_BK = (torch.stack(draws, 1) * in_block_BN.gather(1, block_BK)).long() + 1
    key_K = rng.streams(key, "block", num_views, device)

    def chosen(row_M: Tensor, view_M: Tensor) -> Tensor:
        block_M1 = block_BK[row_M, view_M][:, None]
        here_MC = (block_BC[row_M] == block_M1) & can_BC[row_M]
        ranks_MC = random_ranks(here_MC, rows_B[row_M], key_K[view_M])
        after_MC = (block_BC[row_M] > block_M1) & (not causal)
        return (ranks_MC < count_BK[row_M, view_M][:, None]) | after_MC

    after_BN = in_block_BN.sum(1, keepdim=True) - in_block_BN.cumsum(1)  # tokens of later blocks
    hidden_BK = count_BK + after_BN.gather(1, block_BK) * (not causal)
    share_BK = hidden_BK / can_BC.sum(1, keepdim=True).clamp(min=1)
    return hide_and_score(trace, rows_B, config, num_views, chosen, 1 / (num_views * share_BK.T))
