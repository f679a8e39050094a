"""Evaluation of several checkpoints: `python -m drift.eval checkpoints=[a,b] task=countdown`."""

import logging
from pathlib import Path

from rich.console import Console
from rich.table import Table

from drift.cli import run_command
from drift.config import EvalRunConfig
from drift.evaluation import EvalResult
from drift.launch import in_ranks

log = logging.getLogger("drift")


def table(results: dict[str, EvalResult]) -> Table:
    """Accuracy with its Wilson interval, network evaluations, truncated share, seconds."""
    shown = Table("checkpoint", "accuracy", "95 % interval", "n", "NFE", "truncated", "seconds")
    for name, result in results.items():
        low, high = result.accuracy.ci95
        shown.add_row(
            name,
            f"{result.accuracy.value:.3f}",
            f"[{low:.3f}, {high:.3f}]",
            str(result.accuracy.n),
            f"{result.nfe_mean:.1f}",
            f"{result.truncated_frac:.3f}",
            f"{result.seconds:.1f}",
        )
    return shown


def run(config: EvalRunConfig) -> None:
    """Evaluate `model.path`, or each of `checkpoints`, and write results.json."""
    from drift.engine import Engine
    from drift.evaluation import evaluate, load_problems
    from drift.policy.loading import find_checkpoint, load_model, policy_folder
    from drift.tasks import build_task

    task = build_task(config.task, config.data.on_error)
    examples = task.examples(config.split)
    folders = {
        name: find_checkpoint(policy_folder(name), config.model.revision)
        for name in config.checkpoints or [config.model.path]
    }
    engine = Engine(config.cluster, config.model.dtype)
    results: dict[str, EvalResult] = {}
    for checkpoint, path in folders.items():
        policy = load_model(config.model, path=str(path), device=engine.device)
        problems = load_problems(policy, examples, config.split, config)
        results[checkpoint] = evaluate(engine, policy, task, problems, config.rollout)
    if engine.is_main:
        show(config, results)
    engine.close()


def show(config: EvalRunConfig, results: dict[str, EvalResult]) -> None:
    """Write every completion, print the table."""
    from drift.files import write_json
    from drift.report import eval_record

    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    records = {name: eval_record(result, step=0) for name, result in results.items()}
    write_json(folder / "results.json", records)
    Console().print(table(results))
    log.info("every completion: %s", folder / "results.json")


if __name__ == "__main__":
    run_command("eval", in_ranks("eval", run))
