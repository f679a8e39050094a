"""Offline grading: lines in, lines out, in order; the library's face; what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import drift
from drift.common.errors import ConfigError, DataError
from drift.common.types import Score
from drift.config.commands import ScoreConfig
from drift.config.compose import CONF
from drift.config.data import DataConfig, OnError
from drift.config.task import CountdownConfig
from drift.tasks.records import Record, read_records
from drift.tasks.score_file import run as run_score
from drift.tasks.scoring import CHUNK, graded, load_task
from tests.conftest import read_lines


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
