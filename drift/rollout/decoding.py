"""Block-wise semi-autoregressive denoising, one engine for rollout, evaluation and generation.

Each row has its own slot, its own block and its own step. A row leaves as soon as a finished block
holds a stop token or its canvas is full, and the next row takes its slot; the head runs on the
masked positions of the current blocks only. Without a cache the result of a row is exactly the
network's, alone or in any batch. Source: LLaDA (arXiv 2502.09992), section on semi-autoregressive
remasking.

Blocks are counted from the end of the prompt; where the network's attention is block-causal, from
position 0 of the row, as the network counts them (SDAR, arXiv 2510.06303). Then the end of the
prompt stands in the first block, given and never masked, and a row decodes through the whole block
that holds the last token of its canvas.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drift.common import rng
from drift.common.errors import RolloutError
from drift.common.types import Trace
from drift.config.rollout import RolloutConfig
from drift.policy.base import Policy
from drift.rollout.caching import Blocks, Network, open_cache
from drift.rollout.remasking import rule_of, shuffle
from drift.rollout.sampling import draw

ORDER = 1  # counter that keeps the noise over positions apart from the noise over words
GIVEN = 0  # the unmask step of a prompt's tokens: any that is none of the masked


@dataclass(slots=True, kw_only=True)
class _State:
    """Every row of a call, waiting, active or done; columns are those of the row, prompt first."""

    ids_BS: Tensor  # prompt + canvas + padding
    prompt_length_B: Tensor
    prompt_B: Tensor  # equal for equal prompts
    rows_B: Tensor  # global row numbers, for the random numbers
    step_BS: Tensor  # unmask_step
    logp_BS: Tensor
    column_B: Tensor  # where the row's current block begins
    steps_B: Tensor  # denoising steps taken
    block_steps_B: Tensor  # of them, in the current block
    commits_B: Tensor  # evaluations that kept a finished block
    committing_B: Tensor  # bool; the current block is finished and the next evaluation keeps it
    length_B: Tensor
    finished_B: Tensor
    block_length: int  # of the network's attention
    canvas_length: int

    def trace(self) -> Trace:
        columns_C = torch.arange(self.canvas_length, device=self.step_BS.device)
        place_BC = self.prompt_length_B[:, None] + columns_C
        return Trace(
            prompt_length_B=self.prompt_length_B,
            canvas_BC=self.ids_BS.gather(1, place_BC),
            unmask_step_BC=self.step_BS.gather(1, place_BC),
            logp_BC=self.logp_BS.gather(1, place_BC),
            length_B=self.length_B,
            finished_B=self.finished_B,
            nfe_B=self.steps_B,
            commits_B=self.commits_B,
            block_length=self.block_length,
        )


def start(
    policy: Policy, prompts: list[list[int]], rows_B: Tensor, config: RolloutConfig
) -> _State:
    """Rows with an all-mask canvas behind their prompt.

    Raises:
        RolloutError: a prompt is empty, or the blocks are not the network's.
    """
    device, grid, rows = policy.device, policy.backbone.config.block_length, len(prompts)
    if grid and config.block_length != grid:
        raise RolloutError(
            f"rollout.block_length={config.block_length}, but the network's attention has blocks "
            f"of {grid}; use rollout.block_length={grid}"
        )
    size = config.gen_length + max(grid - 1, 0)
    longest = max(map(len, prompts), default=0)
    ids = torch.full((rows, longest + size), policy.special.pad)
    seen: dict[tuple[int, ...], int] = {}
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise RolloutError(f"prompt {i} is empty; give it at least one token")
        ids[i, : len(prompt)] = torch.tensor(prompt)
        ids[i, len(prompt) : len(prompt) + size] = policy.special.mask
    same = [seen.setdefault(tuple(prompt), i) for i, prompt in enumerate(prompts)]
    prompt_length_B = torch.tensor([len(p) for p in prompts], dtype=torch.int64, device=device)
    columns_S = torch.arange(longest + size, device=device)
    counts = [torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(4)]
    flags = [torch.zeros(rows, dtype=torch.bool, device=device) for _ in range(2)]
    return _State(
        ids_BS=ids.to(device),
        prompt_length_B=prompt_length_B,
        prompt_B=torch.tensor(same, device=device),
        rows_B=rows_B.to(device),
        step_BS=torch.where(columns_S < prompt_length_B[:, None], GIVEN, -1),
        logp_BS=torch.zeros(rows, longest + size, device=device),
        column_B=prompt_length_B // grid * grid if grid else prompt_length_B.clone(),
        steps_B=counts[0],
        block_steps_B=counts[1],
        commits_B=counts[2],
        length_B=counts[3],
        committing_B=flags[0],
        finished_B=flags[1],
        block_length=grid,
        canvas_length=size,
    )


@torch.no_grad()
def decode(
    policy: Policy,
    prompts: list[list[int]],
    rows_B: Tensor,
    config: RolloutConfig,
    key: int,
    watch: Callable[[Trace], None] | None = None,
    count: Callable[[float], None] | None = None,
) -> Trace:
    """Complete each prompt once.

    Args:
        policy: the network; its device and dtype are used.
        prompts: B prompts as token ids, lengths may differ; a rank can be without any.
        rows_B: [B] int64, numbers that name the rows in the random numbers.
        config: sizes, cache, remasking rule, sampling, rows decoded at the same time.
        key: of the random numbers, from `rng.stream`.
        watch: called after each step with the trace so far.
        count: called after each step with how many rows are done; one in work counts by its blocks.

    Returns:
        The trace of every row, in the order of prompts.

    Raises:
        RolloutError: a prompt is empty, or the settings do not go with the network.
    """
    state = start(policy, prompts, rows_B, config)
    slots = min(config.max_rows, len(prompts))
    network = open_cache(policy, config, slots, state.ids_BS.shape[1])
    active, waiting = list(range(slots)), list(range(slots, len(prompts)))[::-1]
    while active:
        active_A = torch.tensor(active, device=policy.device)
        done_A = denoise(policy, network, state, active_A, config, key)
        retire(active, waiting, done_A.tolist(), network)
        if watch:
            watch(state.trace())
        if count:
            begun_A = (state.column_B - state.prompt_length_B)[active].clamp(min=0)
            share = int(begun_A.sum()) / config.gen_length
            count(len(prompts) - len(active) - len(waiting) + share)
    policy.settle()
    return state.trace()


def retire(active: list[int], waiting: list[int], done: list[bool], network: Network) -> None:
    """Give the slots of rows that are done to waiting rows, else to the rows of the last slots."""
    for slot in reversed([i for i, is_done in enumerate(done) if is_done]):
        if waiting:
            active[slot] = waiting.pop()
        else:
            last = active.pop()
            if slot < len(active):
                active[slot] = last
                network.move(len(active), slot)


def denoise(
    policy: Policy,
    network: Network,
    state: _State,
    active_A: Tensor,
    config: RolloutConfig,
    key: int,
) -> Tensor:
    """One evaluation of the active rows; returns which of them are done: [A] bool.

    A denoising step; for a row whose block is finished, the one that keeps it in the cache.
    """
    size, device = config.block_length, active_A.device
    step_A, row_A = state.steps_B[active_A], state.rows_B[active_A]
    column_AK = state.column_B[active_A, None] + torch.arange(size, device=device)
    canvas_AK = column_AK - state.prompt_length_B[active_A, None]
    masked_AK = state.step_BS[active_A[:, None], column_AK] < 0
    a_N, k_N = masked_AK.nonzero(as_tuple=True)
    hidden_AKD = network.hidden(blocks(state, active_A, config))
    noise_N = rng.uniform(key, row_A[a_N], step_A[a_N], canvas_AK[a_N, k_N])
    token_N, logp_N, confidence_N = draw(policy, hidden_AKD[a_N, k_N], noise_N, config)

    confidence_AK = confidence_N.new_zeros(masked_AK.shape)
    confidence_AK[a_N, k_N] = confidence_N
    if config.position_temperature or config.confidence == "random":
        place_AK = canvas_AK.clamp(min=0)  # what is given is never chosen
        order = rng.uniform(key, row_A[:, None], step_A[:, None], place_AK, torch.tensor(ORDER))
        confidence_AK = shuffle(confidence_AK, order, config.position_temperature or 1.0)
    # a finished block that is only shown has none left, and nothing to commit
    steps_left_A = (config.steps_of_block - state.block_steps_B[active_A]).clamp(min=1)
    rule = rule_of(config)
    commit_N = rule(confidence_AK, masked_AK, steps_left_A, config)[a_N, k_N]

    batch_N = active_A[a_N[commit_N]]
    place = (batch_N, column_AK[a_N, k_N][commit_N])
    state.ids_BS[place] = token_N[commit_N]
    state.step_BS[place] = state.steps_B[batch_N]
    state.logp_BS[place] = logp_N[commit_N].to(state.logp_BS.dtype)
    return advance(policy, network, state, active_A, column_AK, config)


def blocks(state: _State, active_A: Tensor, config: RolloutConfig) -> Blocks:
    """What the network must see of the active rows."""
    block_steps_A = state.block_steps_B[active_A]
    column_A = state.column_B[active_A]
    if state.block_length:  # what follows the block is not attended to
        length_A = column_A + config.block_length
    else:
        length_A = state.prompt_length_B[active_A] + config.gen_length
    every = config.refresh_every or config.gen_length
    # untouched rows of one prompt are the same row; the first of them stands for all
    untouched_A = state.steps_B[active_A] == 0
    same_AA = state.prompt_B[active_A][:, None] == state.prompt_B[active_A]
    same_AA &= untouched_A[:, None] & untouched_A
    slots_A = torch.arange(len(active_A), device=active_A.device)
    return Blocks(
        ids_AS=state.ids_BS[active_A, : int(length_A.max())],
        length_A=length_A,
        column_A=column_A,
        prompt_A=state.prompt_B[active_A],
        untouched_A=untouched_A,
        committing_A=state.committing_B[active_A],
        twin_A=torch.where(untouched_A, same_AA.int().argmax(1), slots_A),
        fresh_A=block_steps_A % every == 0,
    )


def advance(
    policy: Policy,
    network: Network,
    state: _State,
    active_A: Tensor,
    column_AK: Tensor,
    config: RolloutConfig,
) -> Tensor:
    """Move rows whose block is full to their next block; returns the rows that are done: [A].

    A network that keeps finished blocks is shown such a block once more first, without masks.
    """
    kept_A = state.committing_B[active_A]
    state.steps_B[active_A] += (~kept_A).long()
    state.block_steps_B[active_A] += (~kept_A).long()
    state.commits_B[active_A] += kept_A.long()

    full_A = (state.step_BS[active_A[:, None], column_AK] >= 0).all(1)
    canvas_AK = column_AK - state.prompt_length_B[active_A, None]
    tokens_AK = state.ids_BS[active_A[:, None], column_AK]
    stop = torch.tensor(policy.special.stop, device=active_A.device)
    is_stop_AK = torch.isin(tokens_AK, stop) & (canvas_AK >= 0) & (canvas_AK < config.gen_length)
    stopped_A = full_A & is_stop_AK.any(1)
    first_stop_A = canvas_AK.gather(1, is_stop_AK.int().argmax(1, keepdim=True))[:, 0]
    done_A = stopped_A | (full_A & (canvas_AK[:, -1] >= config.gen_length - 1))

    state.length_B[active_A] = torch.where(stopped_A, first_stop_A + 1, config.gen_length)
    state.finished_B[active_A] = stopped_A
    leaves_A = full_A & ~done_A & ~kept_A
    moves_A = kept_A if network.keeps_blocks else leaves_A
    state.committing_B[active_A] = leaves_A & ~moves_A
    state.column_B[active_A] += torch.where(moves_A, config.block_length, 0)
    state.block_steps_B[active_A[moves_A]] = 0
    return done_A
