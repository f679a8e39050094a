"""What a terminal shows while something goes on: bars with the time left, and how a run learns.

What is logged or printed meanwhile scrolls by above, and every line is still in the log file. Where
standard output is no terminal, and on all ranks but the first, nothing is shown.
"""

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from drift.common import ranks

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

SPEED_S = 3600.0  # the time left follows from the last hour, or the last 1000 moments
QUIET_S, WORTH_S, PATIENCE_S = 1.0, 3.0, 5.0  # see `Bar`
HISTORY = 1000  # rewards kept; no terminal is wider
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
ON_VIEW = {"on_view": True}  # `extra` of a log record that a view shows: for the file alone
alive_at = 0.0  # when this process last did something, by `time.monotonic`


def beat() -> None:
    """A sign of life, for the watchdog: something was done in a long phase."""
    global alive_at
    alive_at = time.monotonic()


def on_terminal() -> bool:
    """Whether there is somebody to show something to."""
    if sys.stdout is None or not sys.stdout.isatty() or ranks.find().rank:
        return False
    from rich import get_console

    console = get_console()
    return console.is_terminal and not console.is_dumb_terminal


def console(width: int | None = None) -> "Console":
    """For tables with names and texts of users, shown letter by letter: `[b]` is no markup.

    width: where standard output is no terminal.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else width)


@contextmanager
def show(content: "RenderableType", *, stays: bool = False) -> Iterator[None]:
    """Keep something at the bottom of the terminal while the block runs.

    Args:
        content: drawn anew four times a second; inside another `show` it stands below that one's.
        stays: whether its last state is left on the terminal.
    """
    if not on_terminal():
        yield
        return
    from rich import get_console
    from rich.live import Live

    streams = (sys.stdout, sys.stderr)
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in streams
    ]
    before = [handler.stream for handler in handlers]

    def is_for_terminal(record: logging.LogRecord) -> bool:
        return not ON_VIEW.items() <= record.__dict__.items()

    with Live(Narrower(content), console=get_console(), transient=not stays):
        for handler in handlers:  # they hold the stream that Live has replaced
            handler.setStream(sys.stderr if handler.stream is streams[1] else sys.stdout)
            handler.addFilter(is_for_terminal)
        try:
            yield
        finally:
            for handler, stream in zip(handlers, before, strict=True):
                handler.setStream(stream)
                handler.removeFilter(is_for_terminal)


class Narrower:
    """Leaves room for the ^C that a terminal echoes: on a new line it would shift the rest."""

    def __init__(self, content: "RenderableType"):
        self.content = content

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield from console.render(self.content, options.update_width(options.max_width - len("^C")))


@contextmanager
def bar(what: str, total: int) -> Iterator["Bar"]:
    """A bar with the time left while the block runs: `loading 120/291 ━━━━╸──── 00:12 left`.

    Args:
        what: is done `total` times; the block calls `advance` of the bar, or `move`.
        total: 0 shows nothing.
    """
    content = Bar(what, total)
    with show(content):
        yield content


def in_words(seconds: float) -> str:
    """`0:07 left`, `1:02:03 left`"""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"


class Bar:
    """How much is done of a total, and the time left: a task of `rich.progress`.

    Nothing flashes by: it is empty in its first second, and until it is known to be there for three
    more, or nothing is known after five.
    """

    def __init__(
        self, what: str, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic
    ):
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            expand=True,
            get_time=clock,
            speed_estimate_period=SPEED_S,
        )
        self.progress.add_task(what, total=total, completed=done)
        (self.task,) = self.progress.tasks
        self._visible = False

    def advance(self, count: float = 1) -> None:
        self.move(self.task.completed + count)

    def move(self, done: float) -> None:
        """So much is done now; a part of the next one counts for the time left."""
        self.progress.update(self.task.id, completed=done)
        beat()

    def row(self) -> "RenderableType":
        """The bar, as wide as the terminal."""
        return self.progress.get_renderable()

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        passed, left_s = self.task.elapsed or 0.0, self.task.time_remaining
        worth = passed > PATIENCE_S if left_s is None else left_s > WORTH_S
        self._visible |= bool(self.task.total) and passed > QUIET_S and worth
        if self._visible:
            yield self.row()


def sparkline(values: Sequence[float], blocks: str = BLOCKS) -> str:
    """A column for each value, from the lowest of them to the highest; a blank for NaN."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(
        blocks[round((value - low) * scale)] if math.isfinite(value) else " " for value in values
    )


class RunView:
    """A training run in three lines: steps and the time left, rewards, where the time goes.

    The last one takes two on a terminal of 40 columns.

    step 23/80 ━━━━━━━━╸─────────────────────────────── 00:34 left
    reward 0.797 ▁▂▂▃▃▄▅▅▆▇▇█ validation 0.793
    26840 tokens/s rollout 37% reward 1% update 54% eval 7% checkpoint 1%
    """

    def __init__(self, total: int, phases: Sequence[str], done: int = 0):
        self.steps = Bar("step", total, done)
        self.rewards: deque[float] = deque(maxlen=HISTORY)
        self.accuracy: float | None = None
        self.tokens_per_s: float | None = None
        self.phase_s = dict.fromkeys(phases, 0.0)

    def add(self, metrics: dict[str, Any]) -> None:
        """A line of metrics.jsonl; that of step 0 has an evaluation alone."""
        self.accuracy = metrics.get("eval/accuracy", self.accuracy)
        if "reward/mean" in metrics:
            self.rewards.append(metrics["reward/mean"])
            self.tokens_per_s = metrics["rollout/tokens_per_s"]
            for name in self.phase_s:
                self.phase_s[name] += metrics[f"time/{name}_s"]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        blocks = ASCII_BLOCKS if options.ascii_only else BLOCKS
        yield self.steps.row()
        lines = self.learning(options.max_width, blocks), self.spending()
        yield from (Text(line) for line in lines if line)

    def learning(self, width: int, blocks: str = BLOCKS) -> str:
        """The reward of the last steps, as many as there is room for, and the newest accuracy."""
        tail = "" if self.accuracy is None else f"validation {self.accuracy:.3f}"
        if not self.rewards:
            return tail
        head = f"reward {self.rewards[-1]:.3f}"
        room = max(0, width - len(head) - len(tail) - (2 if tail else 1))
        return f"{head} {sparkline(list(self.rewards)[-room:] if room else [], blocks)} {tail}"

    def spending(self) -> str:
        """Tokens sampled in a second, and the share of each phase that has one."""
        if self.tokens_per_s is None:
            return ""
        whole = sum(self.phase_s.values()) or 1.0
        shares = [
            f"{name} {100 * s / whole:.0f}%"
            for name, s in self.phase_s.items()
            if s / whole >= 0.005  # what rounds to 1 %
        ]
        return " ".join([f"{self.tokens_per_s:.0f} tokens/s", *shares])
