"""Block-wise semi-autoregressive denoising, one engine for rollout, evaluation and generation.

Each row has its own block and its own step. A row leaves the batch as soon as a finished block
holds a stop token or its canvas is full, and the next row takes its place; the head runs on the
masked positions of the current blocks only. Without a cache the result of a row is exactly the
network's, alone or in any batch. Source: LLaDA (arXiv 2502.09992), section on semi-autoregressive
remasking.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from drift import rng
from drift.config import RolloutConfig
from drift.policy.base import Policy
from drift.remasking import RULES
from drift.types import Trace


@dataclass(slots=True, kw_only=True)
class _State:
    """Every row of a call, waiting, active or done."""

    ids_BS: Tensor  # prompt + canvas + padding
    prompt_length_B: Tensor
    rows_B: Tensor  # global row numbers, for the random numbers
    step_BC: Tensor  # unmask_step
    logp_BC: Tensor
    block_B: Tensor  # the row's current block
    steps_B: Tensor  # denoising steps taken
    block_steps_B: Tensor  # of them, in the current block
    length_B: Tensor
    finished_B: Tensor


def start(
    policy: Policy, prompts: list[list[int]], rows_B: Tensor, config: RolloutConfig
) -> _State:
    """Rows with an all-mask canvas behind their prompt."""
    device, size = policy.device, config.gen_length
    ids = torch.full(
        (len(prompts), max(map(len, prompts)) + size), policy.special.pad, device=device
    )
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt, device=device)
        ids[i, len(prompt) : len(prompt) + size] = policy.special.mask
    counts = [torch.zeros(len(prompts), dtype=torch.int64, device=device) for _ in range(4)]
    return _State(
        ids_BS=ids,
        prompt_length_B=torch.tensor([len(p) for p in prompts], device=device),
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
    policy: Policy, prompts: list[list[int]], rows_B: Tensor, config: RolloutConfig, key: int
) -> Trace:
    """Complete each prompt once.

    Args:
        policy: the network; its device and dtype are used.
        prompts: B prompts as token ids, lengths may differ.
        rows_B: [B] int64, numbers that name the rows in the random numbers.
        config: sizes, remasking rule, temperature (0 = greedy), rows decoded at the same time.
        key: of the random numbers, from `rng.stream`.

    Returns:
        The trace of every row, in the order of prompts.
    """
    state = start(policy, prompts, rows_B, config)
    waiting = list(range(len(prompts)))[::-1]
    active: list[int] = []
    while waiting or active:
        while waiting and len(active) < config.max_rows:
            active.append(waiting.pop())
        done_A = denoise(policy, state, torch.tensor(active, device=policy.device), config, key)
        active = [row for row, done in zip(active, done_A.tolist(), strict=True) if not done]
    columns_BC = state.prompt_length_B[:, None] + torch.arange(config.gen_length).to(policy.device)
    return Trace(
        canvas_BC=state.ids_BS.gather(1, columns_BC),
        unmask_step_BC=state.step_BC,
        logp_BC=state.logp_BC,
        length_B=state.length_B,
        finished_B=state.finished_B,
        nfe_B=state.steps_B,
    )


def denoise(
    policy: Policy, state: _State, active_A: Tensor, config: RolloutConfig, key: int
) -> Tensor:
    """One denoising step of the active rows; returns which of them are done: [A] bool."""
    size = config.block_length
    length_A = state.prompt_length_B[active_A] + config.gen_length
    ids_AS = state.ids_BS[active_A, : int(length_A.max())]
    hidden_ASD = policy.hidden(ids_AS, length_A)

    offset_A = state.block_B[active_A] * size
    canvas_AK = offset_A[:, None] + torch.arange(size, device=active_A.device)
    masked_AK = state.step_BC[active_A[:, None], canvas_AK] < 0
    row_N, k_N = masked_AK.nonzero(as_tuple=True)
    canvas_N = canvas_AK[row_N, k_N]
    column_N = state.prompt_length_B[active_A][row_N] + canvas_N
    noise_N = rng.uniform(
        key, state.rows_B[active_A][row_N], state.steps_B[active_A][row_N], canvas_N
    )
    token_N, logp_N, confidence_N = sample(
        policy, hidden_ASD[row_N, column_N], noise_N, config.temperature
    )

    confidence_AK = torch.zeros(masked_AK.shape, device=active_A.device)
    confidence_AK[row_N, k_N] = confidence_N
    steps_left_A = config.steps * size // config.gen_length - state.block_steps_B[active_A]
    rule = RULES[config.remasking]
    commit_N = rule(confidence_AK, masked_AK, steps_left_A, config.threshold)[row_N, k_N]

    batch_N = active_A[row_N][commit_N]
    state.ids_BS[batch_N, column_N[commit_N]] = token_N[commit_N]
    state.step_BC[batch_N, canvas_N[commit_N]] = state.steps_B[batch_N]
    state.logp_BC[batch_N, canvas_N[commit_N]] = logp_N[commit_N]
    state.steps_B[active_A] += 1
    state.block_steps_B[active_A] += 1
    return advance(policy, state, active_A, canvas_AK, config)


def sample(
    policy: Policy, hidden_ND: Tensor, noise_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token at each position, in chunks, by inversion of the cumulative distribution.

    One uniform number decides a position, so the cost of randomness does not grow with the
    vocabulary (Gumbel-max, which draws the same distribution, needs one number for each word).

    Args:
        policy: its head makes the logits.
        hidden_ND: [N, D], aligned.
        noise_N: [N] float64 in (0, 1).
        temperature: 0 = the most likely token.

    Returns:
        tokens [N] int64; their log-prob at the temperature (at 1 when greedy) [N] float32; and
        their probability at temperature 1, the confidence [N] float32.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    chunk = policy.head_chunk()
    for hidden, noise in zip(hidden_ND.split(chunk), noise_N.split(chunk), strict=True):
        logits = policy.denoising_logits(hidden)
        plain = logits.log_softmax(-1)
        if temperature == 0:
            token, tempered = logits.argmax(-1), plain
        else:
            tempered = plain if temperature == 1 else (logits / temperature).log_softmax(-1)
            token = invert(tempered, noise)
        logp = tempered.gather(-1, token[:, None])[:, 0]
        parts.append((token, logp, plain.gather(-1, token[:, None])[:, 0].exp()))
    tokens, logps, confidences = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logps), torch.cat(confidences)


def invert(logps_NV: Tensor, noise_N: Tensor) -> Tensor:
    """The token whose share of the cumulative distribution holds the noise: [N] int64."""
    cumulative_NV = logps_NV.double().exp().cumsum(-1)
    total_N1 = cumulative_NV[:, -1:]
    below_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))
    target_N1 = torch.minimum(noise_N.double()[:, None] * total_N1, below_N1)
    return torch.searchsorted(cumulative_NV, target_N1, right=True)[:, 0]


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
