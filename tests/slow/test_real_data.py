r"""Graders on published data sets. DRIFT_DATA names a folder with their raw files."""

import csv
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from drift.config.task import CountdownConfig, MathConfig, SudokuConfig
from drift.tasks import build_task
from drift.tasks.math import Math

DATA = os.environ.get("DRIFT_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="DRIFT_DATA does not name a folder of raw files")

# MATH500's answers that are the same as another of them, each looked at: order without meaning,
# spacing, a comma in a number, a unit that only one of them has, an equation and its value
SAME = {
    ("-2,1", "1,-2"),
    ("10,\\!080", "10080"),
    ("120", "120^\\circ"),
    ("15", "15\\mbox{ cm}^2"),
    ("2 \\sqrt{5}", "2\\sqrt{5}"),
    ("30", "30^\\circ"),
    ("36", "36^\\circ"),
    ("36", "\\$36"),
    ("5", "x=5"),
    ("90", "90^\\circ"),
    ("\\frac14", "\\frac{1}{4}"),
}


def records(name: str) -> list[dict[str, Any]]:
    path = Path(DATA) / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else list(map(json.loads, text.splitlines()))


def math(name: str) -> Math:
    config = MathConfig(name=name, prompt="{question}", gen_length=256, hash_answer=name == "gsm8k")
    return build_task(config)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_gsm8ks_reference_solutions_are_right_and_changed_ones_wrong(name: str) -> None:
    task, rows = math("gsm8k"), records(name)
    parts = [row["answer"].rpartition("####") for row in rows]
    examples = [
        task.example({"question": row["question"], "ground_truth_answer": gold.strip()})
        for row, (_, _, gold) in zip(rows, parts, strict=True)
    ]
    boxed = [f"{steps}\\boxed{{{gold.strip()}}}" for steps, _, gold in parts]
    assert all(score.correct for score in task.score_all(examples, boxed))
    hashed = [row["answer"] for row in rows]
    assert all(score.correct for score in task.score_all(examples, hashed))
    changed = [f"\\boxed{{{int(gold.replace(',', '')) + 1}}}" for _, _, gold in parts]
    assert not any(score.correct for score in task.score_all(examples, changed))


def test_math500s_answers_equal_themselves_and_no_other() -> None:
    task, rows = math("math500"), records("MATH500.json")
    own = task.score_all(
        [task.example(row) for row in rows],
        [f"\\boxed{{{row['ground_truth_answer']}}}" for row in rows],
    )
    assert all(score.correct for score in own)
    golds = sorted({row["ground_truth_answer"] for row in rows})
    pairs = list(itertools.combinations(golds, 2))
    examples = {
        g: task.example({"question": "", "ground_truth_answer": g} | {"question": g}) for g in golds
    }
    scores = task.score_all(
        [examples[gold] for gold, _ in pairs], [f"\\boxed{{{answer}}}" for _, answer in pairs]
    )
    task.pool.close()
    assert {score.verdict for score in scores} == {"pass", "wrong"}
    equal = {pair for pair, score in zip(pairs, scores, strict=True) if score.correct}
    assert equal == SAME


def test_the_published_sudokus_are_graded() -> None:
    path = Path(DATA) / "sudoku_4x4_test.csv"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    task = build_task(SudokuConfig(name="sudoku", prompt="{puzzle}", gen_length=24))
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        record = {"puzzle": row["Puzzle"], "ground_truth_answer": row["Solution"]}
        example = task.example(record)
        right = task.score(example, f"<answer>{row['Solution']}</answer>")
        empty = task.score(example, f"<answer>{row['Puzzle']}</answer>")
        assert (right.verdict, right.rewards) == ("pass", {"cells": 1.0})
        assert (empty.verdict, empty.rewards) == ("wrong", {"cells": 0.0})


def test_the_published_countdowns_can_be_solved() -> None:
    config = CountdownConfig(name="countdown", prompt="{numbers}={target}", gen_length=16)
    task = build_task(config)
    solved = 0
    rows = records("countdown_cd3_test.jsonl")
    for row in rows:
        numbers = [int(number) for number in row["input"].split(",")]
        example = task.example({"numbers": numbers, "target": int(row["output"])})
        solved += any(
            task.score(example, f"\\boxed{{{text}}}").correct
            for a, b, c in itertools.permutations(numbers)
            for x, y in itertools.product("+-*/", repeat=2)
            for text in (f"({a}{x}{b}){y}{c}", f"{a}{x}({b}{y}{c})")
        )
    assert solved == len(rows)
