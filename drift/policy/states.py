"""Attention of rows with states behind them: a whole trajectory in one forward.

A row's columns are its n clean tokens, then J states of B columns: copies of single blocks, each
with some of its tokens hidden. A clean token attends to the clean tokens up to the end of its own
block. A token of a state attends to the clean tokens before its block and to its own state, never
to another state. So the log-probs of all states are those that the sampler's own forwards give, for
n + J B columns where one forward a state would take J n.

It is computed in two parts: every query over the clean keys, every state over itself, put together
by the log of their sums (as in ring attention, arXiv 2310.01889). One dense mask would compute J B
keys for each query, of which it needs B.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drift.policy.attention import compiled_flex, within

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True, kw_only=True)
class StatesAttend:
    """The attention of one forward; q [M, n + J B, heads, size], k and v likewise."""

    reach_MS: Tensor  # int64; the first so many clean keys: of each query
    num_clean: int
    block_length: int
    masks: dict[torch.dtype, Tensor] = field(default_factory=dict[torch.dtype, Tensor])

    def mask(self, dtype: torch.dtype) -> Tensor:
        """0 for the clean keys that a query sees, -inf for the others: [M, 1, S, n].

        The layers share it.
        """
        if dtype not in self.masks:
            seen_MSn = within(self.reach_MS, self.num_clean)
            zero = torch.zeros((), dtype=dtype, device=seen_MSn.device)
            self.masks[dtype] = zero.masked_fill(~seen_MSn, -torch.inf)[:, None]
        return self.masks[dtype]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if q.device.type != "cpu":
            return self.by_flex(q, k, v).transpose(1, 2)
        repeats = q.shape[1] // k.shape[1]
        if repeats > 1:
            k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
        mask, nothing_MS = self.mask(q.dtype), self.reach_MS == 0
        mixed: Any = TwoParts.apply(q, k, v, mask, nothing_MS, self.num_clean, self.block_length)
        return mixed.transpose(1, 2)

    def by_flex(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same with one block mask, whose empty tiles cost nothing."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        reach_MS, clean, size = self.reach_MS, self.num_clean, self.block_length

        def reached(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = (query - clean) // size == (key - clean) // size
            own = (query >= clean) & (key >= clean) & same
            return (key < reach_MS[row, query]) | own

        rows, columns = q.shape[0], q.shape[2]
        mask = create_block_mask(reached, rows, None, columns, columns, device=str(q.device))
        run = flex_attention if q.device.type == "cpu" else compiled_flex()
        mixed: Any = run(q, k, v, block_mask=mask, enable_gqa=q.shape[1] > k.shape[1])
        return mixed


def by_state(x: Tensor, size: int) -> Tensor:
    """[M, H, J B, d] -> [M J, H, B, d]."""
    return x.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)


def by_row(x: Tensor, rows: int) -> Tensor:
    """[M J, H, B, ...] -> [M, H, J B, ...]."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)


class TwoParts(torch.autograd.Function):
    """Attention of all columns over the clean keys, and of each state over itself.

    The backward pass of each part takes the whole's output and log-sum: then its probabilities, and
    so its gradients, are those of the whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        nothing_MS: Tensor,
        num_clean: int,
        size: int,
    ) -> Tensor:
        rows, num_states = len(q), (q.shape[2] - num_clean) // size
        out, total = flash(q, k[:, :, :num_clean], v[:, :, :num_clean], attn_mask=mask)
        total = total.masked_fill(nothing_MS[:, None], -torch.inf)  # of no key it says 0
        if num_states:
            own_q, own_k, own_v = (by_state(t[:, :, num_clean:], size) for t in (q, k, v))
            own_out, own_total = (by_row(t, rows) for t in flash(own_q, own_k, own_v))
            clean_total = total[:, :, num_clean:]
            whole = torch.logaddexp(clean_total, own_total)
            shares = [(t - whole).exp()[..., None] for t in (clean_total, own_total)]
            mixed = out[:, :, num_clean:] * shares[0] + own_out * shares[1]
            out = torch.cat([out[:, :, :num_clean], mixed.to(out.dtype)], dim=2)
            total = torch.cat([total[:, :, :num_clean], whole], dim=2)
        ctx.save_for_backward(q, k, v, out, total, mask)
        ctx.num_clean, ctx.size = num_clean, size
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        q, k, v, out, total, mask = ctx.saved_tensors
        (grad,), clean, size = grads, ctx.num_clean, ctx.size
        part = flash_backward(
            grad, q, k[:, :, :clean], v[:, :, :clean], out, total, 0.0, False, attn_mask=mask
        )
        grad_q, grad_k, grad_v = part
        if q.shape[2] > clean:
            inputs = (by_state(t[:, :, clean:], size) for t in (grad, q, k, v, out))
            sums = by_state(total[:, :, clean:, None], size)[..., 0]
            own = flash_backward(*inputs, sums, 0.0, False)
            own_q, own_k, own_v = (by_row(t, len(q)) for t in own)
            grad_q = torch.cat([grad_q[:, :, :clean], grad_q[:, :, clean:] + own_q], dim=2)
            grad_k, grad_v = torch.cat([grad_k, own_k], dim=2), torch.cat([grad_v, own_v], dim=2)
        return grad_q, grad_k, grad_v, None, None, None, None
