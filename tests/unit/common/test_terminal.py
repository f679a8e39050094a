"""What a person at a terminal sees, on a real pseudo-terminal; and what a log file gets instead."""

import io
import re

import pytest
from rich.console import Console

from drift.common.terminal import ASCII_BLOCKS, Bar, RunView, in_words, sparkline
from drift.training.report import PHASES


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def drawn(content: object, width: int, encoding: str = "utf-8") -> list[str]:
    """The lines of a view on a terminal so wide."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width).print(content)
    file.flush()
    lines = file.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]
    return [line.rstrip() for line in lines]


def test_a_sparkline_goes_from_the_lowest_value_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([-0.5, 0.5, 0.0]) == "▁█▅"
    assert sparkline([0.3, 0.3]) == "▁▁"
    assert sparkline([0.0, float("nan"), 1.0]) == "▁ █"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0:00 left"), (6.2, "0:07 left"), (3723, "1:02:03 left")],
)
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_a_bar_that_would_flash_by_is_not_shown() -> None:
    clock = Clock()
    quick, slow, silent = (Bar("rows", 10, clock=clock) for _ in range(3))
    slow.move(1)
    for _ in range(8):  # done after two seconds
        clock.now += 0.2
        quick.advance()
        assert drawn(quick, 40) == []
    slow.move(2.6)  # 1.6 in 1.6 seconds
    assert re.fullmatch(r"rows +2/10 ━+[╸╺]? +00:08 left", drawn(slow, 40)[0])
    assert drawn(silent, 40) == []
    clock.now += 4
    assert re.fullmatch(r"rows +0/10 +--:-- left", drawn(silent, 40)[0])
    slow.move(10)
    assert drawn(slow, 40)[0].endswith("00:00 left")  # once there it stays to its end
    assert all(len(row) == 40 for bar in (slow, silent) for row in drawn(bar, 40))


def test_the_time_left_follows_slow_steps_too() -> None:
    clock = Clock()
    bar = Bar("step", 10, clock=clock)
    for _ in range(4):
        clock.now += 100
        bar.advance()
    assert bar.task.time_remaining == 600


def line(step: int, **changes: float) -> dict[str, float]:
    """Of metrics.jsonl; rewards 0, 0.1, 0.2, ..."""
    times = dict(zip(PHASES, (3.0, 0.5, 5.0, 0.0, 1.0, 0.5), strict=True))
    return {
        "reward/mean": step / 10,
        "rollout/tokens_per_s": 26840.2,
        **{f"time/{name}_s": seconds for name, seconds in times.items()},
        **changes,
    }


def test_a_run_takes_three_lines_and_four_on_a_narrow_terminal() -> None:
    view = RunView(80, PHASES)
    assert len(drawn(view, 80)) == 1
    view.add({"eval/accuracy": 0.25})
    assert drawn(view, 80)[1:] == ["validation 0.250"]
    for step in range(8):
        view.add(line(step))
        view.steps.move(step + 1)
    assert drawn(view, 80)[1:] == [
        "reward 0.700 ▁▂▃▄▅▆▇█ validation 0.250",
        "26840 tokens/s rollout 30% reward 5% update 50% eval 10% checkpoint 5%",
    ]
    view.add(line(0, **{"eval/accuracy": 0.5}))
    for step in range(40):
        view.add(line(step))
    narrow = drawn(view, 40)
    assert narrow[1:] == [
        "reward 3.900 ▁▂▃▃▄▅▆▆▇█ validation 0.500",
        "26840 tokens/s rollout 30% reward 5%",
        "update 50% eval 10% checkpoint 5%",
    ]
    assert all(len(text) <= 40 for text in narrow)
    plain = drawn(view, 60, "latin-1")
    assert set(plain[1].removeprefix("reward 3.900 ").split()[0]) <= set(ASCII_BLOCKS)
