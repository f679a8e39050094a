"""Public data sets: raw records to ours, splits, the folder that is written, what is refused."""

from pathlib import Path

import pytest

from tests.conftest import Run
from tests.unit.datasets.test_prepare import write


def test_the_command_writes_where_the_task_looks(run: Run, tmp_path: Path) -> None:
    raw = write(tmp_path / "countdown_test.jsonl", {"input": "1,2,3", "output": "6"})
    done = run("prepare", "dataset=countdown", f"source={raw}")
    assert "outputs/data/countdown: test 1" in done.stdout
    assert (tmp_path / "outputs" / "data" / "countdown" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "dataset is not set; add dataset=VALUE"),
        (("dataset=gsm8k",), "dataset=gsm8k: openai/gsm8k cannot be read from the hub ("),
        (("dataset=sudoku",), "dataset=sudoku is not on the hub; set source=PATH to its raw file"),
    ],
)
def test_mistakes_and_a_missing_network_are_one_line(
    run: Run, overrides: tuple[str, ...], message: str
) -> None:
    done = run("prepare", *overrides, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"drift: {message}")
    assert len((done.stdout + done.stderr).splitlines()) == 1
