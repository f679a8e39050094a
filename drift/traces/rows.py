"""Rows of a training step for the trace page: what was sampled, and what was learned from it."""

from dataclasses import replace

import torch
from torch import Tensor

from drift.common.types import Advantages, MaskedViews, PromptBatch, Rollout
from drift.learner.layout import micro_batches
from drift.learner.likelihood import token_logps
from drift.learner.update import likely, restrict
from drift.policy.base import Policy
from drift.traces.page import NUM_ALTERNATIVES, TraceRow, View, trace_rows

TOKENS_PER_FORWARD = 4096


def pick_rows(rollout: Rollout, row_N: Tensor) -> Rollout:
    """Some rows of a rollout as a rollout of group size 1.

    Args:
        rollout: B rows.
        row_N: [N] int64, which of them.
    """
    rows: list[int] = row_N.tolist()
    size = rollout.group_size
    prompts = PromptBatch(
        examples=[rollout.prompts.examples[row // size] for row in rows],
        ids=[rollout.prompt_ids(row) for row in rows],
        first_prompt=0,
    )
    return rollout.pick(rows, prompts, group_size=1)


def training_rows(
    sampler: Policy, rollout: Rollout, advantages: Advantages, views: MaskedViews, count: int
) -> list[TraceRow]:
    """The first rows of a step, those of groups that teach something before the others.

    A view's scored tokens are those of the loss: none in a group of equal rewards, and with them
    the candidates that the policy finds likely enough (`update` asks the policy, here the sampler).

    Args:
        sampler: whose weights decoded, before the update.
        rollout: B rows of this rank.
        advantages, views: of the same rows.
        count: rows wanted.
    """
    row_N = (~advantages.used_B).int().argsort(stable=True)[:count].sort().values
    few, used_N = pick_rows(rollout, row_N), advantages.used_B[row_N]
    chosen_B = torch.zeros_like(advantages.used_B).index_fill(0, row_N, True)
    views = restrict(views.keep(chosen_B[views.row_N]), advantages.used_B)
    if views.candidate_N.any():
        batches = micro_batches(rollout, views, sampler.special, TOKENS_PER_FORWARD)
        old = token_logps(sampler, batches, rollout.temperature)
        views = views.keep(likely(views, old.logp_N))
    values_N = advantages.values_B[row_N]
    seen = replace(advantages, values_B=values_N, used_B=used_N, zero_variance_groups=0)
    return trace_rows(
        sampler,
        few,
        advantages=None if advantages.at_end else seen,  # a step's is not known before `update`
        views=[views_of(views, row) for row in row_N.tolist()],
        num_alternatives=NUM_ALTERNATIVES,
    )


def views_of(views: MaskedViews, row: int) -> list[View]:
    """What each view of a row hides and scores."""
    found: list[View] = []
    for state in (views.row_J == row).nonzero()[:, 0]:
        hidden_C = views.hide(state[None])[0]
        scored_C = torch.zeros_like(hidden_C)
        scored_C[views.column_N[views.state_N == state]] = True
        found.append(View(hidden=hidden_C.tolist(), scored=scored_C.tolist()))
    return found
