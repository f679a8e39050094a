"""Log-probs of completion tokens under a policy, for the views of a masking.

The learner builds its inputs from the rollout's own rows (prompt + canvas, padded at the end), so
it sees what the sampler saw. The head runs on scored positions only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drift.common import terminal
from drift.common.types import Rollout, TokenLogps
from drift.config.objective import AdvantageEstimator, Importance, Level, ObjectiveConfig
from drift.policy.base import SpecialIds


def asks_old(objective: ObjectiveConfig, candidates: bool) -> bool:
    """Whether the old policy scores the views before an update; candidates: a view has some."""
    by_row = objective.level != Level.view
    corrected = objective.importance != Importance.none
    valued = objective.advantage == AdvantageEstimator.gae
    return objective.num_updates > 1 or by_row or corrected or candidates or valued


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """M view-rows for one learner forward, and the N canvas tokens to score in them.

    Prompt [5, 6], canvas [7, 8] with the 8 hidden (mask 1) and scored, view 0 of row 3:
    MicroBatch(ids_MS=[[5, 6, 7, 1]], length_M=[4], row_N=[0], position_N=[3], target_N=[8],
               view_N=[0], batch_N=[3], canvas_N=[1])
    """

    ids_MS: Tensor
    length_M: Tensor
    row_N: Tensor  # which of the M rows
    position_N: Tensor  # where in it
    target_N: Tensor
    view_N: Tensor  # (view, batch, canvas) is the token's place in a [K, B, C] tensor
    batch_N: Tensor
    canvas_N: Tensor

    def pick(self, values_KBC: Tensor) -> Tensor:
        """The micro-batch's tokens of a [K, B, C] tensor: [N]."""
        return values_KBC[self.view_N, self.batch_N, self.canvas_N]


def assemble(rollout: Rollout, pad: int) -> tuple[Tensor, Tensor]:
    """The rows of a rollout, prompt + canvas: ids [B, S] padded at the end, prompt lengths [B]."""
    canvas_BC = rollout.trace.canvas_BC
    prompts = [rollout.prompt_ids(row) for row in range(len(canvas_BC))]
    size = canvas_BC.shape[1]
    longest = max(map(len, prompts))
    ids_BS = torch.full((len(prompts), longest + size), pad, device=canvas_BC.device)
    for row, prompt in enumerate(prompts):
        ids_BS[row, : len(prompt)] = torch.tensor(prompt, device=canvas_BC.device)
        ids_BS[row, len(prompt) : len(prompt) + size] = canvas_BC[row]
    return ids_BS, torch.tensor([len(p) for p in prompts], device=canvas_BC.device)


def longest_row(rollout: Rollout) -> int:
    """Tokens of the longest prompt and the canvas."""
    return max(map(len, rollout.prompts.ids)) + rollout.trace.canvas_BC.shape[1]


def micro_batches(
    rollout: Rollout,
    hidden_KBC: Tensor,
    wanted_KBC: Tensor,
    special: SpecialIds,
    rows_per_forward: int,
    prompt_hidden_KBL: Tensor | None = None,
) -> list[MicroBatch]:
    """Cut the view-rows with a wanted token into learner forwards, short rows first.

    Args:
        rollout: B rows.
        hidden_KBC: [K, B, C] bool, shown as the mask token.
        wanted_KBC: [K, B, C] bool, tokens to score.
        special: the mask and pad ids.
        rows_per_forward: M at most.
        prompt_hidden_KBL: [K, B, L] bool, prompt tokens shown as the mask token; None: none.
    """
    ids_BS, prompt_length_B = assemble(rollout, special.pad)
    size = hidden_KBC.shape[2]
    view_R, batch_R = wanted_KBC.any(dim=2).nonzero(as_tuple=True)
    order_R = prompt_length_B[batch_R].argsort(stable=True)
    batches: list[MicroBatch] = []
    for chunk_M in order_R.split(rows_per_forward) if len(order_R) else []:
        view_M, batch_M = view_R[chunk_M], batch_R[chunk_M]
        length_M = prompt_length_B[batch_M] + size
        row_N, canvas_N = wanted_KBC[view_M, batch_M].nonzero(as_tuple=True)
        position_N = prompt_length_B[batch_M][row_N] + canvas_N
        clean_MS = ids_BS[batch_M, : int(length_M.max())]
        row_H, canvas_H = hidden_KBC[view_M, batch_M].nonzero(as_tuple=True)
        ids_MS = clean_MS.clone()
        ids_MS[row_H, prompt_length_B[batch_M][row_H] + canvas_H] = special.mask
        if prompt_hidden_KBL is not None:
            row_H, prompt_H = prompt_hidden_KBL[view_M, batch_M].nonzero(as_tuple=True)
            real_H = prompt_H < prompt_length_B[batch_M][row_H]
            ids_MS[row_H[real_H], prompt_H[real_H]] = special.mask
        batches.append(
            MicroBatch(
                ids_MS=ids_MS,
                length_M=length_M,
                row_N=row_N,
                position_N=position_N,
                target_N=clean_MS[row_N, position_N],
                view_N=view_M[row_N],
                batch_N=batch_M[row_N],
                canvas_N=canvas_N,
            )
        )
    return batches


def pad_batches(batches: list[MicroBatch], count: int, pad: int, device: torch.device) -> None:
    """Append empty micro-batches up to `count`: all ranks must make equally many forwards.

    One row of one padding token, nothing scored: its gradient is zero, for every parameter.
    """
    none = torch.zeros(0, dtype=torch.int64, device=device)
    while len(batches) < count:
        batches.append(
            MicroBatch(
                ids_MS=none.new_full((1, 1), pad),
                length_M=none.new_ones(1),
                row_N=none,
                position_N=none,
                target_N=none,
                view_N=none,
                batch_N=none,
                canvas_N=none,
            )
        )


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
def token_logps(
    model: nn.Module, batches: list[MicroBatch], shape: torch.Size, temperature: float
) -> TokenLogps:
    """Log-probs of all micro-batches, without graph, back in their [K, B, C] places.

    Args:
        model: as `score`.
        batches: from `micro_batches`.
        shape: (K, B, C).
        temperature: as `score`.
    """
    device = next(model.parameters()).device
    logp_KBC, entropy_KBC = (torch.zeros(shape, device=device) for _ in range(2))
    value_KBC: Tensor | None = None
    for batch in batches:
        logp_N, entropy_N, value_N = score(model, batch, temperature)
        place = (batch.view_N, batch.batch_N, batch.canvas_N)
        logp_KBC[place], entropy_KBC[place] = logp_N, entropy_N
        if value_N is not None:
            value_KBC = torch.zeros_like(logp_KBC) if value_KBC is None else value_KBC
            value_KBC[place] = value_N
    return TokenLogps(logp_KBC=logp_KBC, entropy_KBC=entropy_KBC, value_KBC=value_KBC)
