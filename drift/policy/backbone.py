"""One bidirectional transformer for every family, in training and in rollout.

RMSNorm, rotary positions, (grouped-query) attention without a causal mask, SwiGLU. A family sets
sizes, constants and biases; the shift of Dream's logits is in base.py, from the family's file.
Source: LLaDA (arXiv 2502.09992) and Dream (arXiv 2508.15487) with their published config.json.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 as the official code does."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), (x.shape[-1],), None, self.eps)
        return normed.to(x.dtype) * self.weight


def rope_tables(length: int, head_size: int, theta: float, device: torch.device) -> Tensor:
    """cos and sin of the half-rotation RoPE: [2, length, head_size] float32."""
    powers = torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, theta**-powers)
    return torch.stack([torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)])


def rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Apply RoPE to [B, heads, S, head_size] in float32."""
    x_float = x.float()
    first, second = x_float.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x_float * tables[0] + turned * tables[1]).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.head_size = config.hidden_size // config.num_heads
        self.repeats = config.num_heads // config.num_kv_heads
        kv_size = config.num_kv_heads * self.head_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, tables: Tensor, real_B11S: Tensor | None) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, tables), rotate(k, tables)
        if self.repeats > 1:
            k, v = (t.repeat_interleave(self.repeats, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=real_B11S)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.down_proj = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, tables: Tensor, real_B11S: Tensor | None) -> Tensor:
        x = x + self.attn(self.attn_norm(x), tables, real_B11S)
        h = self.mlp_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Backbone(nn.Module):
    """Token ids to the hidden states before the head."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # recompute each block in the backward pass
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_head:
            self.head.weight = self.embed.weight

    def forward(self, ids_BS: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm.

        Args:
            ids_BS: [B, S] int64, rows padded at the end.
            lengths_B: [B] int64, real tokens of each row; None: all S. Padding is never attended
                to, so a row's result does not depend on it.

        Returns:
            [B, S, D] in the weights' dtype; values at padding are finite and mean nothing.
        """
        size = ids_BS.shape[1]
        head_size = self.config.hidden_size // self.config.num_heads
        tables = rope_tables(size, head_size, self.config.rope_theta, ids_BS.device)
        real_B11S = None
        if lengths_B is not None and bool((lengths_B < size).any()):
            real = torch.arange(size, device=ids_BS.device) < lengths_B[:, None]
            real_B11S = real[:, None, None, :]
        x = self.embed(ids_BS)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, tables, real_B11S, use_reentrant=False)
            else:
                x = block(x, tables, real_B11S)
        return self.norm(x)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Random weights for a model that is trained from nothing."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 2:
                scale = 0.02 if name.startswith("embed") else parameter.shape[1] ** -0.5
                if name.endswith(("out_proj.weight", "down_proj.weight")):
                    scale *= 0.5
                parameter.normal_(std=scale, generator=generator)
