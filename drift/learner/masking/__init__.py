"""Masking: which tokens of a completion to hide, and which hidden ones to score.

A masking is a function (Trace, rows, config, key) -> MaskedViews, entered in `MASKINGS` under the
class of its settings. It depends on nothing but its
arguments: the same row gets the same views in any batch and on any number of ranks. Tokens that
the sampler never committed (behind the end of sequence) are hidden in every view and never
scored, as the sampler saw them.

| file | maskings | what they take from the trace |
|---|---|---|
| basic.py | all, random, coupled, coupled_ratio | which tokens were committed |
| states.py | sequential, trace, replay, left_to_right | the denoising steps |
| elbo.py | elbo, quadrature, block | which tokens were committed; 1/t weights |
"""

from dataclasses import replace

import torch
from torch import Tensor

from drift.common import rng
from drift.common.types import MaskedViews, Rollout, Trace
from drift.config.masking import MASKINGS, MaskingConfig
from drift.learner.masking import basic as basic, elbo as elbo, states as states


def build_views(trace: Trace, rows_B: Tensor, config: MaskingConfig, key: int) -> MaskedViews:
    """The K views of each row, by the chosen masking.

    Args:
        trace: of B rows; every row has at least one committed token.
        rows_B: [B] int64, numbers that name the rows in the random numbers.
        config: of the masking. K is config.num_views, or as many as the rows' steps (trace,
            replay) or tokens (left_to_right) need.
        key: of the random numbers, from `rng.stream`.
    """
    views: MaskedViews = MASKINGS.function(config)(trace, rows_B, config, key)
    return replace(
        views, prompt_mask_prob=config.prompt_mask_prob, prompt_key=rng.stream(key, "prompt")
    )


def prompt_masks(views: MaskedViews, rollout: Rollout) -> Tensor | None:
    """Which prompt tokens each view hides: [K, B, L] bool, L the longest prompt; None: none.

    Each prompt token is hidden with `prompt_mask_prob` in each view (d1, arXiv 2504.12216), the
    chat template's tokens like the others.
    """
    if views.prompt_mask_prob == 0:
        return None
    num_views, device = len(views.hidden_KBC), rollout.rows_B.device
    longest = max(map(len, rollout.prompts.ids))
    noise_KBL = rng.uniform(
        views.prompt_key,
        torch.arange(num_views, device=device)[:, None, None],
        rollout.rows_B[:, None],
        torch.arange(longest, device=device),
    )
    return noise_KBL < views.prompt_mask_prob
