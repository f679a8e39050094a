"""What a step of RL costs: arithmetic, and what the ranks send one another; from the sizes alone.

FLOPs are counted as two for each multiplication of a matrix by a token, attention to all keys
included. Bytes are those that one rank sends in a ring: (R - 1) / R of a tensor for an all-gather
or a reduce-scatter, twice that for an all-reduce. Counts are of the longest rows and of all
denoising steps: upper bounds where rows end early or several tokens are committed at a time.
"""

from math import ceil

import torch

from drift.config.commands import RunConfig
from drift.config.masking import LeftToRightConfig, ReplayConfig, SequentialConfig, TraceConfig
from drift.config.objective import Level
from drift.config.rollout import CacheMode, RolloutConfig, RolloutWeights, Schedule, StaticConfig
from drift.learner.likelihood import asks_old
from drift.planning.memory import (
    Sizes,
    Terms,
    adds_up_whole,
    block_parameters,
    num_parameters,
    num_trained,
    rows_of_forward,
)
from drift.policy.backbone import BackboneConfig
from drift.rollout.remasking import static_count


def layer_flops(b: BackboneConfig, tokens: float, last: float, keys: float) -> float:
    """Forward of `tokens` columns through the blocks, `last` of them through the last block's end.

    All columns need keys and values in the last block, only the wanted ones the rest of it.
    """
    kv = 2 * b.num_kv_heads * b.head_size
    key_values = 2 * b.hidden_size * kv
    q = b.num_heads * b.head_size
    rest = 2 * (2 * b.hidden_size * q + 3 * b.hidden_size * b.mlp_size)
    through = tokens * (b.num_layers - 1) + last
    return b.num_layers * tokens * key_values + through * (rest + 4 * q * keys)


def head_flops(b: BackboneConfig, positions: float) -> float:
    return 2.0 * b.vocab_size * b.hidden_size * positions


def masked_of_block(rollout: RolloutConfig) -> float:
    """Positions that the head sees in one block, over its steps."""
    block, steps = rollout.block_length, rollout.steps_of_block
    if not isinstance(rollout, StaticConfig) or rollout.schedule == Schedule.equal:
        return (steps + 1) * block / 2
    total, masked = 0, torch.tensor(block)
    for left in range(steps, 0, -1):
        total += int(masked)
        masked = masked - static_count(masked, torch.tensor(left), rollout)
    return total


def rollout_flops(b: BackboneConfig, rollout: RolloutConfig, row: int) -> float:
    """Decoding of one completion: every step over the whole row, or over a cache.

    With a cache the whole row is computed when a block begins and at each refresh, then the block
    and its horizon; the rows of a batch begin their blocks together. Where attention is
    block-causal, a step computes up to the end of the block, or with a cache the block alone, once
    more when it is finished; the prompt is computed once for a group.
    """
    block, steps = rollout.block_length, rollout.steps
    num_blocks = rollout.gen_length // block
    steps_of_block, masked = rollout.steps_of_block, num_blocks * masked_of_block(rollout)
    cache = rollout.cache_for(b.block_length)
    if b.block_length:
        prompt = row - rollout.gen_length
        total = head_flops(b, masked)
        for i in range(num_blocks):
            end = prompt + (i + 1) * block
            if cache == CacheMode.none:
                total += steps_of_block * layer_flops(b, end, block, end / 2)
            else:
                evaluations = steps_of_block + (i < num_blocks - 1)
                total += evaluations * layer_flops(b, block, block, end)
        prefill = layer_flops(b, prompt, 0, prompt / 2) / rollout.group_size
        return total + (prefill if cache == CacheMode.block else 0)
    if cache == CacheMode.none:
        return steps * layer_flops(b, row, block, row) + head_flops(b, masked)
    horizon = rollout.gen_length if rollout.horizon is None else rollout.horizon
    if cache == CacheMode.dual:
        horizon = 0
    fills = ceil(steps_of_block / (rollout.refresh_every or steps_of_block))
    total = num_blocks * fills * layer_flops(b, row, block, row) + head_flops(b, masked)
    for i in range(num_blocks):
        behind = min(horizon, rollout.gen_length - (i + 1) * block)
        total += (steps_of_block - fills) * layer_flops(b, block + behind, block, row)
    return total


def passes(config: RunConfig, row: int) -> dict[str, float]:
    """Forwards that a view costs: of frozen policies in a step, of the trained one in an update.

    A backward costs two forwards, one more with gradient checkpointing; an adapter's base has no
    gradient of its weights, which is half of it.
    """
    frozen = config.objective.has_reference * draws(config) + old_passes(config, row)
    adapter = config.model.lora.rank > 0
    return {"frozen": frozen, "trained": 3 + config.model.gradient_checkpointing - adapter}


