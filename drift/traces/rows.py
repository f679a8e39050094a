"""Rows of a training step for the trace page: what was sampled, and what was learned from it."""

from dataclasses import replace

from torch import Tensor

from drift.common.types import Advantages, MaskedViews, PromptBatch, Rollout
from drift.learner.likelihood import micro_batches, token_logps
from drift.learner.update import restrict, settle_scored
from drift.policy.base import Policy
from drift.traces.page import NUM_ALTERNATIVES, TraceRow, trace_rows

ROWS_PER_FORWARD = 32


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
    views = replace(
        views,
        hidden_KBC=views.hidden_KBC[:, row_N],
        scored_KBC=views.scored_KBC[:, row_N],
        candidate_KBC=views.candidate_KBC[:, row_N],
    )
    views = restrict(views, used_N)
    wanted_KNC, old = views.scored_KBC | views.candidate_KBC, None
    if views.candidate_KBC.any():
        batches = micro_batches(
            few, views.hidden_KBC, wanted_KNC, sampler.special, ROWS_PER_FORWARD
        )
        old = token_logps(sampler, batches, wanted_KNC.shape, rollout.temperature)
    values_N = advantages.values_B[row_N]
    seen = replace(advantages, values_B=values_N, used_B=used_N, zero_variance_groups=0)
    return trace_rows(
        sampler,
        few,
        advantages=None if advantages.at_end else seen,  # a step's is not known before `update`
        views=replace(views, scored_KBC=settle_scored(views, old)),
        num_alternatives=NUM_ALTERNATIVES,
    )
