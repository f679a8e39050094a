"""Completions of prompts in the terminal: `python -m drift.generate prompt="3 9 5=7"`.

On a terminal the canvas denoises before the reader's eyes; on a pipe there are the texts alone,
with an empty line between two. A function of this name is `drift.generate`, in rollout/generate.py.
"""

import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from rich.console import Console

from drift.cli.command import run_command
from drift.config.commands import GenerateConfig
from drift.config.network_checks import validate_network
from drift.rollout.screen import Screen, check_trace, cost, read_prompts, write

LITERAL = ("prompt", "input", "trace")  # settings whose value is taken as it was typed


def literal(argument: str) -> str:
    """`prompt=a, b=c` as Hydra must read it: any text behind `prompt=` is the prompt."""
    key, equals, value = argument.partition("=")
    if key not in LITERAL or not equals:
        return argument
    # a backslash keeps OmegaConf from seeing an interpolation, and must be kept from it itself
    value = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    return f"{key}={QuotedString(text=value, quote=Quote.single).with_quotes()}"


def run(config: GenerateConfig) -> None:
    """Complete every prompt; print, and write the trace page if one is asked for."""
    prompts = read_prompts(config)
    check_trace(config)
    from drift.cluster.engine import Engine
    from drift.policy.loading import load_model, policy_folder
    from drift.rollout.generate import complete
    from drift.traces.page import NUM_ALTERNATIVES, trace_rows, write_trace

    engine = Engine(config.cluster, config.model.dtype)
    path = policy_folder(config.model.path)
    policy = load_model(config.model, path=path, device=engine.device)
    validate_network(config, policy.backbone.config.block_length)
    console = Console()
    screen = None
    if console.is_terminal:
        screen = Screen(console, policy, prompts, config.rollout.group_size)
    started = time.perf_counter()
    with engine.autocast(), screen.live if screen else nullcontext():
        rollout = complete(
            policy,
            prompts,
            config.rollout,
            chat=config.chat,
            seed=config.seed,
            system=config.task.system,
            watch=screen,
        )
    seconds = time.perf_counter() - started
    if screen is None:
        write(rollout)
    print(cost(rollout, seconds), file=sys.stderr)
    if config.trace is not None:
        with engine.autocast():
            rows = trace_rows(policy, rollout, num_alternatives=NUM_ALTERNATIVES)
        write_trace(Path(config.trace), rows, title=f"Completions of {config.model.path}")
        print(f"trace: {config.trace}", file=sys.stderr)


if __name__ == "__main__":
    sys.argv[1:] = map(literal, sys.argv[1:])
    run_command("generate", run)
