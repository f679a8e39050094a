"""Block-wise semi-autoregressive denoising, one engine for rollout, evaluation and generation.

Each row has its own slot, its own block and its own step. A row leaves as soon as a finished block
holds a stop token or its canvas is full, and the next row takes its slot; the head runs on the
masked positions of the current blocks only. Without a cache the result of a row is exactly the
network's, alone or in any batch. Source: LLaDA (arXiv 2502.09992), section on semi-autoregressive
remasking.
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
from drift.rollout.caching import Blocks, Cached, Exact, open_cache
from drift.rollout.remasking import rule_of, shuffle
from drift.rollout.sampling import draw

ORDER = 1  # counter that keeps the noise over positions apart from the noise over words


@dataclass(slots=True, kw_only=True)
class _State:
    """Every row of a call, waiting, active or done."""

    ids_BS: Tensor  # prompt + canvas + padding
    prompt_length_B: Tensor
    prompt_B: Tensor  # equal for equal prompts
    rows_B: Tensor  # global row numbers, for the random numbers
    step_BC: Tensor  # unmask_step
    logp_BC: Tensor
    block_B: Tensor  # the row's current block
    steps_B: Tensor  # denoising steps taken
    block_steps_B: Tensor  # of them, in the current block
    length_B: Tensor
    finished_B: Tensor

    def trace(self) -> Trace:
        columns_C = torch.arange(self.step_BC.shape[1], device=self.step_BC.device)
        return Trace(
            prompt_length_B=self.prompt_length_B,
            canvas_BC=self.ids_BS.gather(1, self.prompt_length_B[:, None] + columns_C),
            unmask_step_BC=self.step_BC,
            logp_BC=self.logp_BC,
            length_B=self.length_B,
            finished_B=self.finished_B,
            nfe_B=self.steps_B,
        )


def start(
    policy: Policy, prompts: list[list[int]], rows_B: Tensor, config: RolloutConfig
) -> _State:
    """Rows with an all-mask canvas behind their prompt."""
    device, size = policy.device, config.gen_length
    longest = max(map(len, prompts), default=0)
    ids = torch.full((len(prompts), longest + size), policy.special.pad)
    seen: dict[tuple[int, ...], int] = {}
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise RolloutError(f"prompt {i} is empty; give it at least one token")
        ids[i, : len(prompt)] = torch.tensor(prompt)
        ids[i, len(prompt) : len(prompt) + size] = policy.special.mask
    counts = [torch.zeros(len(prompts), dtype=torch.int64, device=device) for _ in range(4)]
    same = [seen.setdefault(tuple(prompt), i) for i, prompt in enumerate(prompts)]
    return _State(
        ids_BS=ids.to(device),
        prompt_length_B=torch.tensor([len(p) for p in prompts], device=device),
        prompt_B=torch.tensor(same, device=device),
        rows_B=rows_B.to(device),
        step_BC=torch.full((len(prompts), size), -1, device=device),
        logp_BC=torch.zeros(len(prompts), size, device=device),
        block_B=counts[0],
        steps_B=counts[1],
        block_steps_B=counts[2],
        length_B=counts[3],
        finished_B=torch.zeros(len(prompts), dtype=torch.bool, device=device),
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
        RolloutError: a prompt is empty.
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
            share = int(state.block_B[active].sum()) * config.block_length / config.gen_length
            count(len(prompts) - len(active) - len(waiting) + share)
    policy.settle()
    return state.trace()


def retire(
    active: list[int], waiting: list[int], done: list[bool], network: Exact | Cached
) -> None:
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
    network: Exact | Cached,
    state: _State,
    active_A: Tensor,
    config: RolloutConfig,
    key: int,
) -> Tensor:
    """One denoising step of the active rows; returns which of them are done: [A] bool."""
    size, device = config.block_length, active_A.device
    step_A, row_A = state.steps_B[active_A], state.rows_B[active_A]
    canvas_AK = (state.block_B[active_A] * size)[:, None] + torch.arange(size, device=device)
    masked_AK = state.step_BC[active_A[:, None], canvas_AK] < 0
    a_N, k_N = masked_AK.nonzero(as_tuple=True)
    canvas_N, batch_N = canvas_AK[a_N, k_N], active_A[a_N]
    hidden_AKD = network.hidden(blocks(state, active_A, config))
    noise_N = rng.uniform(key, row_A[a_N], step_A[a_N], canvas_N)
    token_N, logp_N, confidence_N = draw(policy, hidden_AKD[a_N, k_N], noise_N, config)

    confidence_AK = torch.zeros(masked_AK.shape, device=device)
    confidence_AK[a_N, k_N] = confidence_N
    if config.position_temperature or config.confidence == "random":
        order = rng.uniform(key, row_A[:, None], step_A[:, None], canvas_AK, torch.tensor(ORDER))
        confidence_AK = shuffle(confidence_AK, order, config.position_temperature or 1.0)
    steps_left_A = config.steps_of_block - state.block_steps_B[active_A]
    rule = rule_of(config)
    commit_N = rule(confidence_AK, masked_AK, steps_left_A, config)[a_N, k_N]

    place = (batch_N[commit_N], canvas_N[commit_N])
    state.ids_BS[place[0], state.prompt_length_B[place[0]] + place[1]] = token_N[commit_N]
    state.step_BC[place] = state.steps_B[place[0]]
    state.logp_BC[place] = logp_N[commit_N]
    state.steps_B[active_A] += 1
    state.block_steps_B[active_A] += 1
    return advance(policy, state, active_A, canvas_AK, config)


def blocks(state: _State, active_A: Tensor, config: RolloutConfig) -> Blocks:
    """What the network must see of the active rows."""
    prompt_length_A = state.prompt_length_B[active_A]
    length_A = prompt_length_A + config.gen_length
    block_steps_A = state.block_steps_B[active_A]
    every = config.refresh_every or config.gen_length
    # untouched rows of one prompt are the same row; the first of them stands for all
    untouched_A = state.steps_B[active_A] == 0
    same_AA = state.prompt_B[active_A][:, None] == state.prompt_B[active_A]
    same_AA &= untouched_A[:, None] & untouched_A
    slots_A = torch.arange(len(active_A), device=active_A.device)
    twin_A = torch.where(untouched_A, same_AA.int().argmax(1), slots_A)
    return Blocks(
        ids_AS=state.ids_BS[active_A, : int(length_A.max())],
        length_A=length_A,
        column_A=prompt_length_A + state.block_B[active_A] * config.block_length,
        twin_A=twin_A,
        fresh_A=block_steps_A % every == 0,
    )


def advance(
    policy: Policy, state: _State, active_A: Tensor, canvas_AK: Tensor, config: RolloutConfig
) -> Tensor:
    """Move rows whose block is full to their next block; returns the rows that are done: [A]."""
    full_A = (state.step_BC[active_A[:, None], canvas_AK] >= 0).all(1)
    columns_AK = state.prompt_length_B[active_A][:, None] + canvas_AK
    tokens_AK = state.ids_BS[active_A[:, None], columns_AK]
    stop = torch.tensor(policy.special.stop, device=active_A.device)
    is_stop_AK = torch.isin(tokens_AK, stop)
    stopped_A = full_A & is_stop_AK.any(1)
    first_stop_A = canvas_AK.gather(1, is_stop_AK.int().argmax(1, keepdim=True))[:, 0]
    end_A = full_A & (canvas_AK[:, -1] == config.gen_length - 1)
    length_A = torch.where(stopped_A, first_stop_A + 1, config.gen_length)

    state.length_B[active_A] = length_A
    state.finished_B[active_A] = stopped_A
    state.block_B[active_A] += full_A.long()
    state.block_steps_B[active_A[full_A]] = 0
    return stopped_A | end_A
