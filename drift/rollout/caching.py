"""Hidden states of the current blocks: from the whole rows, or from a key-value cache.

`none` runs the network on whole rows at every step: exact. `prefix` and `dual` (Fast-dLLM, arXiv
2505.22618) fill a cache from the whole row when a block begins, then recompute the block alone
(dual) or the block and what stands behind it, at most `horizon` tokens (prefix); all else keeps the
keys and values it had when the block began: an approximation, whose size the trainer measures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from drift.common.errors import RolloutError
from drift.config.rollout import CacheMode, RolloutConfig
from drift.policy.backbone import Cache, unless_full
from drift.policy.base import Policy

KEPT = 64  # the length of a kept cache is a multiple of it: few sizes, whatever the prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The active rows of one denoising step; row a stands in slot a.

    Two rows of one untouched prompt [5, 6], block length 2, and a third row in its second block:
    Blocks(ids_AS=[[5, 6, 1, 1, 1, 1], [5, 6, 1, 1, 1, 1], [5, 7, 8, 1, 1, 0]],
           length_A=[6, 6, 5], column_A=[2, 2, 3], twin_A=[0, 0, 2], fresh_A=[1, 1, 0])
    """

    ids_AS: Tensor  # int64, padded at the end
    length_A: Tensor  # int64, real tokens
    column_A: Tensor  # int64, where the row's current block begins
    twin_A: Tensor  # int64, the first row with the same ids, so far as is known without looking
    fresh_A: Tensor  # bool, the cache must be filled anew


class Exact:
    """Whole rows at every step."""

    def __init__(self, policy: Policy, config: RolloutConfig):
        self.policy = policy
        self.block_length = config.block_length

    def hidden(self, blocks: Blocks) -> Tensor:
        """Aligned hidden states of each row's block: [A, K, D]; twins are computed once."""
        device = blocks.ids_AS.device
        unique_U, place_A = blocks.twin_A.unique(return_inverse=True)
        columns_UK = blocks.column_A[unique_U, None] + torch.arange(self.block_length).to(device)
        ids_US, length_U = blocks.ids_AS[unique_U], blocks.length_A[unique_U]
        return self.policy.hidden_at(ids_US, length_U, columns_UK)[place_A]

    def move(self, source: int, target: int) -> None:
        """The row of one slot goes to another: nothing is kept here."""


class Cached:
    """Whole rows when a block begins, then the block and its horizon."""

    def __init__(self, policy: Policy, config: RolloutConfig, slots: int, length: int):
        self.policy = policy
        self.block_length = config.block_length
        horizon = 0 if config.cache == CacheMode.dual else config.horizon
        self.horizon = config.gen_length if horizon is None else min(horizon, config.gen_length)
        if config.compile:
            self.cache = kept_cache(policy, slots, cache_length(config, length))
            self.step = compiled(policy, self.cache)
        else:
            sizes = policy.backbone.config
            self.cache = Cache(sizes, slots, length, policy.compute_dtype(), policy.device)
            self.step = policy.backbone.step

    def hidden(self, blocks: Blocks) -> Tensor:
        """Aligned hidden states of each row's block: [A, K, D]."""
        everything = bool(blocks.fresh_A.all())
        filled = self.fill(blocks, wanted=everything)
        if filled is not None:  # every row began a block: the whole rows have said it all
            return filled
        start_A = self.policy.source(blocks.column_A)
        end_A = torch.minimum(blocks.column_A + self.block_length + self.horizon, blocks.length_A)
        width, num_keys = int((end_A - start_A).max()), blocks.ids_AS.shape[1]
        columns_AQ = start_A[:, None] + torch.arange(width, device=start_A.device)
        real_AQ = columns_AQ < end_A[:, None]
        ids_AQ = blocks.ids_AS.gather(1, columns_AQ.where(real_AQ, 0))
        columns_AQ = columns_AQ.where(real_AQ, self.cache.length)
        length_A = unless_full(blocks.length_A, num_keys)
        return self.step(ids_AQ, columns_AQ, length_A, self.cache, self.block_length, num_keys)

    def fill(self, blocks: Blocks, wanted: bool) -> Tensor | None:
        """Whole rows into the cache where a block begins; twins are computed once, then copied.

        Returns:
            The hidden states of every row's block if they are `wanted`: then all rows are fresh.
        """
        device = blocks.ids_AS.device
        slots_A = torch.arange(len(blocks.twin_A), device=device)
        first_F = (blocks.fresh_A & (blocks.twin_A == slots_A)).nonzero()[:, 0]
        hidden_FKD = None
        if len(first_F):
            length_F = blocks.length_A[first_F]
            ids_FS = blocks.ids_AS[first_F, : int(length_F.max())]
            columns_FK = blocks.column_A[first_F, None] + torch.arange(self.block_length).to(device)
            query_FK = self.policy.source(columns_FK) if wanted else None
            hidden_FKD = self.policy.backbone.prefill(
                ids_FS, length_F, self.cache, first_F, query_FK
            )
        copies = (blocks.fresh_A & (blocks.twin_A != slots_A)).nonzero()[:, 0]
        if len(copies):
            self.cache.copy(blocks.twin_A[copies], copies)
        if hidden_FKD is None:
            return None
        return hidden_FKD[torch.searchsorted(first_F, blocks.twin_A)]

    def move(self, source: int, target: int) -> None:
        """The row of one slot goes to another, with its keys and values."""
        self.cache.copy(torch.tensor([source]), torch.tensor([target]))


