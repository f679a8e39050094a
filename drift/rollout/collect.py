"""Prompts to graded completions."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from drift.common import terminal
from drift.common.types import PromptBatch, Rollout, Trace
from drift.config.rollout import RolloutConfig
from drift.policy.base import Policy
from drift.rollout.decoding import decode
from drift.tasks import Task
from drift.tasks.reward import grade


def texts_of(policy: Policy, trace: Trace) -> list[str]:
    """The text of each row up to its first stop token, special tokens left out."""
    if not len(trace.canvas_BC):
        return []
    lengths = trace.length_B.tolist()
    canvases = trace.canvas_BC.tolist()
    ids = [canvas[:length] for canvas, length in zip(canvases, lengths, strict=True)]
    if not ids:  # of no rows the tokenizer makes one text
        return []
    return policy.tokenizer.batch_decode(ids, skip_special_tokens=True)


def completions(
    policy: Policy,
    prompts: PromptBatch,
    config: RolloutConfig,
    key: int,
    *,
    group_size: int,
    watch: Callable[[Trace], None] | None = None,
    count: Callable[[float], None] | None = None,
) -> Rollout:
    """Complete each prompt `group_size` times; nothing is graded.

    Args:
        policy, config, key, watch, count: as `decode` takes them.
        prompts: P prompts; the number of the first one says how the rows are numbered.
        group_size: G completions of a prompt, whatever the config says.

    Returns:
        B = P * G rows, the rows of a group adjacent, without scores, of a policy of version 0.
    """
    rows_B = prompts.first_prompt * group_size + torch.arange(len(prompts.ids) * group_size)
    repeated = [ids for ids in prompts.ids for _ in range(group_size)]
    trace = decode(policy, repeated, rows_B, config, key, watch, count)
    return Rollout(
        prompts=prompts,
        group_size=group_size,
        rows_B=rows_B.to(policy.device),
        trace=trace,
        texts=texts_of(policy, trace),
        scores=[],
        temperature=config.temperature,
        policy_version=0,
        reward_s=0.0,
    )


def collect(
    policy: Policy,
    task: Task,
    prompts: PromptBatch,
    config: RolloutConfig,
    key: int,
    policy_version: int,
) -> Rollout:
    """Complete each prompt `group_size` times and grade every completion once.

    Args:
        policy: the sampler.
        task: grades.
        prompts: P prompts of this rank.
        config: group size and decoding settings.
        key: of the random numbers of this step, the same on every rank.
        policy_version: training steps that `policy` has seen.

    Returns:
        B = P * group_size rows, the rows of a group adjacent.
    """
    with terminal.bar("rollout rows", len(prompts.ids) * config.group_size) as bar:
        rollout = completions(
            policy, prompts, config, key, group_size=config.group_size, count=bar.move
        )
    trace, started = rollout.trace, time.perf_counter()
    scores = grade(
        task,
        [example for example in prompts.examples for _ in range(config.group_size)],
        rollout.texts,
        length_shares=(trace.length_B / trace.gen_length).tolist(),
        nfe_shares=(trace.nfe_B / config.steps).tolist(),
        finished=trace.finished_B.tolist(),
    )
    seconds = time.perf_counter() - started
    return replace(rollout, scores=scores, policy_version=policy_version, reward_s=seconds)
