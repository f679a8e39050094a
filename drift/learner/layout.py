"""How the states of a masking are laid out for the network, and cut into forwards.

Full attention: a state is a row of its own, prompt + canvas, padded at the end. Block-causal
attention: a row is laid out once, clean, and behind it each block that a state scores, as that
state shows it: a whole trajectory is n + J B columns of one forward (drift/policy/states.py). A
view of several blocks is cut at their borders; each part sees the blocks before it clean.

Either way the learner sees what the sampler saw. A forward's inputs are built when it is its turn.
"""

from abc import abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift.common.types import MaskedViews, Rollout, distinct
from drift.policy.base import SpecialIds

WHOLE = 2**62  # tokens of a forward: no row is cut


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """M rows for one learner forward, and the N tokens to score in them.

    Prompt [5, 6], canvas [7, 8] with the 8 hidden (mask 1) and scored; it is the views' token 4:
    MicroBatch(ids_MS=[[5, 6, 7, 1]], length_M=[4], row_N=[0], position_N=[3], target_N=[8],
               token_N=[4], candidate_N=[False])
    The same in blocks of 2; the clean row ends before the block of the state:
    MicroBatch(ids_MS=[[5, 6, 7, 1]], length_M=[2], row_N=[0], position_N=[3], target_N=[8],
               token_N=[4], candidate_N=[False], block_MJ=[[1]])
    """

    ids_MS: Tensor
    length_M: Tensor  # real tokens of each row, without states
    row_N: Tensor  # which of the M, ascending
    position_N: Tensor  # in which of its columns
    target_N: Tensor
    token_N: Tensor  # which of the views' tokens
    candidate_N: Tensor  # bool
    block_MJ: Tensor | None = None  # of which block each state behind the row is

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on a device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: x.to(device) for name, x in moved.items() if x is not None})


class MicroBatches(Sequence[MicroBatch]):
    """The states with a token to score, cut into learner forwards; short rows first.

    Each one is built when it is asked for, so that what a state hides is never stored.
    """

    num_tokens: int  # of all forwards, without padding
    num_padded: int  # with it

    def __init__(self, rollout: Rollout, views: MaskedViews, special: SpecialIds):
        self.rollout, self.views, self.special = rollout, views, special
        self.ends: array[int] = array("q")  # where each forward ends, in the order of the units
        self.num_empty = 0

    def __len__(self) -> int:
        return len(self.ends) + self.num_empty

    def __getitem__(self, index: int) -> MicroBatch:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index >= len(self.ends):
            return self.empty()
        return self.build(self.ends[index - 1] if index else 0, self.ends[index])

    def pad(self, count: int) -> None:
        """Append empty micro-batches up to `count`: all ranks must make equally many forwards."""
        self.num_empty = max(0, count - len(self.ends))

    @abstractmethod
    def build(self, first: int, last: int) -> MicroBatch:
        """The inputs of a forward over some of the units that were cut."""

    def empty(self) -> MicroBatch:
        """One row of padding, nothing scored: every parameter's gradient is zero."""
        none, size = self.views.state_N.new_zeros(0), self.rollout.trace.block_length
        return MicroBatch(
            ids_MS=none.new_full((1, 2 * size or 1), self.special.pad),
            length_M=none.new_full((1,), size or 1),
            row_N=none,
            position_N=none,
            target_N=none,
            token_N=none,
            candidate_N=none.bool(),
            block_MJ=none.new_zeros(1, 1) if size else None,
        )


def micro_batches(
    rollout: Rollout,
    views: MaskedViews,
    special: SpecialIds,
    tokens_per_forward: int,
    whole_rows: bool = False,
) -> MicroBatches:
    """The states of some views, laid out for the network that made the rollout.

    Args:
        rollout: B rows.
        views: of these rows.
        special: the mask and pad ids.
        tokens_per_forward: of one forward at most, padding included; but one state at least.
        whole_rows: all states of a row are in one forward; they must fit (`row_tokens`).
    """
    if rollout.trace.block_length:
        return RowsWithStates(rollout, views, special, tokens_per_forward)
    return StatesAsRows(rollout, views, special, tokens_per_forward, whole_rows)


def row_tokens(rollout: Rollout, views: MaskedViews) -> int:
    """The most tokens that the views of one row are, without padding."""
    trace = rollout.trace
    if not len(views.state_N):
        return 0
    if trace.block_length:
        return int(RowsWithStates(rollout, views, SpecialIds(mask=0, pad=0, stop=()), WHOLE).most)
    states = (torch.bincount(views.state_N, minlength=len(views.row_J)) > 0).long()
    states_B = torch.zeros_like(views.length_B).index_add(0, views.row_J, states)
    return int((states_B * (trace.prompt_length_B + trace.canvas_BC.shape[1])).max())


