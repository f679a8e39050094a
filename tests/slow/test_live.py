"""What a person at a terminal sees, on a real pseudo-terminal; and what a log file gets instead."""

import re
from pathlib import Path

import pytest

from tests.commands.test_live import SMOKE
from tests.terminal import CTRL_C, Terminal

STEP_BAR = re.compile(r"^step +(\d+)/\d+ [━╸╺ ]*[━╸╺][━╸╺ ]* (\d+:\d\d|--:--) left$")


@pytest.mark.parametrize("columns", [80, 40])
def test_a_run_on_a_terminal(tmp_path: Path, columns: int) -> None:
    settings = ("num_steps=10", "eval.every=5", "rollout.group_size=64")  # no step in no time
    terminal = Terminal(tmp_path, *SMOKE, *settings, columns=columns)
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
    assert re.fullmatch(r"step 10/10 ━+ 00:00 left", seen[place])
    assert re.match(r"reward [01]\.\d{3} [▁▂▃▄▅▆▇█]{8,10} validation 0\.\d{3}$", seen[place + 1])
    shares = " ".join(seen[place + 2 : place + (3 if columns == 80 else 4)])
    assert re.match(r"\d+ tokens/s rollout \d+% .*update \d+% eval \d+% checkpoint \d+%$", shares)
    text = "\n".join(seen)
    assert "first held-out accuracy" in text.split(seen[place])[1]  # the end of the log is below it
    assert " step 5/10  reward" in text  # each evaluation stays to be read
    assert "step 4/10  reward" not in text
    assert not terminal.screen.cursor.hidden
    log = (tmp_path / "run" / "train.log").read_text()
    assert re.findall(r"step (\d+)/10  reward", log) == [str(step) for step in range(1, 11)]


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        ((*SMOKE, "num_steps=10000", "eval.every=0"), r"^step +([3-9]|\d\d+)/10000 "),
        (("drift.lab", "hydra.run.dir=run"), r"^estimates +\d+/\d+ .* left$"),
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
    assert len(re.findall(r"^(step|estimates) +\d+/\d+ ", text, re.MULTILINE)) == (
        1 if "debug=smoke" in words else 0
    )


BROKEN = """
import itertools

from drift.tasks.base import GeneratedTask
from drift.common.types import Example, Score

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
