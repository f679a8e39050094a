"""Hidden states of the current blocks: from the whole rows, or from a key-value cache.

`none` runs the network on whole rows at every step: exact. `prefix` and `dual` (Fast-dLLM, arXiv
2505.22618) fill a cache from the whole row when a block begins, then recompute the block alone
(dual) or the block and what stands behind it, at most `horizon` tokens (prefix); all else keeps the
keys and values it had when the block began: an approximation, whose size the trainer measures.
`block`, for block-causal attention (SDAR, arXiv 2510.06303): keys and values of a finished block
never change, so each is kept once, by one evaluation of its finished tokens, and only the block at
work is computed: exact, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from drift.common.errors import RolloutError
from drift.config.rollout import CacheMode, RolloutConfig
from drift.policy.backbone import Cache, unless_full
from drift.policy.base import Policy

PREFILL = 4096  # tokens of prompts that are computed together
KEPT = 64  # the length of a kept cache is a multiple of it: few sizes, whatever the prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The active rows of one denoising step; row a stands in slot a.

    Two rows of one untouched prompt [5, 6], block length 2, and a third row in its second block:
    Blocks(ids_AS=[[5, 6, 1, 1, 1, 1], [5, 6, 1, 1, 1, 1], [5, 7, 8, 1, 1, 0]],
           length_A=[6, 6, 5], column_A=[2, 2, 3], prompt_A=[0, 0, 2], untouched_A=[1, 1, 0],
           committing_A=[0, 0, 0], twin_A=[0, 0, 2], fresh_A=[1, 1, 0])
    """

    ids_AS: Tensor  # int64, padded at the end
    length_A: Tensor  # int64, tokens that are attended to
    column_A: Tensor  # int64, where the row's current block begins
    prompt_A: Tensor  # int64, equal for equal prompts
    untouched_A: Tensor  # bool, no step of the row is taken
    committing_A: Tensor  # bool, the block is finished: its keys and values are to be kept
    twin_A: Tensor  # int64, the first row with the same ids, so far as is known without looking
    fresh_A: Tensor  # bool, the cache must be filled anew


class Network(Protocol):
    """What speaks of the current blocks."""

    keeps_blocks: bool  # asks for one evaluation of each finished block

    def hidden(self, blocks: Blocks) -> Tensor:
        """Aligned hidden states of each row's block: [A, K, D]."""
        ...

    def move(self, source: int, target: int) -> None:
        """The row of one slot goes to another."""
        ...


class Exact:
    """Whole rows at every step."""

    keeps_blocks = False

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

    keeps_blocks = False

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


