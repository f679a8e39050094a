"""Masked-diffusion supervised fine-tuning."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import ranks, rng, terminal
from drift.common.errors import ConfigError, DataError
from drift.common.files import give_back, whole_folder
from drift.common.types import Example
from drift.config.checks import idle_settings
from drift.config.commands import SFTConfig
from drift.policy.base import Policy
from drift.policy.loading import load_model, save_policy
from drift.rollout.evaluate import Problems, evaluate, load_problems
from drift.rollout.prompts import encode_all, render
from drift.runs.checkpoints import together
from drift.runs.manifest import data_digests, write_origin
from drift.runs.stores import STEP, TIME
from drift.runs.tracking import MetricsFile
from drift.tasks import Split, build_task
from drift.tasks.base import GeneratedTask
from drift.tasks.contamination import check_overlap

log = logging.getLogger("drift")

MIN_T = 0.03  # bounds the weight 1/t


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
    total, model = 0.0, engine.model
    assert model is not None
    rows = max(1, config.optim.tokens_per_forward // ids_MS.shape[1])
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


def save(engine: Engine, policy: Policy, folder: Path) -> None:
    """Write a policy, which takes the place of the one before when it is whole."""

    def write() -> None:
        with whole_folder(folder) as beside:
            save_policy(policy, beside)

    together(engine, folder.with_name(f".writing-{folder.name}"), write)


def fit(
    engine: Engine,
    policy: Policy,
    task: GeneratedTask,
    problems: Problems,
    data: tuple[Tensor, ...],
    config: SFTConfig,
) -> None:
    """Every step; the policy is saved and evaluated each `eval.every` and at the last."""
    folder, every, last = Path(config.output_dir), config.eval.every, config.num_steps
    file = MetricsFile(folder / "metrics.jsonl")
    file.keep_through(-1)  # of a run that ended before it saved
    greedy = replace(config.rollout, temperature=0.0)
    started, loss = time.perf_counter(), 0.0
    with terminal.bar("fine-tuning steps", last) as bar:
        for step in range(1, last + 1):
            loss += sft_step(engine, policy, data, step - 1, config) / config.sft.log_every
            metrics: dict[str, float] = {}
            if step % config.sft.log_every == 0:
                seconds = time.perf_counter() - started
                log.info("step %d loss %.4f %.0f s", step, loss, seconds)
                metrics["loss/sft"], loss = loss, 0.0
            if step == last or (every and step % every == 0):
                save(engine, policy, folder / "policy")  # first: an evaluation may fail
                log.info("step %d saved", step)
                result = evaluate(engine, policy, task, problems, greedy)
                log.info("step %d validation accuracy %s", step, result.accuracy)
                metrics |= {"eval/accuracy": result.accuracy.value, "eval/nfe": result.nfe_mean}
            if metrics:
                file.append({STEP: step, TIME: round(time.time(), 3), **metrics})
            bar.advance()


def run(config: SFTConfig) -> None:
    """Fine-tune; whatever ends the run, say what is saved of it."""
    cluster, target = config.cluster, Path(config.output_dir) / "policy"
    processes = max(ranks.find().number, (cluster.num_processes or 1) * cluster.num_machines)
    if processes > 1 or cluster.zero_stage:
        raise ConfigError(
            "drift.sft runs in one process; set cluster.num_processes=1 cluster.num_machines=1 "
            "cluster.zero_stage=0, and start it by itself"
        )
    give_back(target)
    if target.exists():
        raise ConfigError(f"{target} is there already; choose another hydra.run.dir")
    task = build_task(config.task, config.data.on_error)
    if not isinstance(task, GeneratedTask):
        raise DataError(
            f"task={config.task.name} makes no demonstrations; use "
            "arithmetic, countdown, one_line_code or sudoku"
        )
    examples = {split: task.examples(split) for split in Split}
    overlap = check_overlap(task, examples, config.data.max_overlap)
    engine = Engine(cluster, config.model.dtype)
    policy = load_model(config.model, device=engine.device, trained=engine.partition)
    problems = load_problems(policy, examples[Split.validation], Split.validation, config)
    data = demonstrations(policy, task, examples[Split.train], config)
    engine.prepare(policy, config.optim, config.num_steps)
    digests = data_digests({split.value: found for split, found in examples.items()})
    facts = {"data": digests, "overlap": overlap, "skipped_records": task.skipped}
    write_origin(config, facts, render(policy, config.task, examples[Split.train][0]))
    for words in idle_settings(config):
        log.warning("%s", words)
    log.info("%d demonstrations, %d steps", len(data[0]), config.num_steps)
    try:
        fit(engine, policy, task, problems, data, config)
    except BaseException:
        saved = f"the policy saved last is {target}" if target.exists() else "nothing is saved"
        log.warning("ended early; %s", saved)
        raise
    log.info("saved %s", target)
