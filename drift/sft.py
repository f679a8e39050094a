"""Masked-diffusion supervised fine-tuning: `python -m drift.sft [overrides]`.

Loss of a completion x of C tokens (LLaDA, arXiv 2502.09992, eq. 3):
    E_{t ~ U(0,1)} (1 / (t C)) sum_i 1[token i masked] (-log p(x_i | what is not masked))
with each token masked with probability t. The t of a batch are stratified over (0, 1).
"""

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from drift import live, rng
from drift.cli import run_command
from drift.config import SFTConfig
from drift.contamination import check_overlap
from drift.engine import Engine
from drift.errors import ConfigError, DataError
from drift.evaluation import evaluate, load_problems
from drift.policy.base import Policy
from drift.policy.loading import load_model, save_policy
from drift.prompts import encode_all
from drift.tasks import Split, build_task
from drift.tasks.base import GeneratedTask
from drift.types import Example
from drift.validate_learning import idle_settings

MIN_T = 0.03  # bounds the weight 1/t
log = logging.getLogger("drift")


def demonstrations(
    policy: Policy, task: GeneratedTask, train: list[Example], config: SFTConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Encoded rows: ids [R, S] padded at the end, prompt lengths [R], lengths [R]."""
    size = config.rollout.gen_length
    examples, prompts, _ = encode_all(policy, task.config, train, size)
    key = rng.stream(config.seed, "habit")
    habits = rng.uniform(key, torch.arange(len(examples))) < config.sft.habit_share
    end_of_turn = policy.special.stop[-1]
    fill = policy.special.stop[0]
    rows: list[list[int]] = []
    for example, prompt, habit in zip(examples, prompts, habits.tolist(), strict=True):
        text = task.demonstration(example, habit=habit)
        answer = policy.tokenizer(text, add_special_tokens=False)["input_ids"] + [end_of_turn]
        if len(answer) > size:
            raise DataError(
                f"the demonstration of {example.key} has {len(answer)} tokens; "
                f"rollout.gen_length={size} is too short"
            )
        rows.append(prompt + answer + [fill] * (size - len(answer)))
    prompt_length = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.full((len(rows), max(map(len, rows))), policy.special.pad)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, prompt_length, prompt_length + size


def mask_batch(
    prompt_length_M: Tensor, size: int, step: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which canvas tokens of M rows to mask: (row [N], position [N], weight 1/t [N])."""
    num_rows = len(prompt_length_M)
    rows_M = torch.arange(num_rows)
    offset = rng.uniform(rng.stream(seed, "sft_t", step), rows_M)
    t_M = ((rows_M + offset) / num_rows).clamp(min=MIN_T).float()
    noise = rng.uniform(rng.stream(seed, "sft_mask", step), rows_M[:, None], torch.arange(size))
    row_N, canvas_N = (noise < t_M[:, None]).nonzero(as_tuple=True)
    return row_N, prompt_length_M[row_N] + canvas_N, 1 / t_M[row_N]


def sft_step(
    engine: Engine, policy: Policy, data: tuple[Tensor, ...], step: int, config: SFTConfig
) -> float:
    """One optimizer step on a random batch; returns its loss."""
    ids_RS, prompt_length_R, length_R = data
    size, batch = config.rollout.gen_length, config.sft.batch_size
    pick = rng.uniform(rng.stream(config.seed, "sft_batch", step), torch.arange(batch))
    rows_M = (pick * len(ids_RS)).long()
    ids_MS, length_M = ids_RS[rows_M], length_R[rows_M]
    ids_MS = ids_MS[:, : int(length_M.max())]
    row_N, position_N, weight_N = mask_batch(prompt_length_R[rows_M], size, step, config.seed)
    target_N = ids_MS[row_N, position_N]
    hidden_MS = ids_MS.clone()
    hidden_MS[row_N, position_N] = policy.special.mask
    total, rows, model = 0.0, config.optim.rows_per_forward, engine.model
    assert model is not None
    for first in range(0, batch, rows):
        here_N = (row_N >= first) & (row_N < first + rows)
        part = (hidden_MS[first : first + rows], length_M[first : first + rows])
        chosen = (row_N[here_N] - first, position_N[here_N], target_N[here_N], weight_N[here_N])
        *inputs, weight = (t.to(engine.device) for t in (*part, *chosen))
        logp_N, *_ = model(*inputs, 1.0)
        loss = -(logp_N * weight).sum() / (batch * size)
        engine.backward(loss)
        total += loss.item()
    engine.step()
    return total


def run(config: SFTConfig) -> None:
    task = build_task(config.task, config.data.on_error)
    if not isinstance(task, GeneratedTask):
        raise DataError(
            f"task={config.task.name} makes no demonstrations; use "
            "arithmetic, countdown, one_line_code or sudoku"
        )
    examples = {split: task.examples(split) for split in Split}
    check_overlap(task, examples, config.data.max_overlap)
    engine = Engine(config.cluster, config.model.dtype)
    if engine.num_ranks > 1 or engine.stage:
        raise ConfigError("drift.sft runs in one process; set cluster.zero_stage=0")
    policy = load_model(config.model, device=engine.device, trained=engine.partition)
    problems = load_problems(policy, examples[Split.validation], Split.validation, config)
    data = demonstrations(policy, task, examples[Split.train], config)
    engine.prepare(policy, config.optim, config.num_steps)
    for words in idle_settings(config):
        log.warning("%s", words)
    log.info("%d demonstrations, %d steps", len(data[0]), config.num_steps)
    greedy = replace(config.rollout, temperature=0.0)
    started, loss = time.perf_counter(), 0.0
    with live.bar("fine-tuning steps", config.num_steps) as bar:
        for step in range(config.num_steps):
            loss += sft_step(engine, policy, data, step, config) / config.sft.log_every
            if (step + 1) % config.sft.log_every == 0:
                seconds = time.perf_counter() - started
                log.info("step %d loss %.4f %.0f s", step + 1, loss, seconds)
                loss = 0.0
            if config.eval.every and (step + 1) % config.eval.every == 0:
                result = evaluate(engine, policy, task, problems, greedy)
                log.info("step %d validation accuracy %s", step + 1, result.accuracy)
            bar.advance()
    result = evaluate(engine, policy, task, problems, greedy)
    folder = Path(config.output_dir) / "policy"
    save_policy(policy, folder)
    log.info("validation accuracy %s; saved %s", result.accuracy, folder)


if __name__ == "__main__":
    run_command("sft", run)
