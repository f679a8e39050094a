"""One bidirectional transformer for every family, in training and in rollout.

RMSNorm, rotary positions, (grouped-query) attention without a causal mask, SwiGLU. A family sets
sizes, constants and biases; the shift of Dream's logits is in base.py, from the family's file.
Source: LLaDA (arXiv 2502.09992) and Dream (arXiv 2508.15487) with their published config.json.

Three ways through the same layers: `forward` (everything), `prefill` (fill a cache) and `step`
(some columns of each row, the rest from the cache).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from drift.config.model import AttentionBackend
from drift.policy.attention import BACKENDS, Attend


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

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 as the official code does."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:  # a float32 stream: fused, one tensor less kept for backward
            normed = F.rms_norm(x, x.shape[-1:], self.weight.float(), self.eps)
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


def rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Apply RoPE in float32: [B, S, heads, head_size], tables from `rope_tables` of [B or 1, S]."""
    (first, second), (cos, sin) = x.float().chunk(2, dim=-1), tables
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

    def read(self, layer: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        keys, values = self.layers[layer]
        return keys[:rows, :columns], values[:rows, :columns]

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Overwrite the slots `targets` by the slots `sources`."""
        for store in (t for layer in self.layers for t in layer):
            store[targets] = store[sources]


class Attention(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.head_size = config.head_size
        kv_size = config.num_kv_heads * self.head_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def keys_values(self, x: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (p(x).unflatten(-1, (-1, self.head_size)) for p in (self.k_proj, self.v_proj))
        return rotate(k, tables), v

    def forward(self, x: Tensor, tables: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        q = rotate(self.q_proj(x).unflatten(-1, (-1, self.head_size)), tables)
        return self.out_proj(attend(q, k, v).flatten(2))


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
        self, x: Tensor, tables: Tensor, attend: Attend, query_BQ: Tensor | None = None
    ) -> Tensor:
        """All columns attend to all; only the columns `query_BQ` go on, if given."""
        h = self.attn_norm(x)
        k, v = self.attn.keys_values(h, tables)
        if query_BQ is not None:
            x, h, tables = pick(x, query_BQ), pick(h, query_BQ), tables[:, 0][:, query_BQ]
        return self.finish(x, h, tables, k, v, attend)

    def finish(
        self, x: Tensor, h: Tensor, tables: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        """Attention and MLP of the columns x, whose norm is h."""
        x = x + self.attn(h, tables, k, v, attend)
        h = self.mlp_norm(x)
        if torch.is_grad_enabled():
            return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))
        opened = F.silu(self.gate_proj(h), inplace=True).mul_(self.up_proj(h))
        return x.add_(self.down_proj(opened))


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
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_head:
            self.head.weight = self.embed.weight

    def tables(self, positions: Tensor) -> Tensor:
        return rope_tables(positions, self.config.head_size, self.config.rope_theta)

    def attend(self, lengths_B: Tensor | None, num_keys: int) -> Attend:
        """The attention of one forward."""
        return BACKENDS[self.attention](unless_full(lengths_B, num_keys), num_keys)

    def forward(
        self, ids_BS: Tensor, lengths_B: Tensor | None = None, query_BQ: Tensor | None = None
    ) -> Tensor:
        """Hidden states after the last norm.

        Args:
            ids_BS: [B, S] int64, rows padded at the end.
            lengths_B: [B] int64, real tokens of each row; None: all S. Padding is never attended
                to, so a row's result does not depend on it.
            query_BQ: [B, Q] int64, the columns that are wanted; None: all. The last layer then
                computes nothing else but keys and values.

        Returns:
            [B, S or Q, D] in the weights' dtype; values at padding are finite and mean nothing.
        """
        size = ids_BS.shape[1]
        tables = self.tables(torch.arange(size, device=ids_BS.device)[None])
        attend = self.attend(lengths_B, size)
        x = self.embed(ids_BS)
        for i, block in enumerate(self.blocks):
            query = query_BQ if i == self.config.num_layers - 1 else None
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, tables, attend, query, use_reentrant=False)
            else:
                x = block(x, tables, attend, query)
        return self.norm(x)

    @torch.no_grad()
    def prefill(
        self,
        ids_BS: Tensor,
        lengths_B: Tensor,
        cache: Cache,
        slots_B: Tensor,
        query_BQ: Tensor | None = None,
    ) -> Tensor | None:
        """Fill the slots of a cache with the keys and values of whole rows.

        Returns:
            Hidden states of the columns `query_BQ`, [B, Q, D]; None without them.
        """
        columns_1S = torch.arange(ids_BS.shape[1], device=ids_BS.device)[None]
        tables = self.tables(columns_1S)
        attend = self.attend(lengths_B, ids_BS.shape[1])
        x = self.embed(ids_BS)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            h = block.attn_norm(x)
            k, v = block.attn.keys_values(h, tables)
            cache.write(i, k, v, slots_B[:, None], columns_1S)
            if i < self.config.num_layers - 1:
                x = block.finish(x, h, tables, k, v, attend)
            elif query_BQ is not None:
                x, h, tables = pick(x, query_BQ), pick(h, query_BQ), tables[:, 0][:, query_BQ]
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
    ) -> Tensor:
        """Hidden states of some columns; the others' keys and values come from the cache.

        Args:
            ids_AQ: [A, Q] int64, row a in slot a.
            columns_AQ: [A, Q] int64, where the ids stand; `cache.length` for what is padding.
            lengths_A: [A] int64, real tokens of each row; None: all `num_keys`.
            cache: keeps the new keys and values of these columns.
            num_wanted: the first columns of each row, whose hidden states are returned.
            num_keys: columns of the cache that are looked at, at least the longest length.

        Returns:
            [A, num_wanted, D].
        """
        rows = len(ids_AQ)
        slots_A1 = torch.arange(rows, device=ids_AQ.device)[:, None]
        tables = self.tables(columns_AQ)
        attend = BACKENDS[self.attention](lengths_A, num_keys)
        x = self.embed(ids_AQ)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            h = block.attn_norm(x)
            cache.write(i, *block.attn.keys_values(h, tables), slots_A1, columns_AQ)
            if i == self.config.num_layers - 1:
                x, h, tables = x[:, :num_wanted], h[:, :num_wanted], tables[:, :, :num_wanted]
            x = block.finish(x, h, tables, *cache.read(i, rows, num_keys), attend)
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