def cache_length(config: RolloutConfig, longest: int) -> int:
    """Columns of a cache for rows of at most `longest` tokens."""
    return ceil(longest / KEPT) * KEPT if config.compile else longest


def kept_cache(policy: Policy, slots: int, length: int) -> Cache:
    """The policy's cache of that size: a CUDA graph writes to fixed addresses, torch keeps each."""
    dtype, kept = policy.compute_dtype(), policy.kept_cache
    if kept is None or not kept.fits(slots, length, dtype):
        policy.kept_cache = None  # its memory first
        sizes = policy.backbone.config
        kept = policy.kept_cache = Cache(sizes, slots, length, dtype, policy.device)
    return kept


def compiled(policy: Policy, cache: Cache) -> Callable[..., Tensor]:
    """`Backbone.step` by torch.compile; on a GPU it is recorded and replayed as a CUDA graph.

    Few shapes in a decode: idle slots are padding with one key, all of the cache is looked at. The
    graph is told that the cache stays where it is, and recorded anew for another cache.

    Raises:
        RolloutError: when it first runs, if it cannot be compiled here.
    """
    from torch._dynamo import exc, mark_static_address

    stores = [store for layer in cache.layers for store in layer]
    for store in stores:
        mark_static_address(store, guard=False)
    run = torch.compile(policy.backbone.step, fullgraph=True, mode="reduce-overhead")

    def step(
        ids_AQ: Tensor,
        columns_AQ: Tensor,
        length_A: Tensor | None,
        cache: Cache,
        num_wanted: int,
        num_keys: int,
    ) -> Tensor:
        rows = len(ids_AQ)
        if length_A is None:
            length_A = torch.full((rows,), num_keys, device=ids_AQ.device)
        idle = (0, len(stores[0]) - rows)
        ids_AQ = F.pad(ids_AQ, (0, 0, *idle))
        columns_AQ = F.pad(columns_AQ, (0, 0, *idle), value=cache.length)
        length_A = F.pad(length_A, idle, value=1)
        try:
            return run(ids_AQ, columns_AQ, length_A, cache, num_wanted, cache.length)[:rows]
        except (exc.TorchDynamoException, exc.FailOnRecompileLimitHit) as error:
            reason = str(error).strip().splitlines()[0]
            raise RolloutError(f"rollout.compile=true does not work here: {reason}") from error

    return step


def open_cache(policy: Policy, config: RolloutConfig, slots: int, length: int) -> Exact | Cached:
    """What `rollout.cache` asks for: room for `slots` rows of at most `length` tokens."""
    if config.cache == CacheMode.none:
        return Exact(policy, config)
    return Cached(policy, config, slots, length)
