"""Checks of a checkpoint before it costs GPU hours: `python -m drift.doctor model=...`."""

import sys

from rich.table import Table
from rich.text import Text

from drift.cli.command import run_command
from drift.common import terminal
from drift.config.commands import DoctorConfig
from drift.config.network_checks import validate_network

NUM_EXAMPLES = 8


def run(config: DoctorConfig) -> None:
    """Print a verdict per line; exit with 1 if one is bad."""
    from drift.cluster.engine import Engine
    from drift.planning.diagnosis import Inspection, examine, memory_needs
    from drift.planning.memory import Sizes, sharding_of
    from drift.policy.loading import load_model
    from drift.rollout.prompts import encode_all, render
    from drift.tasks import Split, build_task
    from drift.tasks.base import GeneratedTask

    task = build_task(config.task, config.data.on_error)
    engine = Engine(config.cluster, config.model.dtype)
    policy = load_model(config.model, device=engine.device)
    validate_network(config, policy.backbone.config.block_length)
    examples = task.examples(Split.test)[:NUM_EXAMPLES]
    examples, prompts, _ = encode_all(policy, config.task, examples, config.rollout.gen_length)
    answers: list[list[int]] = [[] for _ in examples]
    if isinstance(task, GeneratedTask):
        texts = [task.demonstration(example, habit=False) for example in examples]
        answers = policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
    sizes = Sizes(
        model=config.model,
        backbone=policy.backbone.config,
        row=max(map(len, prompts)) + config.rollout.gen_length,
        on_cpu=engine.device.type == "cpu",
        split=sharding_of(config.cluster),
    )
    needs = memory_needs(
        sizes, config.objective, config.optim, config.rollout, engine.memory_bytes()
    )
    inspection = Inspection(
        policy=policy,
        dtype=config.model.dtype,
        examples=examples,
        prompts=prompts,
        answers=answers,
        shown=render(policy, config.task, examples[0]),
        rollout=config.rollout,
        needs=needs,
    )
    with engine.autocast():
        findings = examine(inspection)
    table = Table("check", "finding", "verdict", title=str(config.model.path))
    for finding in findings:
        verdict = Text("ok", "green") if finding.healthy else Text("FAILED", "red")
        table.add_row(finding.name, finding.text, verdict)
    terminal.console().print(table)
    if not all(finding.healthy for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    run_command("doctor", run)
