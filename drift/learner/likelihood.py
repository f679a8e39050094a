"""Log-probs of completion tokens under a policy, for the views of a masking.

The learner builds its inputs from the rollout's own rows (prompt + canvas, padded at the end), so
it sees what the sampler saw. The head runs on scored positions only. A forward's inputs are built
when it is its turn.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drift.common import terminal
from drift.common.types import MaskedViews, Rollout, TokenLogps
from drift.config.objective import (
    AdvantageEstimator,
    Importance,
    Level,
    Normalization,
    ObjectiveConfig,
)
from drift.policy.base import SpecialIds

BY_ROW = (Normalization.sample, Normalization.sequence, Normalization.canvas)


def asks_old(objective: ObjectiveConfig, candidates: bool, rows_fit: bool) -> bool:
    """Whether the old policy scores the views before an update.

    Where one optimizer step is taken, candidates are chosen in the forward that trains, if what
    the loss is divided by is known there: the count of a view, of a row whose views are all in one
    forward, or one count for all, by which the gradient is scaled at the end.

    Args:
        objective: of the run.
        candidates: a view has some.
        rows_fit: all views of each row fit into one forward.
    """
    several = objective.num_steps > 1
    by_row = objective.level != Level.view
    corrected = objective.importance != Importance.none
    valued = objective.advantage == AdvantageEstimator.gae
    known = objective.normalization in (Normalization.view, Normalization.token)
    known = known or (rows_fit and objective.normalization in BY_ROW)
    return several or by_row or corrected or valued or (candidates and not known)


def row_tokens(rollout: Rollout, views: MaskedViews) -> int:
    """The most tokens that the views of one row are, without padding."""
    states = (torch.bincount(views.state_N, minlength=len(views.row_J)) > 0).long()
    states_B = torch.zeros_like(views.length_B).index_add(0, views.row_J, states)
    length_B = rollout.trace.prompt_length_B + rollout.trace.canvas_BC.shape[1]
    return int((states_B * length_B).max()) if len(states_B) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """M states for one learner forward, and the N tokens to score in them.

    Prompt [5, 6], canvas [7, 8] with the 8 hidden (mask 1) and scored; it is the views' token 4:
    MicroBatch(ids_MS=[[5, 6, 7, 1]], length_M=[4], row_N=[0], position_N=[3], target_N=[8],
               token_N=[4])
    """

    ids_MS: Tensor
    length_M: Tensor
    row_N: Tensor  # which of the M
    position_N: Tensor  # where in it
    target_N: Tensor
    token_N: Tensor  # which of the views' tokens


class MicroBatches(Sequence[MicroBatch]):
    """The states with a token to score, cut into learner forwards; short rows first.

    Each one is built when it is asked for, so that what a state hides is never stored.
    """

    def __init__(
        self,
        rollout: Rollout,
        views: MaskedViews,
        special: SpecialIds,
        tokens_per_forward: int,
        whole_rows: bool = False,
    ):
        """
        Args:
            rollout: B rows.
            views: of these rows.
            special: the mask and pad ids.
            tokens_per_forward: of one forward at most, padding included; but one row at least.
            whole_rows: all states of a row are in one forward; they must fit (`row_tokens`).
        """
        self.rollout, self.views, self.special = rollout, views, special
        self.count_J = torch.bincount(views.state_N, minlength=len(views.row_J))
        self.first_J = self.count_J.cumsum(0) - self.count_J  # of the states' tokens
        state_R = self.count_J.nonzero()[:, 0]
        size = rollout.trace.canvas_BC.shape[1]
        length_R = rollout.trace.prompt_length_B[views.row_J[state_R]] + size
        length_R, order_R = length_R.sort(stable=True)
        self.state_R = state_R[order_R]
        row_R = views.row_J[self.state_R].cpu().numpy() if whole_rows else None
        self.ends, self.num_padded = cut(length_R.cpu().numpy(), tokens_per_forward, row_R)
        self.num_tokens = int(length_R.sum())  # without padding
        self.num_empty = 0

    def __len__(self) -> int:
        return len(self.ends) + self.num_empty

    def __getitem__(self, index: int) -> MicroBatch:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index >= len(self.ends):
            return self.empty()
        first = self.ends[index - 1] if index else 0
        return self.build(self.state_R[first : self.ends[index]])

    def pad(self, count: int) -> None:
        """Append empty micro-batches up to `count`: all ranks must make equally many forwards."""
        self.num_empty = max(0, count - len(self.ends))

    def build(self, state_M: Tensor) -> MicroBatch:
        """The inputs of a forward over some states."""
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
        )

    def empty(self) -> MicroBatch:
        """One row of one padding token, nothing scored: every parameter's gradient is zero."""
        none = self.views.state_N.new_zeros(0)
        return MicroBatch(
            ids_MS=none.new_full((1, 1), self.special.pad),
            length_M=none.new_ones(1),
            row_N=none,
            position_N=none,
            target_N=none,
            token_N=none,
        )


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


def score(
    model: nn.Module, batch: MicroBatch, temperature: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-prob, entropy and value of the micro-batch's tokens, all [N] float32, with graph.

    The value is None where the policy has no value head.

    Args:
        model: a Policy, or its wrapped form in training.
        batch: what to score.
        temperature: the sampler's, so that the learner speaks of the sampler's distribution.
    """
    terminal.beat()
    return model(
        batch.ids_MS, batch.length_M, batch.row_N, batch.position_N, batch.target_N, temperature
    )


@torch.no_grad()
def token_logps(model: nn.Module, batches: MicroBatches, temperature: float) -> TokenLogps:
    """Log-probs of the views' tokens, [N], without graph.

    Args:
        model: as `score`.
        batches: of the views.
        temperature: as `score`.
    """
    logp_N = torch.zeros(batches.views.state_N.shape, device=next(model.parameters()).device)
    entropy_N, value_N = torch.zeros_like(logp_N), None
    for batch in batches:
        logp, entropy, value = score(model, batch, temperature)
        logp_N[batch.token_N], entropy_N[batch.token_N] = logp, entropy
        if value is not None:
            value_N = torch.zeros_like(logp_N) if value_N is None else value_N
            value_N[batch.token_N] = value
    return TokenLogps(logp_N=logp_N, entropy_N=entropy_N, value_N=value_N)