class StatesAsRows(MicroBatches):
    """Of full attention: every state is a row."""

    def __init__(
        self,
        rollout: Rollout,
        views: MaskedViews,
        special: SpecialIds,
        tokens_per_forward: int,
        whole_rows: bool,
    ):
        super().__init__(rollout, views, special)
        self.count_J = torch.bincount(views.state_N, minlength=len(views.row_J))
        self.first_J = self.count_J.cumsum(0) - self.count_J  # of the states' tokens
        state_R = self.count_J.nonzero()[:, 0]
        size = rollout.trace.canvas_BC.shape[1]
        length_R = rollout.trace.prompt_length_B[views.row_J[state_R]] + size
        length_R, order_R = length_R.sort(stable=True)
        self.state_R = state_R[order_R]
        row_R = views.row_J[self.state_R].cpu().numpy() if whole_rows else None
        self.ends, self.num_padded = cut(length_R.cpu().numpy(), tokens_per_forward, row_R)
        self.num_tokens = int(length_R.sum())

    def build(self, first: int, last: int) -> MicroBatch:
        state_M = self.state_R[first:last]
        views, trace = self.views, self.rollout.trace
        batch_M = views.row_J[state_M]
        clean_MS, prompt_length_M = assemble(self.rollout, batch_M, self.special.pad)
        longest = clean_MS.shape[1] - trace.canvas_BC.shape[1]
        ids_MS = clean_MS.clone()
        row_H, column_H = views.hide(state_M).nonzero(as_tuple=True)
        ids_MS[row_H, prompt_length_M[row_H] + column_H] = self.special.mask
        prompt_ML = views.hide_prompt(state_M, longest)
        if prompt_ML is not None:
            prompt_ML &= torch.arange(longest, device=ids_MS.device) < prompt_length_M[:, None]
            ids_MS[:, :longest][prompt_ML] = self.special.mask
        count_M = self.count_J[state_M]
        row_N = torch.arange(len(state_M), device=ids_MS.device).repeat_interleave(count_M)
        nth_N = torch.arange(len(row_N), device=ids_MS.device)
        token_N = (self.first_J[state_M] - count_M.cumsum(0) + count_M)[row_N] + nth_N
        position_N = prompt_length_M[row_N] + views.column_N[token_N]
        return MicroBatch(
            ids_MS=ids_MS,
            length_M=prompt_length_M + trace.canvas_BC.shape[1],
            row_N=row_N,
            position_N=position_N,
            target_N=clean_MS[row_N, position_N],
            token_N=token_N,
            candidate_N=views.candidate_N[token_N],
        )


class RowsWithStates(MicroBatches):
    """Of block-causal attention: a row, clean, and behind it the blocks that its states score.

    A unit is a row, or where that has too many tokens a part of its states, the earlier blocks
    first. Its clean columns end where its last scored block begins.
    """

    def __init__(
        self, rollout: Rollout, views: MaskedViews, special: SpecialIds, tokens_per_forward: int
    ):
        super().__init__(rollout, views, special)
        trace = rollout.trace
        self.size = size = trace.block_length
        position_N = trace.prompt_length_B[views.row_N] + views.column_N
        block_N = position_N // size
        # a piece: the tokens of one state in one block; pieces in the order (row, block, state)
        num_blocks = int(block_N.max()) + 1 if len(block_N) else 1
        num_states = max(1, len(views.row_J))
        number_N = (views.row_N * num_blocks + block_N) * num_states + views.state_N
        number_P, piece_N = distinct(number_N)
        self.state_P = number_P % num_states
        self.block_P = number_P // num_states % num_blocks
        self.row_P = number_P // num_states // num_blocks
        self.token_N = piece_N.argsort(stable=True)
        self.count_P = torch.bincount(piece_N, minlength=len(number_P))
        units = cut_rows(self.row_P.cpu(), self.block_P.cpu(), size, tokens_per_forward)
        # forwards hold units of like size: the fewest columns of padding
        units.sort(key=lambda unit: (unit.clean + unit.columns, unit.clean))
        self.units = units
        self.ends, self.num_padded = cut_units(units, tokens_per_forward)
        self.num_tokens = sum(unit.clean + unit.columns for unit in units)
        self.most = max((unit.clean + unit.columns for unit in units), default=0)

    def build(self, first: int, last: int) -> MicroBatch:
        units, views, size = self.units[first:last], self.views, self.size
        device = views.state_N.device
        clean = max(unit.clean for unit in units)
        num_states = max(unit.last - unit.first for unit in units)
        piece_P = torch.cat([torch.arange(unit.first, unit.last) for unit in units]).to(device)
        counts = torch.tensor([unit.last - unit.first for unit in units])
        unit_P = torch.arange(len(units)).repeat_interleave(counts).to(device)
        slot_P = torch.cat([torch.arange(int(count)) for count in counts]).to(device)
        row_M = self.row_P[torch.tensor([unit.first for unit in units], device=device)]
        whole_MS, prompt_length_M = assemble(self.rollout, row_M, self.special.pad)

        columns_PK = self.block_P[piece_P, None] * size + torch.arange(size, device=device)
        canvas_PK = columns_PK - prompt_length_M[unit_P, None]
        copies_PK = whole_MS[unit_P[:, None], columns_PK]
        hidden_PC = views.hide(self.state_P[piece_P])
        hidden_PK = hidden_PC.gather(1, canvas_PK.clamp(min=0)) & (canvas_PK >= 0)
        states_MJK = whole_MS.new_full((len(units), num_states, size), self.special.pad)
        states_MJK[unit_P, slot_P] = copies_PK.masked_fill(hidden_PK, self.special.mask)
        block_MJ = torch.zeros(len(units), num_states, dtype=torch.int64, device=device)
        block_MJ[unit_P, slot_P] = self.block_P[piece_P]

        nth_N = torch.arange(len(piece_P), device=device).repeat_interleave(self.count_P[piece_P])
        before_P = self.count_P.cumsum(0) - self.count_P
        within_N = torch.arange(len(nth_N), device=device)
        within_N = within_N - (self.count_P[piece_P].cumsum(0) - self.count_P[piece_P])[nth_N]
        token_N = self.token_N[before_P[piece_P][nth_N] + within_N]
        row_N = unit_P[nth_N]
        column_N = prompt_length_M[row_N] + views.column_N[token_N]  # of the row
        return MicroBatch(
            ids_MS=torch.cat([whole_MS[:, :clean], states_MJK.flatten(1)], dim=1),
            length_M=torch.tensor([unit.clean for unit in units], device=device),
            row_N=row_N,
            position_N=clean + slot_P[nth_N] * size + column_N % size,
            target_N=whole_MS[row_N, column_N],
            token_N=token_N,
            candidate_N=views.candidate_N[token_N],
            block_MJ=block_MJ,
        )


