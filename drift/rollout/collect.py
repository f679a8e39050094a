"""Prompts to graded completions."""

import time

import torch

from drift.common import terminal
from drift.common.types import PromptBatch, Rollout, Trace
from drift.config import RolloutConfig
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
    first_row = prompts.first_prompt * config.group_size
    rows_B = first_row + torch.arange(len(prompts.ids) * config.group_size)
    repeated = [ids for ids in prompts.ids for _ in range(config.group_size)]
    with terminal.bar("rollout rows", len(repeated)) as bar:
        trace = decode(policy, repeated, rows_B, config, key, count=bar.move)
    texts = texts_of(policy, trace)
    started = time.perf_counter()
    examples = [example for example in prompts.examples for _ in range(config.group_size)]
    scores = grade(
        task,
        examples,
        texts,
        length_shares=(trace.length_B / trace.canvas_BC.shape[1]).tolist(),
        nfe_shares=(trace.nfe_B / config.steps).tolist(),
        finished=trace.finished_B.tolist(),
    )
    return Rollout(
        prompts=prompts,
        group_size=config.group_size,
        rows_B=rows_B.to(policy.device),
        trace=trace,
        texts=texts,
        scores=scores,
        temperature=config.temperature,
        policy_version=policy_version,
        reward_s=time.perf_counter() - started,
    )
