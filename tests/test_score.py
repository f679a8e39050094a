"""Offline grading: lines in, lines out, in order; the library's face; what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import drift
from drift.common.errors import ConfigError, DataError
from drift.common.stats import wilson
from drift.common.types import Score
from drift.config import CountdownConfig, ScoreConfig
from drift.config.compose import CONF
from drift.config.data import DataConfig, OnError
from drift.tasks.records import Record, read_records
from drift.tasks.score_file import run as run_score
from drift.tasks.scoring import CHUNK, graded, load_task
from tests.conftest import ROOT, Run, read_lines


def countdown(completion: object, **changes: object) -> dict[str, Any]:
    """3, 9 and 5 to 11 with a completion; None leaves it out."""
    record = {"numbers": [3, 9, 5], "target": 11, "completion": completion} | changes
    return {field: value for field, value in record.items() if value is not None}


RIGHT, WRONG, NOTHING = countdown("\\boxed{9+5-3}"), countdown("\\boxed{9+5+3}"), countdown("")
SUDOKU = {
    "puzzle": "3102200002100320",
    "ground_truth_answer": "3142243142131324",
    "completion": "<answer>3142243142131324</answer>",
}


def write(path: Path, *records: dict[str, Any] | str) -> None:
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# The library


def test_records_are_scored_in_order_by_a_task_or_its_name() -> None:
    scores = drift.score("countdown", [RIGHT, WRONG, NOTHING])
    assert [score.verdict for score in scores] == ["pass", "wrong", "no_answer"]
    assert [score.reward for score in scores] == [1.0, 0.0, 0.0]
    assert scores[0].answer == "9+5-3"
    assert drift.score(load_task("countdown"), iter([RIGHT, WRONG, NOTHING])) == scores
    assert [score.correct for score in drift.score("sudoku", [SUDOKU])] == [True]
    assert drift.score("countdown", []) == []


def test_a_loaded_task_takes_settings() -> None:
    fewer = countdown("\\boxed{9+5}", target=14)
    assert drift.score("countdown", [fewer])[0].verdict == "wrong_numbers"
    task = drift.load_task("countdown", "task.use_every_number=false")
    assert drift.score(task, [fewer])[0].verdict == "pass"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("chess", (), "task=chess: no such option of the group; options: "),
        ("countdown", ("task.size=3",), "task.size: no such option"),
        ("countdown", ("task.reward.length_penalty=0.5",), "length_penalty=0.5 is for completions"),
        ("countdown", ("task.reward.nfe_penalty=0.5",), "nfe_penalty=0.5 is for completions that"),
        ("countdown", ("task.reward.truncated=zero",), "or end of them: leave it keep"),
        ("countdown", ("task.operators=x",), "task.operators='x' must be one or more of + - *"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_one_line(
    name: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task(name, *overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (countdown(None), "completion: missing"),
        (countdown(3), "completion: 3 is not a string"),
        (countdown("x", target="11"), "target: '11' is not an integer"),
    ],
)
def test_a_bad_record_is_named_by_its_number(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        drift.score("countdown", [RIGHT, record])
    assert str(caught.value) == f"record 2: {reason}"


def test_a_task_is_loaded_inside_an_application_of_hydra() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert drift.score("countdown", [RIGHT])[0].correct
        with pytest.raises(ConfigError, match="task=chess"):
            load_task("chess")
        assert compose("score").task.name == "countdown"  # the application's own goes on


@pytest.mark.parametrize("first", ["", "import drift.score; ", "from drift import score; "])
def test_the_function_is_there_before_and_after_the_command_is_imported(first: str) -> None:
    code = f"import drift; {first}print(drift.score('countdown', [{RIGHT!r}])[0].verdict)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("pass\n", "")


def test_every_record_of_many_chunks_comes_back_in_order() -> None:
    bad = {0, CHUNK - 1, CHUNK, 2 * CHUNK + 5}
    size = 2 * CHUNK + 10
    records = (
        Record(place=f"f:{i}", line=i, value={} if i in bad else countdown(f"\\boxed{{{i}}}"))
        for i in range(size)
    )
    found = list(graded(load_task("countdown"), records, OnError.skip))
    assert [record.line for record, _ in found] == list(range(size))
    assert {record.line for record, result in found if isinstance(result, DataError)} == bad
    answers = [(r.line, s.answer) for r, s in found if isinstance(s, Score)]
    assert all(answer == str(line) for line, answer in answers)


def test_no_more_than_a_chunk_is_read_ahead() -> None:
    read = 0

    def records():
        nonlocal read
        for i in range(3 * CHUNK):
            read += 1
            yield Record(place=f"f:{i}", line=i, value=RIGHT)

    found = graded(load_task("countdown"), records(), OnError.refuse)
    next(found)
    assert read == CHUNK


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


def grade(folder: Path, source: str, target: str, on_error: OnError = OnError.refuse) -> None:
    """What the command does, in this process."""
    task = CountdownConfig(name="countdown", prompt="{numbers}={target}", gen_length=16)
    files = {"input": str(folder / source), "output": str(folder / target)}
    run_score(ScoreConfig(task=task, data=DataConfig(on_error=on_error), **files))


def test_grading_again_replaces_the_output_and_a_failure_leaves_it(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", RIGHT)
    (tmp_path / "out.jsonl").write_text("old")
    write(tmp_path / "bad.jsonl", RIGHT, "no JSON")
    for source in ("missing.jsonl", "bad.jsonl"):
        with pytest.raises(DataError, match=source):
            grade(tmp_path, source, "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    grade(tmp_path, "in.jsonl", "out.jsonl")
    assert len(read_lines(tmp_path / "out.jsonl")) == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"in.jsonl", "bad.jsonl", "out.jsonl", "out.summary.json"}


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", RIGHT)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    for target in ("in.jsonl", "link.jsonl"):
        with pytest.raises(ConfigError, match=r"^output=.* is the input; choose another file$"):
            grade(tmp_path, "in.jsonl", target)
    assert read_lines(tmp_path / "in.jsonl") == [RIGHT]


def test_what_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for target in ("folder", "", "."):
        with pytest.raises(ConfigError, match=r"^output=.* is no file; name the file to write$"):
            grade(tmp_path, "missing.jsonl", target)


def test_a_packed_output_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", RIGHT, WRONG)
    grade(tmp_path, "in.jsonl", "out.jsonl.gz")
    lines = [record.value for record in read_records(tmp_path / "out.jsonl.gz")]
    assert [line["verdict"] for line in lines if isinstance(line, dict)] == ["pass", "wrong"]


def test_bad_records_alone_are_no_accuracy(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", {"numbers": []}, {"numbers": [3]})
    with pytest.raises(
        DataError, match=r"in\.jsonl has no good record; .*out\.jsonl is not written"
    ):
        grade(tmp_path, "in.jsonl", "out.jsonl", on_error=OnError.skip)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


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
