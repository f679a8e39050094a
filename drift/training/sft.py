"""Masked-diffusion supervised fine-tuning.

Of block-causal networks each row is laid out clean and, behind it, noisy: 2n tokens (BD3LM, arXiv
2503.09573; SDAR draws one ratio for a row, Fast-dLLM v2, arXiv 2509.26328, one for each block).
"""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from drift.cluster.engine import Engine
from drift.common import ranks, rng, terminal
from drift.common.errors import ConfigError, DataError
from drift.common.files import give_back, whole_folder
from drift.common.types import Example, MaskedViews, PromptBatch, Rollout, Trace
from drift.config.checks import idle_settings
from drift.config.commands import RatioPer, SFTConfig
from drift.learner.layout import micro_batches
from drift.learner.likelihood import score
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrations:
    """R rows to learn from: Demonstrations(prompts=[[5, 6]], canvas_RC=[[7, 2, 2]])."""

    prompts: list[list[int]]
    canvas_RC: Tensor  # int64; the answer, then stop tokens


def demonstrations(
    policy: Policy, task: GeneratedTask, train: list[Example], config: SFTConfig
) -> Demonstrations:
    """Encoded rows; where attention is block-causal the canvas is filled to its last block's end.

    Raises:
        DataError: a demonstration is longer than the canvas.
    """
    size = config.rollout.gen_length
    wide = size + max(policy.backbone.config.block_length - 1, 0)
    examples, prompts, _ = encode_all(policy, task.config, train, size)
    key = rng.stream(config.seed, "habit")
    habits = rng.uniform(key, torch.arange(len(examples))) < config.sft.habit_share
    end_of_turn = policy.special.stop[-1]
    canvas_RC = torch.full((len(prompts), wide), policy.special.stop[0])
    for i, (example, habit) in enumerate(zip(examples, habits.tolist(), strict=True)):
        text = task.demonstration(example, habit=habit)
        answer = policy.tokenizer(text, add_special_tokens=False)["input_ids"] + [end_of_turn]
        if len(answer) > size:
            raise DataError(
                f"the demonstration of {example.key} has {len(answer)} tokens; "
                f"rollout.gen_length={size} is too short"
            )
        canvas_RC[i, : len(answer)] = torch.tensor(answer)
    return Demonstrations(prompts=prompts, canvas_RC=canvas_RC)


def as_rollout(data: Demonstrations, rows: list[int], policy: Policy, size: int) -> Rollout:
    """Some of the rows as if they had been sampled in one step: the learner scores rollouts."""
    prompts = [data.prompts[row] for row in rows]
    length_B, canvas_BC = torch.tensor([len(p) for p in prompts]), data.canvas_RC[rows]
    grid = policy.backbone.config.block_length
    columns_C = torch.arange(canvas_BC.shape[1])
    # through the block that holds the canvas' last token
    end_B = -(-(length_B + size) // grid) * grid - length_B if grid else length_B * 0 + size
    none_B = length_B * 0
    trace = Trace(
        prompt_length_B=length_B,
        canvas_BC=canvas_BC,
        unmask_step_BC=torch.where(columns_C < end_B[:, None], 0, -1),
        logp_BC=torch.zeros(canvas_BC.shape),
        length_B=none_B + size,
        finished_B=none_B == 0,
        nfe_B=none_B + 1,
        commits_B=none_B,
        block_length=grid,
    )
    return Rollout.ungraded(PromptBatch(examples=[], ids=prompts, first_prompt=0), trace)


def noisy(trace: Trace, step: int, config: SFTConfig) -> tuple[MaskedViews, Tensor]:
    """One view of each row, each token hidden with probability t and scored with weight 1 / t.

    t is drawn for each row, spread evenly over the batch; with `sft.ratio_per=block` for each block
    of a row, with the rows' numbers moved on by a random one.

    Returns:
        The views; the weight of each scored token [N].
    """
    rows_B, seed = torch.arange(len(trace.length_B)), config.seed
    columns_C = torch.arange(trace.canvas_BC.shape[1])
    offset_B = rng.uniform(rng.stream(seed, "sft_t", step), rows_B)
    t_BC = ((rows_B + offset_B) / len(rows_B))[:, None].expand(trace.canvas_BC.shape)
    if config.sft.ratio_per == RatioPer.block:
        size = config.rollout.block_length
        block_BC = trace.block_BC if trace.block_length else (columns_C // size).expand_as(t_BC)
        shift_BC = rng.uniform(rng.stream(seed, "sft_block_t", step), rows_B[:, None], block_BC)
        t_BC = (t_BC + shift_BC) % 1.0
    t_BC = t_BC.clamp(min=MIN_T).float()
    noise = rng.uniform(rng.stream(seed, "sft_mask", step), rows_B[:, None], columns_C)
    hidden_BC = (noise < t_BC) & trace.committed_BC
    row_N, column_N = hidden_BC.nonzero(as_tuple=True)
    views = MaskedViews(
        row_J=rows_B,
        order_J=rows_B * 0,
        hide=lambda state_M: hidden_BC[state_M] | ~trace.committed_BC[state_M],
        state_N=row_N,
        column_N=column_N,
        candidate_N=torch.zeros_like(row_N, dtype=torch.bool),
        candidate_min_prob=1.0,
        length_B=trace.committed_BC.sum(1),
        rows_B=rows_B,
    )
    return views, 1 / t_BC[row_N, column_N]


def sft_step(
    engine: Engine, policy: Policy, data: Demonstrations, step: int, config: SFTConfig
) -> float:
    """One optimizer step on a random batch; returns its loss."""
    batch, model = config.sft.batch_size, engine.model
    pick = rng.uniform(rng.stream(config.seed, "sft_batch", step), torch.arange(batch))
    rows = (pick * len(data.prompts)).long().tolist()
    rollout = as_rollout(data, rows, policy, config.rollout.gen_length)
    views, weight_N = noisy(rollout.trace, step, config)
    total = 0.0
    assert model is not None
    tokens = config.optim.tokens_per_forward
    for forward in micro_batches(rollout, views, policy.special, tokens):
        logp_N, *_ = score(model, forward.to(engine.device), 1.0)
        weight = weight_N[forward.token_N].to(engine.device)
        loss = -(logp_N * weight).sum() / (batch * config.rollout.gen_length)
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
    data: Demonstrations,
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
    log.info("%d demonstrations, %d steps", len(data.prompts), config.num_steps)
    try:
        fit(engine, policy, task, problems, data, config)
    except BaseException:
        saved = f"the policy saved last is {target}" if target.exists() else "nothing is saved"
        log.warning("ended early; %s", saved)
        raise
    log.info("saved %s", target)
