"""One transformer for every family, in training and in rollout.

RMSNorm, rotary positions, (grouped-query) attention, SwiGLU. A family sets sizes, constants, biases
and who attends to whom: `block_length=0`, every token to its whole row (LLaDA, arXiv 2502.09992;
Dream, arXiv 2508.15487); B > 0, block-causal: to its own block of B and the blocks before (BD3LM,
arXiv 2503.09573; SDAR, arXiv 2510.06303). Blocks are counted from position 0 of the row, the prompt
included. The shift of Dream's logits is in base.py.

Three ways through the same layers: `forward` (everything), `prefill` (fill a cache) and `step`
(some columns of each row, the rest from the cache).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from drift.config.model import AttentionBackend
from drift.policy.attention import BACKENDS, Attend
from drift.policy.states import StatesAttend

Linear = Callable[[Tensor], Tensor]
Use = Callable[[Linear, Tensor], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    vocab_size: int  # rows of the embedding and of the head
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_size: int
    rope_theta: float
    norm_eps: float
    max_positions: int
    qkv_bias: bool
    tie_head: bool
    head_size: int
    qk_norm: bool = False  # each head's queries and keys are normed before they are rotated
    block_length: int = 0  # B of block-causal attention; 0 = every token attends to its whole row
    shift: bool = False  # row i of the network speaks of position i + 1


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (float64 for float64) as official code does."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype.itemsize >= 4:  # a wide stream: fused, one tensor less kept for backward
            normed = F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)
        else:
            normed = F.rms_norm(x.float(), x.shape[-1:], None, self.eps).to(x.dtype) * self.weight
        if torch.is_autocast_enabled(x.device.type):  # once here, not in each linear layer
            normed = normed.to(torch.get_autocast_dtype(x.device.type))
        return normed


def rope_tables(positions: Tensor, head_size: int, theta: float) -> Tensor:
    """cos and sin of the half-rotation RoPE: [2, *positions.shape, 1, head_size / 2] float32."""
    powers = torch.arange(0, head_size, 2, device=positions.device).float() / head_size
    angles = positions.float()[..., None, None] * theta**-powers
    return torch.stack([angles.cos(), angles.sin()])


def widened(x: Tensor) -> Tensor:
    """In float32; float64 stays as it is."""
    return x if x.dtype.itemsize >= 4 else x.float()


def rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Apply RoPE in float32: [B, S, heads, head_size], tables from `rope_tables` of [B or 1, S]."""
    (first, second), (cos, sin) = widened(x).chunk(2, dim=-1), tables.to(widened(x).dtype)
    turned = torch.cat(
        [
            torch.addcmul(first * cos, second, sin, value=-1),
            torch.addcmul(second * cos, first, sin),
        ],
        dim=-1,
    )
    return turned.to(x.dtype)


def pick(x_BSD: Tensor, columns_BQ: Tensor) -> Tensor:
    """Some columns of each row: [B, Q, D]."""
    return x_BSD.gather(1, columns_BQ[..., None].expand(-1, -1, x_BSD.shape[-1]))


def pick_tables(tables: Tensor, columns_BQ: Tensor) -> Tensor:
    """RoPE tables of some columns of each row: [2, B, Q, ...], from [2, B or 1, S, ...]."""
    if tables.shape[1] == 1:
        return tables[:, 0][:, columns_BQ]
    rows = torch.arange(len(columns_BQ), device=columns_BQ.device)[:, None]
    return tables[:, rows, columns_BQ]


def unless_full(lengths_B: Tensor | None, size: int) -> Tensor | None:
    """None where every row has `size` tokens: then attention needs no mask."""
    return None if lengths_B is None or bool((lengths_B == size).all()) else lengths_B


