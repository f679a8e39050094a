"""Prompts from a user, and the canvas on a terminal while it is denoised."""

import sys
import time
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from drift.common.errors import ConfigError, DataError
from drift.config.commands import GenerateConfig

if TYPE_CHECKING:
    from drift.common.types import Rollout, Trace
    from drift.policy.base import Policy


HOW = 'set prompt="..." or input=FILE, or pipe prompts in, one a line'
FRAME_S = 1 / 15  # shortest time between two frames
# lower end of a token's probability -> its style; told apart by every kind of colour vision
STYLES = {0.9: "", 0.6: "cyan", 0.3: "yellow", 0.0: "bold magenta"}


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
        done_B = (trace.finished_B | trace.committed_BC[:, : trace.gen_length].all(1)).tolist()
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
        ids = trace.canvas_BC[b].tolist()[: length if ended else trace.gen_length]
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
    """`10 tokens in 0.1 s: 100.0 tokens/s, NFE 4, 2.50 tokens per evaluation`

    NFE counts denoising steps; the evaluations that kept finished blocks are named beside it.
    """
    tokens, nfe = int(rollout.trace.length_B.sum()), int(rollout.trace.nfe_B.sum())
    rows = len(rollout.texts)
    mean = f" ({nfe / rows:.1f} a completion)" if rows > 1 else ""
    commits = int(rollout.trace.commits_B.sum())
    mean += f" and {commits} commits" if commits else ""
    return (
        f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.1f} tokens/s, "
        f"NFE {nfe}{mean}, {tokens / nfe:.2f} tokens per evaluation"
    )