class BlockCached:
    """Finished blocks from the cache, the block at work anew: exact where attention is causal."""

    keeps_blocks = True

    def __init__(self, policy: Policy, config: RolloutConfig, slots: int, length: int):
        self.policy = policy
        self.size = config.block_length
        sizes = policy.backbone.config
        self.cache = Cache(sizes, slots, length, policy.compute_dtype(), policy.device)
        self.prompt_of = [-1] * slots  # whose keys and values begin the slot
        # of a shift: what the last finished token says of the next block's first, of each prompt
        # and of each slot's row
        self.after_prompt: dict[int, Tensor] = {}
        self.before_AD: Tensor | None = None

    def hidden(self, blocks: Blocks) -> Tensor:
        """Aligned hidden states of each row's block: [A, K, D]."""
        device = blocks.ids_AS.device
        entering = blocks.untouched_A & ~blocks.committing_A
        if bool(entering.any()):
            self.enter(blocks, entering.nonzero()[:, 0])
        columns_AK = blocks.column_A[:, None] + torch.arange(self.size, device=device)
        hidden_AKD = self.policy.backbone.step(
            blocks.ids_AS.gather(1, columns_AK),
            columns_AK,
            blocks.length_A,
            self.cache,
            self.size,
            blocks.ids_AS.shape[1],
        )
        if self.before_AD is None:
            return hidden_AKD
        rows = len(hidden_AKD)
        before_AD = self.before_AD[:rows].clone()
        kept_A1 = blocks.committing_A[:, None]
        self.before_AD[:rows] = torch.where(kept_A1, hidden_AKD[:, -1], before_AD)
        return torch.cat([before_AD[:, None], hidden_AKD[:, :-1]], dim=1)

    def enter(self, blocks: Blocks, slot_E: Tensor) -> None:
        """The finished blocks of new rows' prompts: of each prompt once, then copied."""
        wanted = {slot: int(blocks.prompt_A[slot]) for slot in slot_E.tolist()}
        held = {prompt: slot for slot, prompt in enumerate(self.prompt_of) if prompt >= 0}
        first: dict[int, int] = {}
        copies: list[tuple[int, int]] = []
        for slot, prompt in wanted.items():
            if prompt in held:
                copies.append((held[prompt], slot))
            else:
                first.setdefault(prompt, slot)
        self.copy(blocks, copies)  # before a slot that is copied from is filled anew
        if first:
            self.fill(blocks, torch.tensor(list(first.values()), device=slot_E.device))
        self.copy(blocks, [(first[p], slot) for slot, p in wanted.items() if p in first])
        for slot, prompt in wanted.items():
            self.prompt_of[slot] = prompt
            if self.before_AD is not None:
                self.before_AD[slot] = self.after_prompt[prompt]

    def copy(self, blocks: Blocks, pairs: list[tuple[int, int]]) -> None:
        pairs = [(source, target) for source, target in pairs if source != target]
        if not pairs:
            return
        source, target = torch.tensor(pairs, device=blocks.column_A.device).T
        self.cache.copy(source, target, int(blocks.column_A[target].max()))

    def fill(self, blocks: Blocks, slot_F: Tensor) -> None:
        """Keys and values of what stands before the current block, in chunks of whole blocks."""
        whole_F = blocks.column_A[slot_F]
        chunk = max(1, PREFILL // (len(slot_F) * self.size)) * self.size
        for first in range(0, int(whole_F.max()), chunk):
            last = min(first + chunk, int(whole_F.max()))
            ids_FS = blocks.ids_AS[slot_F, first:last]
            self.policy.backbone.prefill(ids_FS, None, self.cache, slot_F, start=first)
        if self.policy.backbone.config.shift:
            self.remember(blocks, slot_F)

    def remember(self, blocks: Blocks, slot_F: Tensor) -> None:
        """What the last of the finished tokens says, by their last block anew."""
        start_F = (blocks.column_A[slot_F] - self.size).clamp(min=0)
        columns_FK = start_F[:, None] + torch.arange(self.size, device=slot_F.device)
        ids_FK, keys = blocks.ids_AS[slot_F].gather(1, columns_FK), int(start_F.max()) + self.size
        hidden_FKD = self.policy.backbone.step(
            ids_FK, columns_FK, start_F + self.size, self.cache, self.size, keys, slot_F
        )
        if self.before_AD is None:
            self.before_AD = hidden_FKD.new_zeros(len(self.prompt_of), hidden_FKD.shape[2])
        prompts = blocks.prompt_A[slot_F].tolist()
        self.after_prompt |= dict(zip(prompts, hidden_FKD[:, -1], strict=True))

    def move(self, source: int, target: int) -> None:
        """The row of one slot goes to another, with its keys and values."""
        self.cache.copy(torch.tensor([source]), torch.tensor([target]))
        self.prompt_of[target], self.prompt_of[source] = self.prompt_of[source], -1
        if self.before_AD is not None:
            self.before_AD[target] = self.before_AD[source]


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


def open_cache(policy: Policy, config: RolloutConfig, slots: int, length: int) -> Network:
    """What `rollout.cache` asks for: room for `slots` rows of at most `length` tokens.

    Raises:
        RolloutError: the cache is for another kind of attention than the network has.
    """
    grid = policy.backbone.config.block_length
    mode = config.cache_for(grid)
    if mode == CacheMode.none:
        return Exact(policy, config)
    if mode == CacheMode.block:
        if not grid:
            raise RolloutError(
                "rollout.cache=block is exact for block-causal attention alone, this network's is "
                "full; use none, prefix or dual"
            )
        return BlockCached(policy, config, slots, length)
    if grid:
        raise RolloutError(
            f"rollout.cache={mode} approximates full attention; this network's is block-causal, "
            "whose cache is exact: use rollout.cache=auto or block"
        )
    return Cached(policy, config, slots, length)
