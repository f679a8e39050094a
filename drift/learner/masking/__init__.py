"""Masking: which tokens of a completion to hide, and which hidden ones to score.

A masking is a function (Trace, rows, config, key) -> MaskedViews, entered in `MASKINGS` under the
class of its settings. It depends on nothing but its arguments: the same row gets the same views in
any batch and on any number of ranks. Tokens that the sampler never committed (after the block of
the stop token) are hidden in every view and never scored, as the sampler saw them.

| file | maskings | what they take from the trace |
|---|---|---|
| basic.py | all, random, coupled, coupled_ratio | which tokens were committed |
| states.py | sequential, trace, replay, left_to_right | the denoising steps |
| elbo.py | elbo, quadrature, block | which tokens were committed; 1/t weights |

views.py has what they are made with.
"""

from dataclasses import replace

from torch import Tensor

from drift.common import rng
from drift.common.types import MaskedViews, Trace
from drift.config.commands import RunConfig
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
    return replace(views, prompt_mask_prob=config.prompt_mask_prob, key=key)


def draw_views(trace: Trace, rows_B: Tensor, config: RunConfig, key: int) -> list[MaskedViews]:
    """The views of an update; with `masking.redraw`, of each pass over the rollout.

    Arguments as `build_views`, but for the config, which is the run's.
    """
    number = config.objective.num_updates if config.masking.redraw else 1
    keys = [key, *(rng.stream(key, "redraw", i) for i in range(1, number))]
    return [build_views(trace, rows_B, config.masking, k) for k in keys]
