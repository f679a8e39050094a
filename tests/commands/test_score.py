"""Offline grading: lines in, lines out, in order; the library's face; what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from drift.common.stats import wilson
from tests.conftest import ROOT, Run, read_lines
from tests.unit.tasks.test_score import NOTHING, RIGHT, WRONG, countdown, write


@pytest.mark.parametrize("first", ["", "import drift.score; ", "from drift import score; "])
def test_the_function_is_there_before_and_after_the_command_is_imported(first: str) -> None:
    code = f"import drift; {first}print(drift.score('countdown', [{RIGHT!r}])[0].verdict)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("pass\n", "")


# The command


def test_each_line_is_graded_in_order_and_summarized(run: Run, tmp_path: Path) -> None:
    named = countdown("\\boxed{9+5-3}", id="first", task_id=7, note="é")
    write(tmp_path / "in.jsonl", named, WRONG, "", NOTHING, RIGHT)
    done = run("score", "task=countdown", "input=in.jsonl", "output=graded/out.jsonl")
    lines = read_lines(tmp_path / "graded" / "out.jsonl")
    assert [line["line"] for line in lines] == [1, 2, 4, 5]  # the third is blank
    assert [line["verdict"] for line in lines] == ["pass", "wrong", "no_answer", "pass"]
    first = {"line": 1, "id": "first", "task_id": 7, "answer": "9+5-3", "verdict": "pass"}
    assert lines[0] | first | {"reward": 1.0, "correct": True} == lines[0]
    assert not {"numbers", "target", "completion", "note"} & lines[0].keys()
    summary = json.loads((tmp_path / "graded" / "out.summary.json").read_text())
    assert summary["verdicts"] == {"pass": 2, "wrong": 1, "no_answer": 1}
    assert (summary["accuracy"], summary["n"], summary["bad_records"]) == (0.5, 4, 0)
    assert summary["ci95"] == list(wilson(2, 4))
    assert summary["means"]["reward"] == 0.5
    assert summary["task"] == "countdown"
    assert summary["input"]["bytes"] == (tmp_path / "in.jsonl").stat().st_size
    assert "accuracy 0.500 [0.150, 0.850] of 4" in done.stdout
    assert "verdicts: pass 2, wrong 1, no_answer 1; bad records: 0" in done.stdout


BAD = ('{"numbers": [3, 9, 5], "target": 11}', "no JSON", '{"id": "x", "completion": ""}')
REASONS = [
    "in.jsonl:2: completion: missing",
    "in.jsonl:3: not JSON: Expecting value at column 1",
    "in.jsonl:4: numbers: None is not a list of two or more integers",
]


def test_a_bad_line_is_refused_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", RIGHT, *BAD)
    done = run("score", "input=in.jsonl", "output=out.jsonl", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"drift: {REASONS[0]}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "outputs"]


def test_a_skipped_line_keeps_its_place(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", RIGHT, *BAD, WRONG)
    run("score", "input=in.jsonl", "output=out.jsonl", "data.on_error=skip")
    lines = read_lines(tmp_path / "out.jsonl")
    verdicts = ["pass", "bad_record", "bad_record", "bad_record", "wrong"]
    assert [line["verdict"] for line in lines] == verdicts
    assert [line["line"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["reason"] for line in lines[1:4]] == REASONS
    assert [line["reward"] for line in lines] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert lines[3]["id"] == "x"
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert (summary["accuracy"], summary["n"], summary["bad_records"]) == (0.5, 2, 3)
    assert summary["verdicts"] == {"pass": 1, "wrong": 1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("output=out.jsonl",), "input is not set; add input=VALUE"),
        (("task=chess", "input=in.jsonl", "output=out.jsonl"), "task=chess: no such option"),
        (("input=in.jsonl", "output=/dev/null/out.jsonl"), "/dev/null: File exists"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    done = run("score", *overrides, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"drift: {message}")
    assert len((done.stdout + done.stderr).splitlines()) == 1


def test_help_and_composed_config_are_printed(run: Run) -> None:
    assert "input: ???" in run("score", "--cfg", "job").stdout
    assert "\n  task\n" in run("score", "--help").stdout
