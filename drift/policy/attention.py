"""Attention backends: a query attends to the first so many keys of its row.

`BACKENDS[name](reach, num_keys)` prepares one forward and returns the function that its layers
call: attend(q, k, v) with q [B, Q, heads, head_size] and k, v [B, S, kv_heads, head_size]; returns
[B, Q, heads, head_size]. `reach` [B] or [B or 1, Q] int64 says how many keys: the real tokens of
the row where attention is full, the end of the query's block where it is block-causal; None: all.
Softmax runs in float32 in all of them (float64 for float64).
"""

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drift.common.errors import ConfigError
from drift.config.model import AttentionBackend

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def within(reach: Tensor, num_keys: int) -> Tensor:
    """Which keys are reached: [B, 1 or Q, S] bool."""
    rows_BQ = reach[:, None] if reach.dim() == 1 else reach
    return torch.arange(num_keys, device=reach.device) < rows_BQ[..., None]


def sdpa(reach: Tensor | None, num_keys: int) -> Attend:
    """torch's scaled_dot_product_attention."""
    mask_B1QS = None if reach is None else within(reach, num_keys)[:, None]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        repeats = q.shape[1] // k.shape[1]
        if repeats > 1 and mask_B1QS is not None and q.device.type != "cpu":
            # torch's fused kernels take a mask or grouped queries, not both
            k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
            repeats = 1
        gqa = {"enable_gqa": True} if repeats > 1 else {}  # a constant for torch.compile
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1QS, **gqa)
        return mixed.transpose(1, 2)

    return attend


def flash_attention_2(reach: Tensor | None, num_keys: int) -> Attend:
    """The flash-attn package (arXiv 2307.08691): keys are packed, padding costs nothing.

    It knows no block-causal mask: `reach` is of rows, not of queries.
    """
    flash = flash_attn()
    packed_T = None
    if reach is not None:
        assert reach.dim() == 1
        packed_T = within(reach, num_keys).flatten().nonzero()[:, 0]
        ends = F.pad(reach.cumsum(0), (1, 0)).int()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if packed_T is None:
            return flash.flash_attn_func(q, k, v)
        batch, queries = q.shape[:2]
        starts = torch.arange(0, (batch + 1) * queries, queries, device=q.device).int()
        k, v = (t.flatten(0, 1)[packed_T] for t in (k, v))
        mixed = flash.flash_attn_varlen_func(q.flatten(0, 1), k, v, starts, ends, queries, num_keys)
        return mixed.unflatten(0, (batch, queries))

    return attend


def flex(reach: Tensor | None, num_keys: int) -> Attend:
    """torch's flex_attention, compiled where the device has a compiler for its backward pass."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = None
        if reach is not None:
            rows, queries = q.shape[:2]
            reach_BQ = (reach[:, None] if reach.dim() == 1 else reach).expand(rows, queries)

            def reached(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return key < reach_BQ[row, query]

            mask = create_block_mask(reached, rows, None, queries, num_keys, device=str(q.device))
        run = flex_attention if q.device.type == "cpu" else compiled_flex()
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        mixed: Any = run(q, k, v, block_mask=mask, enable_gqa=q.shape[1] > k.shape[1])
        return mixed.transpose(1, 2)

    return attend


@lru_cache(maxsize=1)
def compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=1)
def flash_attn() -> Any:
    """The flash-attn package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("flash_attn")
    except ImportError:
        raise ConfigError(
            "model.attention=flash_attention_2 needs the extra `flash`: "
            "pip install --no-build-isolation 'drift[flash]', or use model.attention=sdpa"
        ) from None


BACKENDS: dict[AttentionBackend, Callable[[Tensor | None, int], Attend]] = {
    AttentionBackend.sdpa: sdpa,
    AttentionBackend.flash_attention_2: flash_attention_2,
    AttentionBackend.flex_attention: flex,
}
