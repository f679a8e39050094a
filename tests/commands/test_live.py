"""What a person at a terminal sees, on a real pseudo-terminal; and what a log file gets instead."""

import re

from tests.conftest import Run

SMOKE = (
    "drift.train", "debug=smoke", "tracking=off", "hydra.run.dir=run",
)  # fmt: skip


def test_what_is_no_terminal_gets_lines(run: Run) -> None:
    said = run("train", *SMOKE[1:], "num_steps=2", "eval.every=0").stdout
    assert re.findall(r"^\d\d:\d\d:\d\d step (\d)/2  reward", said, re.MULTILINE) == ["1", "2"]
    assert "\x1b" not in said and "left" not in said
