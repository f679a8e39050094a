"""A grid of evaluations: every checkpoint under one protocol, resumed where it was interrupted."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from drift.cluster.engine import Engine
from drift.common import terminal
from drift.common.errors import CheckpointError
from drift.common.files import read_json, write_json
from drift.common.types import Example
from drift.config.commands import EvalRunConfig
from drift.evals.cell import (
    Cell,
    CellState,
    checkpoint_folder,
    position_in,
    protocol,
    protocol_name,
    run_cell,
)
from drift.evals.results import (
    CELLS,
    PAIR,
    PROTOCOL,
    ProtocolResults,
    compared,
    header,
    line,
    metrics,
    pair_line,
    results_of,
    short_names,
    summarize,
    title,
    update_results,
)
from drift.policy import lora
from drift.policy.loading import (
    detect_family,
    find_checkpoint,
    load_model,
    load_tokenizer,
    policy_folder,
)
from drift.policy.shards import shard_of_tensor
from drift.rollout.evaluate import load_problems
from drift.rollout.prompts import render
from drift.runs.differences import as_now, flat
from drift.runs.tracking import Tracker
from drift.tasks import Task, build_task

log = logging.getLogger("drift")

WIDTH = 120  # of the tables where there is no terminal


def run(config: EvalRunConfig) -> None:
    """Evaluate `model.path`, or each of `checkpoints`, on one task with one decoding."""
    task = build_task(config.task, config.data.on_error)
    examples = task.examples(config.split)[: config.eval.max_examples]
    names = list(dict.fromkeys(config.checkpoints or [config.model.path]))
    paths = [find_checkpoint(policy_folder(name), config.model.revision) for name in names]
    for path in paths:
        look_at(path, config.model.revision)
    engine = Engine(config.cluster, config.model.dtype)
    results = Path(engine.agree(config.results or config.output_dir))
    content = protocol(config, task, examples)
    engine.assert_same("their protocol", protocol_name(content))
    folder = results / CELLS / protocol_name(content)
    if engine.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PROTOCOL, content)
        log.info("protocol: %s", folder / PROTOCOL)
    engine.watchdog.start()
    try:
        for name, path in zip(names, paths, strict=True):
            new = CellState(checkpoint=name, path=str(path), position=position_in(folder, name))
            cell = Cell(folder / checkpoint_folder(name, path), new)
            if engine.agree(cell.progress.finished):
                log.info("%s: finished, not run again", name)
                continue
            engine.watchdog.enter(f"the evaluation of {name}")
            finish_cell(engine, cell, task, examples, config, results)
    finally:
        engine.watchdog.stop()
    if engine.is_main:
        show(results, results_of(folder))
    engine.close()


def look_at(folder: Path, revision: str | None) -> None:
    """Refuse at once what would end the command when the checkpoint's turn comes.

    Raises:
        CheckpointError: by its small files it can answer no prompt.
    """

    if (folder / lora.CONFIG).exists():
        base = read_json(folder / lora.CONFIG, CheckpointError).get("base_model_name_or_path")
        folder = find_checkpoint(str(base), revision)
    detect_family(read_json(folder / "config.json", CheckpointError), folder)
    shard_of_tensor(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None or tokenizer.chat_template is None:
        raise CheckpointError(
            f"{folder} has no tokenizer with a chat template; add a chat_template.jinja"
        )


def finish_cell(
    engine: Engine,
    cell: Cell,
    task: Task,
    examples: list[Example],
    config: EvalRunConfig,
    results: Path,
) -> None:
    """Complete what a cell lacks, count, track; here the only reference to the policy ends."""
    progress = cell.progress
    with cell.sole_user() if engine.is_main else nullcontext():
        policy = load_model(config.model, path=progress.path, device=engine.device)
        problems = load_problems(policy, examples, config.split, config)
        progress.total = len(problems.ids)
        progress.dropped = len(examples) - len(problems.ids)
        progress.first_prompt = render(policy, config.task, problems.examples[0])
        stop = policy.tokenizer.convert_ids_to_tokens(list(policy.special.stop))
        progress.stop_tokens = list(map(str, stop))
        run_cell(engine, cell, policy, task, problems, config)
        if engine.is_main:
            progress.summary = summarize(cell.read(), progress.decode_s)
            cell.save()
            update_results(results, cell.folder.parent)
            track(config, cell, results)
            progress.finished = True
            cell.save()


def track(config: EvalRunConfig, cell: Cell, results: Path) -> None:
    """A run in MLflow for the cell, with the table as it is now."""
    content = read_json(cell.folder.parent / PROTOCOL)
    params: dict[str, Any] = {
        "checkpoint": cell.progress.checkpoint,
        "task": content["task"],
        "split": content["split"],
        "samples": content["samples"],
        "grader": content["grader"],
        "end_rule": content["end_rule"],
        "protocol": cell.folder.parent.name,
        **as_now(dict(flat(content["decoding"], "rollout."))),
    }
    tracker = Tracker(config.tracking, cell.folder)
    tags = {"kind": "eval", "results": str(results), "seed": str(config.seed)}
    name = f"eval-{cell.folder.parent.name}-{cell.progress.checkpoint}"
    tracker.start(name, params, tags, -1)
    tracker.log(0, metrics(cell.progress.summary or {}))
    tracker.log_files([cell.folder / "cell.json", results / "results.md"])
    tracker.finish("FINISHED")


def show(results: Path, group: ProtocolResults) -> None:
    """The command's own cells on the terminal, and where the rest is."""
    console = terminal.console(WIDTH)
    names = [cell.checkpoint for cell in group.cells]
    short = dict(zip(names, short_names(names), strict=True))
    head = header(group.protocol["samples"], every_k=False)
    lines = [line(short[c.checkpoint], c.summary or {}, every_k=False) for c in group.cells]
    print_table(console, f"{title(group.protocol)}; 95 % intervals", head, lines)
    if pairs := compared(group):
        words = "problem by problem; gained: only the checkpoint solves it; p: McNemar's exact test"
        print_table(console, words, PAIR, [pair_line(pair, short) for pair in pairs])
    log.info("table: %s", results / "results.md")
    log.info("every completion: %s", results / "cells")
    if (results / "traces").exists():
        log.info("trace pages: %s", results / "traces")


def print_table(console: Console, title: str, head: list[str], lines: list[list[str]]) -> None:
    shown = Table(title=title, title_justify="left", box=SIMPLE)
    for name in head:
        long = name in ("against", "checkpoint")
        shown.add_column(name, overflow="fold", min_width=12 if long else len(name))
    for cells in lines:
        shown.add_row(*cells)
    console.print(shown)
