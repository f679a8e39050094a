"""Completions of prompts in the terminal: `python -m drift.generate prompt="3 9 5=7"`.

On a terminal the canvas denoises before the reader's eyes; on a pipe there are the texts alone,
with an empty line between two. A function of this name is `drift.generate`, in generation.py.
"""

import re
import sys
import time
from contextlib import nullcontext
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Quote, QuotedString
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from drift.cli.command import run_command
from drift.common.errors import ConfigError, DataError
from drift.config import GenerateConfig

if TYPE_CHECKING:
    from drift.common.types import Rollout, Trace
    from drift.policy.base import Policy

LITERAL = ("prompt", "input", "trace")  # settings whose value is taken as it was typed
HOW = 'set prompt="..." or input=FILE, or pipe prompts in, one a line'
FRAME_S = 1 / 15  # shortest time between two frames
# lower end of a token's probability -> its style; told apart by every kind of colour vision
STYLES = {0.9: "", 0.6: "cyan", 0.3: "yellow", 0.0: "bold magenta"}


def literal(argument: str) -> str:
    """`prompt=a, b=c` as Hydra must read it: any text behind `prompt=` is the prompt."""
    key, equals, value = argument.partition("=")
    if key not in LITERAL or not equals:
        return argument
    # a backslash keeps OmegaConf from seeing an interpolation, and must be kept from it itself
    value = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    return f"{key}={QuotedString(text=value, quote=Quote.single).with_quotes()}"


def read_prompts(config: GenerateConfig) -> list[str]:
    """The prompts, from the first place that is named.

    Raises:
        ConfigError: two places are named, or none and standard input is a terminal.
        DataError: a file is missing, empty, not UTF-8, or has an empty line.
    """
    if config.prompt is not None and config.input is not None:
        raise ConfigError("prompt and input are both set; use one of them")
    if config.prompt is not None:
        if not config.prompt.strip():
            raise ConfigError(f"prompt is empty; {HOW}")
        return [config.prompt]
    if config.input is None and sys.stdin.isatty():
        raise ConfigError(f"there is no prompt; {HOW}")
    if config.input in (None, "-"):
        return lines_of("standard input", sys.stdin.buffer.read())
    path = Path(config.input)
    if not path.is_file():
        fault = "a folder, not a" if path.is_dir() else "no such"
        raise DataError(f"{path}: {fault} file of prompts")
    return lines_of(str(path), path.read_bytes())


def lines_of(name: str, content: bytes) -> list[str]:
    try:
        lines = content.decode("utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    if lines == [""]:
        raise DataError(f"{name} is empty; {HOW}")
    lines = [line.removesuffix("\r") for line in lines]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError(f"{name}:{number}: the prompt is empty; remove the line")
    return lines


def check_trace(config: GenerateConfig) -> None:
    """Refuse a page that could not be written, before the work."""
    if config.trace is not None:
        path = Path(config.trace)
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError(f"trace={path} cannot be written; name a file in an existing folder")


def style_of(probability: float) -> str:
    return next(style for low, style in STYLES.items() if probability >= low)


class Screen:
    """The canvases on a terminal: `watch` of `drift.generate`.

    Rows in work are redrawn in place; a finished row is printed for good, in the order of rows.
    """

    def __init__(self, console: Console, policy: "Policy", prompts: list[str], group_size: int):
        self.policy = policy
        self.heads = [prompt for prompt in prompts for _ in range(group_size)]
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.drawn_s = 0.0
        self.printed = 0

    def __call__(self, trace: "Trace") -> None:
        done_B = (trace.finished_B | trace.committed_BC.all(1)).tolist()
        ready = len(list(takewhile(bool, done_B[self.printed :])))
        if not ready and time.monotonic() - self.drawn_s < FRAME_S:
            return
        first, self.printed = self.printed, self.printed + ready
        started = [b for b in range(self.printed, len(done_B)) if int(trace.nfe_B[b])]
        shown = started[: self.console.height]  # a row takes a line or more
        self.live.update(Group(*(self.row(trace, b) for b in shown)), refresh=True)
        for b in range(first, self.printed):
            self.console.print(self.row(trace, b), soft_wrap=True)
        self.drawn_s = time.monotonic()

    def row(self, trace: "Trace", b: int) -> Text:
        """One canvas: a dot for a mask, a colour for the probability of a token."""
        tokenizer, length = self.policy.tokenizer, int(trace.length_B[b])
        ended = bool(trace.finished_B[b])
        ids = trace.canvas_BC[b].tolist()[: length if ended else None]
        steps, logps = trace.unmask_step_BC[b].tolist(), trace.logp_BC[b].exp().tolist()
        pieces = tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=True)
        text = Text()
        if len(self.heads) > 1:
            text.append(f"{b + 1}  {self.heads[b].strip().splitlines()[0]}\n", style="bold")
        whole = str(tokenizer.decode(ids, skip_special_tokens=True))
        if ended and whole != "".join(pieces):  # a character made of several tokens
            return text.append(harmless(whole))
        for piece, step, probability in zip(pieces, steps, logps, strict=False):
            text.append(*(("·", "dim") if step < 0 else (harmless(piece), style_of(probability))))
        return text


def harmless(text: str) -> str:
    """Text that gives the terminal no orders."""
    return text.replace("\x1b", "␛")


def write(rollout: "Rollout") -> None:
    """The texts on standard output."""
    sys.stdout.write("\n\n".join(rollout.texts) + "\n")
    sys.stdout.flush()


def cost(rollout: "Rollout", seconds: float) -> str:
    """`10 tokens in 0.1 s: 100.0 tokens/s, NFE 4, 2.50 tokens per evaluation`"""
    tokens, nfe = int(rollout.trace.length_B.sum()), int(rollout.trace.nfe_B.sum())
    rows = len(rollout.texts)
    mean = f" ({nfe / rows:.1f} a completion)" if rows > 1 else ""
    return (
        f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s, "
        f"NFE {nfe}{mean}, {tokens / nfe:.2f} tokens per evaluation"
    )


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