def draws(config: RunConfig) -> int:
    """How often views are drawn in a step."""
    return config.objective.num_updates if config.masking.redraw else 1


def old_passes(config: RunConfig, row: int) -> int:
    """Forwards over the views without a backward, as far as the settings say.

    Forwards of the old policy, plus one per update after the first for losses at level=token or
    sequence.
    """
    masking, objective = config.masking, config.objective
    candidates = isinstance(masking, SequentialConfig) and masking.low_prob_threshold < 1
    rows_fit = num_views(config) * row <= config.optim.tokens_per_forward
    found = asks_old(objective, candidates, rows_fit) * draws(config)
    return found + (objective.level != Level.view) * (objective.num_updates - 1)


def num_views(config: RunConfig) -> int:
    """Views of one completion; of a masking that follows the steps, as many as there can be."""
    masking, rollout = config.masking, config.rollout
    if isinstance(masking, TraceConfig):
        return ceil(rollout.steps / masking.shrink)
    if isinstance(masking, ReplayConfig):
        return rollout.steps
    if isinstance(masking, LeftToRightConfig):
        return rollout.gen_length
    return int(vars(masking)["num_views"])


def learner_flops(b: BackboneConfig, config: RunConfig, row: int) -> float:
    """Updates on the K views of one completion, every canvas token scored."""
    canvas, count = config.rollout.gen_length, passes(config, row)
    forward = layer_flops(b, row, canvas, row) + head_flops(b, canvas)
    each = count["frozen"] + config.objective.num_updates * count["trained"]
    return num_views(config) * forward * each


def rows_of_rank(config: RunConfig, ranks: int) -> int:
    return config.rollout.prompts_per_step * config.rollout.group_size // ranks


def micro_batches(config: RunConfig, ranks: int, row: int) -> int:
    """Learner forwards of one pass over a rank's view-rows, of `row` tokens each."""
    view_rows = rows_of_rank(config, ranks) * num_views(config)
    return ceil(view_rows / rows_of_forward(config.optim, row))


def traffic(sizes: Sizes, config: RunConfig) -> Terms:
    """Bytes that one rank sends in one step."""
    split, terms = sizes.split, Terms()
    if split.ranks == 1:
        return terms
    w, share = sizes.width, (split.ranks - 1) / split.ranks
    trained = num_trained(sizes.model, sizes.backbone)
    updates = config.objective.num_steps
    cuts = ceil(micro_batches(config, split.ranks, sizes.row) / config.objective.num_minibatches)
    if split.stage == 0 or adds_up_whole(sizes):
        terms.put("all-reduce of gradients", 2 * 4 * trained * share * updates, "8 T (R-1)/R")
    elif split.stage == 1:
        terms.put("reduce-scatter of gradients", 4 * trained * share * updates, "4 T (R-1)/R")
    if split.stage >= 2:
        terms.put(
            "reduce-scatter of gradients",
            w * trained * share * updates * cuts,
            f"w T (R-1)/R, {cuts} micro-batches",
        )
    if split.stage in (1, 2):
        terms.put("all-gather of new weights", w * trained * share * updates, "w T (R-1)/R")
    if split.stage == 3:
        terms.take(gathers(sizes, config, cuts))
    return terms


def gathers(sizes: Sizes, config: RunConfig, cuts: int) -> Terms:
    """What ZeRO-3 collects: weights for each forward and backward, and for the sampler."""
    b, w, split = sizes.backbone, sizes.width, sizes.split
    share, terms = (split.ranks - 1) / split.ranks, Terms()
    trained = num_trained(sizes.model, b)
    adapter = trained if sizes.model.lora.rank else 0
    whole = w * (num_parameters(b) + adapter) * share
    updates, parts = config.objective.num_steps, config.objective.num_minibatches
    old = old_passes(config, sizes.row) * parts
    if adapter and config.objective.has_reference:
        # the reference is the base, gathered like the policy
        old += draws(config) * parts
    terms.put(
        "all-gather in forwards",
        whole * cuts * (updates + old),
        f"w N (R-1)/R, {cuts * (updates + old)} times",
    )
    terms.put(
        "all-gather in backwards", whole * cuts * updates, f"w N (R-1)/R, {cuts * updates} times"
    )
    rollout = config.rollout
    if rollout.weights == RolloutWeights.gather:
        turns = rollout.steps * ceil(rows_of_rank(config, split.ranks) / rollout.max_rows)
        blocks = w * b.num_layers * block_parameters(b) * share
        terms.put("all-gather in rollout", blocks * turns, f"w L block (R-1)/R, {turns} times")
    else:
        terms.put("refresh of the replica", w * trained * share, "w T (R-1)/R")
    return terms