@dataclass(frozen=True, slots=True)
class Unit:
    """Some pieces of one row: those from `first` to before `last`."""

    first: int
    last: int
    clean: int  # clean columns
    columns: int  # of the states behind them


def cut_rows(row_P: Tensor, block_P: Tensor, size: int, tokens_per_forward: int) -> list[Unit]:
    """Each row's pieces as one unit, or as few as fit into forwards of so many tokens."""
    units: list[Unit] = []
    ends_R = torch.bincount(row_P).cumsum(0) if len(row_P) else row_P
    blocks, start = block_P.tolist(), 0
    for end in ends_R.unique().tolist():
        first = start
        for last in range(start + 1, end + 1):
            more = last < end
            tokens = max(size, blocks[min(last, end - 1)] * size) + (last + 1 - first) * size
            if not more or tokens > tokens_per_forward:
                clean = max(size, blocks[last - 1] * size)
                units.append(Unit(first, last, clean, (last - first) * size))
                first = last
        start = end
    return units


def cut_units(units: list[Unit], tokens_per_forward: int) -> "tuple[array[int], int]":
    """Where each forward ends, and the tokens of all forwards with their padding."""
    ends, padded, first = array("q"), 0, 0
    clean = columns = 0
    for i, unit in enumerate(units):
        wide = max(clean, unit.clean) + max(columns, unit.columns)
        if i > first and (i + 1 - first) * wide > tokens_per_forward:
            ends.append(i)
            padded += (i - first) * (clean + columns)
            first, clean, columns = i, 0, 0
        clean, columns = max(clean, unit.clean), max(columns, unit.columns)
    if units:
        ends.append(len(units))
        padded += (len(units) - first) * (clean + columns)
    return ends, padded


def cut(
    length_R: NDArray[np.int64], tokens_per_forward: int, row_R: NDArray[np.int64] | None = None
) -> "tuple[array[int], int]":
    """Cut states of ascending lengths into forwards of as many as the tokens allow.

    Args:
        length_R: [R] tokens of each.
        tokens_per_forward: at most, padding included; but one state at least.
        row_R: [R] the rows of the states, which are not cut apart if they fit.

    Returns:
        Where each forward ends, and the tokens of all forwards with their padding.
    """
    ends, padded, first = array("q"), 0, 0
    while first < len(length_R):
        most = max(1, tokens_per_forward // int(length_R[first]))
        longest = length_R[first : first + most]
        fits = longest * np.arange(1, len(longest) + 1) <= tokens_per_forward
        size = max(1, int(fits.sum()))
        if row_R is not None and first + size < len(row_R):
            apart = row_R[first : first + size] != row_R[first + size]  # from the row that is next
            size = int(apart.sum()) or size
        padded += size * int(longest[size - 1])
        first += size
        ends.append(first)
    return ends, padded


def assemble(rollout: Rollout, row_M: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Rows of a rollout, prompt + canvas.

    Args:
        rollout: B rows.
        row_M: [M] int64, which of them.
        pad: fills up the end of shorter rows.

    Returns:
        ids [M, S]; prompt lengths [M].
    """
    canvas_MC = rollout.trace.canvas_BC[row_M]
    prompt_length_M = rollout.trace.prompt_length_B[row_M]
    prompts = [rollout.prompt_ids(row) for row in row_M.tolist()]
    longest, size = max(map(len, prompts)), canvas_MC.shape[1]
    padded = [prompt + [pad] * (longest + size - len(prompt)) for prompt in prompts]
    ids_MS = torch.tensor(padded, device=canvas_MC.device)
    columns_C = torch.arange(size, device=canvas_MC.device)
    return ids_MS.scatter(1, prompt_length_M[:, None] + columns_C, canvas_MC), prompt_length_M
