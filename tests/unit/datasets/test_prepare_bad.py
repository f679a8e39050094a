"""Preparing data sets: a record that its task could not read is never written."""

from pathlib import Path
from typing import Any

import pytest

from drift.common.errors import DataError
from drift.config.commands import Dataset
from drift.config.data import DataConfig, OnError
from drift.tasks.scoring import load_task
from tests.conftest import read_lines
from tests.unit.datasets.test_prepare import prepared, write

MBPP = {"task_id": 11, "text": "Add.", "test_list": ["assert f(1) == 2"], "test_setup_code": None}
HUMANEVAL = {"task_id": "HumanEval/0", "prompt": "def f(x):\n    \"Add.\"\n", "entry_point": "f",
             "test": "def check(candidate):\n    assert candidate(1) == 2\n"}  # fmt: skip
SUDOKU = {"puzzle": "3102200002100320", "ground_truth_answer": "3142243142131324"}


@pytest.mark.parametrize(
    ("dataset", "good", "bad", "reason"),
    [
        ("mbpp", MBPP, MBPP | {"test_list": ["def ("]}, "test_list: not Python: invalid syntax"),
        ("mbpp", MBPP, MBPP | {"test_list": None}, "test_list: None is not a list of one or more"),
        ("mbpp", MBPP, MBPP | {"test_list": []}, "test_list: [] is not a list of one or more"),
        ("mbpp", MBPP, MBPP | {"test_setup_code": 3}, "test_setup_code: 3 is not a string"),
        ("humaneval", HUMANEVAL, HUMANEVAL | {"prompt": None}, "prompt: None is not a non-empty"),
        ("sudoku", SUDOKU, SUDOKU | {"puzzle": "102200002100320"}, "is not 16 digits from 0 to 4"),
        ("countdown", {"numbers": [3, 4], "target": 7}, {"numbers": [3], "target": 3},
         "numbers: [3] is not a list of two or more integers"),
        ("countdown", {"numbers": [3, 4], "target": 7}, {"numbers": [], "target": 3},
         "numbers: [] is not a list of two or more integers"),
    ],
)  # fmt: skip
def test_a_record_that_its_task_cannot_read_is_refused_or_skipped(
    tmp_path: Path, dataset: str, good: dict[str, Any], bad: dict[str, Any], reason: str
) -> None:
    raw = write(tmp_path / f"{dataset}_test.jsonl", bad, good)
    with pytest.raises(DataError) as caught:
        prepared(Dataset(dataset), raw, tmp_path / "out")
    assert str(caught.value).startswith(f"{raw}:1: ")
    assert reason in str(caught.value)
    skip = DataConfig(on_error=OnError.skip)
    manifest = prepared(Dataset(dataset), raw, tmp_path / "out", data=skip)
    assert (len(manifest["left_out"]["bad"]), manifest["files"]["test.jsonl"]["n"]) == (1, 1)
    (line,) = read_lines(tmp_path / "out" / "test.jsonl")
    load_task(dataset).example(line)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"question": None}, "question: None is not a non-empty string"),
        ({"numbers": None, "target": 3}, "numbers: None is not a list"),
        ({"numbers": [1, "a"], "target": 3}, "numbers: 'a' is not an integer"),
        ({"numbers": [1, 2]}, "target: missing"),
        ({}, "question: missing"),
    ],
)
def test_a_bad_record_of_an_excluded_file_is_named(
    tmp_path: Path, record: dict[str, Any], reason: str
) -> None:
    raw = write(tmp_path / "countdown_train.jsonl", {"numbers": [3, 4], "target": 7})
    other = write(tmp_path / "other.jsonl", record)
    with pytest.raises(DataError) as caught:
        prepared(Dataset.countdown, raw, tmp_path / "out", exclude=[str(other)])
    assert str(caught.value) == f"{other}:1: {reason}"
    assert not (tmp_path / "out").exists()


def test_every_data_set_has_a_task_that_reads_it() -> None:
    for dataset in Dataset:
        assert load_task(dataset).config.name == dataset