class Cache:
    """Keys and values of every layer for a number of slots, one row each.

    Each row has one column more than the longest row: what a batch pads its columns with is written
    there and never attended to.
    """

    def __init__(
        self,
        config: BackboneConfig,
        slots: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.length = length
        size = (slots, length + 1, config.num_kv_heads, config.head_size)
        like = torch.empty(0, dtype=dtype, device=device)
        self.layers = [
            (like.new_zeros(size), like.new_zeros(size)) for _ in range(config.num_layers)
        ]

    def fits(self, slots: int, length: int, dtype: torch.dtype) -> bool:
        """Whether it is of exactly that size and type."""
        store = self.layers[0][0]
        return (len(store), self.length, store.dtype) == (slots, length, dtype)

    def write(self, layer: int, k: Tensor, v: Tensor, slots_B1: Tensor, columns_BQ: Tensor) -> None:
        for store, new in zip(self.layers[layer], (k, v), strict=True):
            store[slots_B1, columns_BQ] = new.to(store.dtype)

    def read(self, layer: int, rows: int | Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """The first columns of the first so many slots, or of some slots [A]: then a copy."""
        keys, values = self.layers[layer]
        if isinstance(rows, int):
            return keys[:rows, :columns], values[:rows, :columns]
        return keys[rows, :columns], values[rows, :columns]

    def copy(self, sources: Tensor, targets: Tensor, columns: int | None = None) -> None:
        """Overwrite the slots `targets` by the slots `sources`, in their first columns or all."""
        for store in (t for layer in self.layers for t in layer):
            store[targets, :columns] = store[sources, :columns]


class Attention(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.head_size = config.head_size
        q_size, kv_size = (n * self.head_size for n in (config.num_heads, config.num_kv_heads))
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.out_proj = nn.Linear(q_size, config.hidden_size, bias=False)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(self.head_size, config.norm_eps) for _ in range(2))

    def keys_values(self, x: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (p(x).unflatten(-1, (-1, self.head_size)) for p in (self.k_proj, self.v_proj))
        return rotate(self.k_norm(k) if self.qk_norm else k, tables), v

    def forward(
        self,
        x: Tensor,
        tables: Tensor,
        k: Tensor,
        v: Tensor,
        attend: Attend,
        query_BQ: Tensor | None = None,
    ) -> Tensor:
        """The mix of the values, for all queries; or for the columns `query_BQ` alone."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_size))
        mixed = attend(rotate(self.q_norm(q) if self.qk_norm else q, tables), k, v).flatten(2)
        return self.out_proj(mixed if query_BQ is None else pick(mixed, query_BQ))


class Query(NamedTuple):
    """What is wanted of the last layer."""

    columns_BQ: Tensor  # int64
    attend: Attend | None  # of these columns alone; None: all must attend before some are picked


class Block(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.down_proj = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, tables: Tensor, attend: Attend, query: "Query | None" = None
    ) -> Tensor:
        """Every column; only those of the query go on, if there is one."""
        h = self.attn_norm(x)
        k, v = self.attn.keys_values(h, tables)
        if query is None or query.attend is None:
            columns_BQ = None if query is None else query.columns_BQ
            return self.finish(x, h, tables, k, v, attend, columns_BQ)
        x, h = pick(x, query.columns_BQ), pick(h, query.columns_BQ)
        return self.finish(x, h, pick_tables(tables, query.columns_BQ), k, v, query.attend)

    def finish(
        self,
        x: Tensor,
        h: Tensor,
        tables: Tensor,
        k: Tensor,
        v: Tensor,
        attend: Attend,
        query_BQ: Tensor | None = None,
    ) -> Tensor:
        """Attention and MLP of the columns x, whose norm is h.

        query_BQ: the columns that go on after attention, [B, Q]; None: all.
        """
        mixed = self.attn(h, tables, k, v, attend, query_BQ)
        x = (x if query_BQ is None else pick(x, query_BQ)) + mixed
        h = self.mlp_norm(x)
        if torch.is_grad_enabled():
            return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))
        opened = F.silu(self.gate_proj(h), inplace=True).mul_(self.up_proj(h))
        return x.add_(self.down_proj(opened))


class Head(nn.Linear):
    """Hidden states to logits.

    ZeRO-3 gathers the weight whenever the module is called, and all ranks must call it equally
    often; so a loss in chunks, whose number differs by rank, is made inside one call.
    """

    def forward(self, input: Tensor, use: Use | None = None) -> Any:
        """Logits [N, V] of hidden states [N, D]; or what `use` makes of the layer and of them."""
        return super().forward(input) if use is None else use(super().forward, input)


class Backbone(nn.Module):
    """Token ids to the hidden states before the head."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # recompute each block in the backward pass
        self.attention = AttentionBackend.sdpa
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = Head(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_head:
            self.head.weight = self.embed.weight

    def tables(self, positions: Tensor) -> Tensor:
        return rope_tables(positions, self.config.head_size, self.config.rope_theta)

    def reach(self, lengths_B: Tensor | None, columns_BQ: Tensor, num_keys: int) -> Tensor | None:
        """How many keys the queries at some columns see: [B], or [B, Q] where it differs by query.

        None: all `num_keys`.
        """
        size = self.config.block_length
        if not size:
            return lengths_B
        ends_BQ = ((columns_BQ // size + 1) * size).clamp(max=num_keys)
        return ends_BQ if lengths_B is None else torch.minimum(ends_BQ, lengths_B[:, None])

    def attend(self, lengths_B: Tensor | None, columns_BQ: Tensor, num_keys: int) -> Attend:
        """The attention of some columns of each row over its first `num_keys`."""
        lengths_B = unless_full(lengths_B, num_keys)
        return BACKENDS[self.attention](self.reach(lengths_B, columns_BQ, num_keys), num_keys)

    def forward(
        self,
        ids_BS: Tensor,
        lengths_B: Tensor | None = None,
        query_BQ: Tensor | None = None,
        block_BJ: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the last norm.

        Args:
            ids_BS: [B, S] int64, rows padded at the end; with `block_BJ` the last J * block_length
                columns are states.
            lengths_B: [B] int64, real tokens of each row without states; None: all. Padding is
                never attended to, so a row's result does not depend on it.
            query_BQ: [B, Q] int64, the columns that are wanted; None: all. The last layer then
                computes nothing else but keys and values.
            block_BJ: [B, J] int64, of which block of its row each state is a copy
                (drift/policy/states.py); of block-causal networks.

        Returns:
            [B, S or Q, D] in the weights' dtype; values at padding are finite and mean nothing.
        """
        size = ids_BS.shape[1]
        columns_BS = torch.arange(size, device=ids_BS.device)[None]
        query: Query | None = None
        if block_BJ is None:
            tables = self.tables(columns_BS)
            attend = self.attend(lengths_B, columns_BS, size)
            if query_BQ is not None:
                query = Query(query_BQ, self.attend(lengths_B, query_BQ, size))
        else:
            positions_BS, attend = self.with_states(lengths_B, block_BJ, size)
            tables = self.tables(positions_BS)
            query = None if query_BQ is None else Query(query_BQ, None)
        x = self.embed(ids_BS)
        for i, block in enumerate(self.blocks):
            wanted = query if i == self.config.num_layers - 1 else None
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, tables, attend, wanted, use_reentrant=False)
            else:
                x = block(x, tables, attend, wanted)
        return self.norm(x)

    def with_states(
        self, lengths_B: Tensor | None, block_BJ: Tensor, num_columns: int
    ) -> tuple[Tensor, Attend]:
        """The position of each column, [B, S], and attention with states behind the rows."""
        size, device = self.config.block_length, block_BJ.device
        rows, num_states = block_BJ.shape
        clean = num_columns - num_states * size
        columns_BC = torch.arange(clean, device=device).expand(rows, -1)
        start_BJ = block_BJ * size
        inside_BJK = start_BJ[..., None] + torch.arange(size, device=device)
        reach_BC = self.reach(lengths_B, columns_BC, clean)
        assert reach_BC is not None
        before_BJ = start_BJ.clamp(max=clean).repeat_interleave(size, dim=1)
        attend = StatesAttend(
            reach_MS=torch.cat([reach_BC.expand(rows, -1), before_BJ], dim=1),
            num_clean=clean,
            block_length=size,
        )
        return torch.cat([columns_BC, inside_BJK.flatten(1)], dim=1), attend

    @torch.no_grad()
    def prefill(
        self,
        ids_BS: Tensor,
        lengths_B: Tensor | None,
        cache: Cache,
        slots_B: Tensor,
        query_BQ: Tensor | None = None,
        start: int = 0,
    ) -> Tensor | None:
        """Fill the slots of a cache with the keys and values of whole rows, or of a part of them.

        Args:
            ids_BS: [B, S] int64, the columns from `start` on.
            lengths_B: [B] int64, real tokens of each row; None: all.
            cache: of which the columns before `start` are filled.
            slots_B: [B] int64, the slot of each row.
            query_BQ: [B, Q] int64, the columns that are wanted; not of a part.
            start: where a block begins, if attention is block-causal; 0 if it is full.

        Returns:
            Hidden states of the columns `query_BQ`, [B, Q, D]; None without them.
        """
        end = start + ids_BS.shape[1]
        columns_1S = torch.arange(start, end, device=ids_BS.device)[None]
        tables = self.tables(columns_1S)
        attend = self.attend(lengths_B, columns_1S, end)
        x = self.embed(ids_BS)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            h = block.attn_norm(x)
            k, v = block.attn.keys_values(h, tables)
            cache.write(i, k, v, slots_B[:, None], columns_1S)
            if start:
                k, v = cache.read(i, slots_B, end)
            if i < self.config.num_layers - 1:
                x = block.finish(x, h, tables, k, v, attend)
            elif query_BQ is not None:
                x, h, tables = pick(x, query_BQ), pick(h, query_BQ), pick_tables(tables, query_BQ)
                attend = self.attend(lengths_B, query_BQ, end)
                return self.norm(block.finish(x, h, tables, k, v, attend))
        return None

    @torch.no_grad()
    def step(
        self,
        ids_AQ: Tensor,
        columns_AQ: Tensor,
        lengths_A: Tensor | None,
        cache: Cache,
        num_wanted: int,
        num_keys: int,
        slots_A: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of some columns; the others' keys and values come from the cache.

        Args:
            ids_AQ: [A, Q] int64, row a in slot a.
            columns_AQ: [A, Q] int64, where the ids stand; `cache.length` for what is padding.
            lengths_A: [A] int64, the keys of each row that all its columns see: its real tokens, or
                up to the end of the block that they stand in; None: all `num_keys`.
            cache: keeps the new keys and values of these columns.
            num_wanted: the first columns of each row, whose hidden states are returned.
            num_keys: columns of the cache that are looked at, at least the longest length.
            slots_A: [A] int64, the slot of each row where it is not the first A.

        Returns:
            [A, num_wanted, D].
        """
        rows = len(ids_AQ)
        slots_A1 = torch.arange(rows, device=ids_AQ.device)[:, None]
        if slots_A is not None:
            slots_A1 = slots_A[:, None]
        tables = self.tables(columns_AQ)
        attend = BACKENDS[self.attention](lengths_A, num_keys)
        x = self.embed(ids_AQ)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            h = block.attn_norm(x)
            cache.write(i, *block.attn.keys_values(h, tables), slots_A1, columns_AQ)
            if i == self.config.num_layers - 1 and num_wanted < ids_AQ.shape[1]:
                x, h, tables = x[:, :num_wanted], h[:, :num_wanted], tables[:, :, :num_wanted]
            keys, values = cache.read(i, rows if slots_A is None else slots_A, num_keys)
            x = block.finish(x, h, tables, keys, values, attend)
        return self.norm(x)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Random weights for a model that is trained from nothing."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            elif parameter.dim() == 2:
                scale = 0.02 if name.startswith("embed") else parameter.shape[1] ** -0.5
                if name.endswith(("out_proj.weight", "down_proj.weight")):
                    scale *= 0.5
                parameter.normal_(std=scale, generator=generator)
