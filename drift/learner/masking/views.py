"""What every masking is made with: which tokens may be scored, and the states that score them."""

from collections.abc import Callable

import torch
from torch import Tensor

from drift.common.types import MaskedViews, Trace
from drift.config.masking import MaskingConfig, Tail

NO_CANDIDATES = 1.0  # a min_prob that scores nothing more
CHUNK = 2**24  # canvas tokens that are looked at together

Chosen = Callable[[Tensor, Tensor], Tensor]


def scorable(trace: Trace, config: MaskingConfig) -> Tensor:
    """The tokens that a view may score: [B, C] bool.

    The committed ones; with masking.tail=exclude up to and with the first stop token.
    """
    if config.tail == Tail.sampled:
        return trace.committed_BC
    columns_C = torch.arange(trace.canvas_BC.shape[1], device=trace.canvas_BC.device)
    return trace.committed_BC & (columns_C < trace.length_B[:, None])


def number_of(row_B: Tensor, num_views: int) -> tuple[Tensor, Tensor]:
    """The states of K views of each row: their rows and their order in the row, both [J]."""
    rows_B = torch.arange(len(row_B), device=row_B.device)
    views_K = torch.arange(num_views, device=row_B.device)
    return rows_B.repeat_interleave(num_views), views_K.repeat(len(row_B))


def places(
    plane: Callable[[Tensor], Tensor], num_states: int, like_BC: Tensor
) -> tuple[Tensor, Tensor]:
    """The states [N] and columns [N] where a plane of all states is true.

    Args:
        plane: states [M] -> [M, C] bool.
        num_states: J.
        like_BC: for the canvas length and the device.
    """
    size = max(1, CHUNK // like_BC.shape[1])
    found: list[tuple[Tensor, Tensor]] = []
    for first in range(0, num_states, size):
        last = min(first + size, num_states)
        state_M = torch.arange(first, last, device=like_BC.device)
        state_N, column_N = plane(state_M).nonzero(as_tuple=True)
        found.append((first + state_N, column_N))
    if not found:
        none = torch.zeros(0, dtype=torch.int64, device=like_BC.device)
        return none, none
    states, columns = zip(*found, strict=True)
    return torch.cat(states), torch.cat(columns)


def hide_and_score(
    trace: Trace,
    rows_B: Tensor,
    config: MaskingConfig,
    num_views: int,
    chosen: Chosen,
    weight_KB: Tensor | None = None,
) -> MaskedViews:
    """K views of each row that hide and score the chosen tokens.

    Tokens that cannot be scored are hidden in every view.

    Args:
        trace: of B rows.
        rows_B: [B] int64, numbers that name the rows in the random numbers.
        config: says which tokens may be scored.
        num_views: K.
        chosen: rows [M] of the batch, views [M] -> [M, C] bool, the same at every call.
        weight_KB: of the views, as in `MaskedViews`.
    """
    can_BC = scorable(trace, config)
    row_J, order_J = number_of(rows_B, num_views)

    def scored(state_M: Tensor) -> Tensor:
        row_M = row_J[state_M]
        return chosen(row_M, order_J[state_M]) & can_BC[row_M]

    def hide(state_M: Tensor) -> Tensor:
        return scored(state_M) | ~can_BC[row_J[state_M]]

    state_N, column_N = places(scored, len(row_J), can_BC)
    return MaskedViews(
        row_J=row_J,
        order_J=order_J,
        hide=hide,
        state_N=state_N,
        column_N=column_N,
        candidate_N=torch.zeros_like(state_N, dtype=torch.bool),
        candidate_min_prob=NO_CANDIDATES,
        length_B=can_BC.sum(1),
        rows_B=rows_B,
        weight_J=None if weight_KB is None else weight_KB.T.flatten().float(),
    )
