"""What a person at a terminal sees, on a real pseudo-terminal; and what a log file gets instead."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from drift.common.terminal import ASCII_BLOCKS, Bar, Pace, RunView, in_words, sparkline
from drift.training.report import PHASES
from tests.conftest import Run
from tests.terminal import CTRL_C, Terminal

SMOKE = ("drift.train", "debug=smoke", "tracking=off", "hydra.run.dir=run")
STEP_BAR = re.compile(r"^step (\d+)/\d+ [━╸╺ ]*[━╸╺][━╸╺ ]* (\d+:\d\d|-:--) left$")


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
    [(None, "-:-- left"), (0, "0:00 left"), (6.2, "0:07 left"), (3723, "1:02:03 left")],
)
def test_seconds_in_words(seconds: float | None, words: str) -> None:
    assert in_words(seconds) == words


def test_the_time_left_follows_the_speed_of_the_last_while() -> None:
    clock = Clock()
    pace = Pace(0, 1000, clock)
    assert pace.left_s() is None
    for done in range(1, 201):  # a second each, later two
        clock.now += 1 if done <= 100 else 2
        pace.mark(done)
        if done == 100:
            assert pace.left_s() == pytest.approx(900)
    assert pace.left_s() == pytest.approx(1600)
    clock.now += 60  # a long step: it goes on counting down
    assert pace.left_s() == pytest.approx(1540)
    assert Pace(7, 7, clock).left_s() is None


def test_a_bar_that_would_flash_by_is_not_shown() -> None:
    clock = Clock()
    quick, slow, silent = (Bar("rows", 10, clock=clock) for _ in range(3))
    for _ in range(8):  # done after two seconds
        clock.now += 0.2
        quick.advance()
        assert drawn(quick, 40) == []
    slow.move(2.5)
    assert drawn(slow, 40) == ["rows 2/10 ━━━━━                0:05 left"]
    assert drawn(silent, 40) == []
    clock.now += 4
    assert drawn(silent, 40) == ["rows 0/10                      -:-- left"]
    slow.move(10)
    assert drawn(slow, 40)[0].endswith("0:00 left")  # once there it stays to its end


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


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 40])
def test_a_run_on_a_terminal(tmp_path: Path, columns: int) -> None:
    terminal = Terminal(tmp_path, *SMOKE, "num_steps=10", "eval.every=5", columns=columns)
    bars: set[str] = set()
    while terminal.read():
        found = [text for text in terminal.lines() if STEP_BAR.match(text)]
        assert len(found) <= 1  # it is drawn over, never again below
        bars |= set(found)
    assert terminal.finish() == 0
    assert len(bars) > 3
    seen = terminal.lines()
    place = next(i for i, text in enumerate(seen) if STEP_BAR.match(text))
    assert len(seen[place]) == columns - 2  # room for an echoed ^C
    assert re.fullmatch(r"step 10/10 ━+ 0:00 left", seen[place])
    assert re.match(r"reward [01]\.\d{3} [▁▂▃▄▅▆▇█]{8,10} validation 0\.\d{3}$", seen[place + 1])
    shares = " ".join(seen[place + 2 : place + (3 if columns == 80 else 4)])
    assert re.match(r"\d+ tokens/s rollout \d+% .*update \d+% eval \d+% checkpoint \d+%$", shares)
    text = "\n".join(seen)
    assert "first held-out accuracy" in text.split(seen[place])[1]  # the farewell stands below
    assert " step 5/10  reward" in text  # each evaluation stays to be read
    assert "step 4/10  reward" not in text
    assert not terminal.screen.cursor.hidden
    log = (tmp_path / "run" / "train.log").read_text()
    assert re.findall(r"step (\d+)/10  reward", log) == [str(step) for step in range(1, 11)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "seen"),
    [
        ((*SMOKE, "num_steps=10000", "eval.every=0"), r"^step ([3-9]|\d\d+)/10000 "),
        (("drift.lab", "hydra.run.dir=run"), r"^estimates \d+/\d+ .* left$"),
    ],
    ids=["train", "lab"],
)
def test_ctrl_c_leaves_a_clean_terminal(tmp_path: Path, words: tuple[str, ...], seen: str) -> None:
    terminal = Terminal(tmp_path, *words)
    terminal.until(lambda text: bool(re.search(seen, text, re.MULTILINE)))
    terminal.write(CTRL_C)
    assert terminal.finish() == 130
    assert not terminal.screen.cursor.hidden
    assert terminal.screen.cursor.x == 0  # the prompt begins a line
    text = "\n".join(terminal.lines())
    assert "Traceback" not in text
    assert len(re.findall(r"^(step|estimates) \d+/\d+ ", text, re.MULTILINE)) == (
        1 if "debug=smoke" in words else 0
    )


BROKEN = """
import itertools

from drift.tasks.base import GeneratedTask
from drift.types import Example, Score

graded = itertools.count()


class Broken(GeneratedTask):
    def example(self, record):
        return Example(key=record["bits"], prompt=record["bits"], fields={})

    def generate(self, rng):
        return self.example({"bits": format(rng.getrandbits(12), "b")})

    def demonstration(self, example, *, habit):
        return ""

    def score(self, example, text):
        if next(graded) > 100:
            raise RuntimeError("the grader is broken")
        return Score(reward=0.5, correct=False, answer=None, verdict="wrong")
"""


@pytest.mark.slow
def test_an_error_stands_below_the_run_that_it_ended(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    terminal = Terminal(
        tmp_path, *SMOKE, "num_steps=50", "eval.every=0", "task=own", "task.name=broken",
        "task.module=broken.py", "task.prompt='{bits}'", "task.gen_length=8",
        "task.block_length=8", "task.train_size=50", "task.validation_size=10",
        "task.test_size=10", "model.path=data/tiny-countdown",
    )  # fmt: skip
    assert terminal.finish() == 1
    text = "\n".join(terminal.lines())
    bars = [line for line in text.splitlines() if STEP_BAR.match(line)]
    assert len(bars) == 1, text
    below = "".join(text.split(bars[0])[1].split())  # a long line is broken anywhere
    assert "RuntimeError:thegraderisbroken" in below
    assert not terminal.screen.cursor.hidden and terminal.screen.cursor.x == 0


def test_what_is_no_terminal_gets_lines(run: Run) -> None:
    said = run("train", *SMOKE[1:], "num_steps=2", "eval.every=0").stdout
    assert re.findall(r"^\d\d:\d\d:\d\d step (\d)/2  reward", said, re.MULTILINE) == ["1", "2"]
    assert "\x1b" not in said and "left" not in said
