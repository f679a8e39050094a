r"""Rewards by name, their weights, and what counts as the form that was asked for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from drift.cluster.engine import Engine
from drift.common.types import Advantages, Example, Score
from drift.config.cluster import ClusterConfig
from drift.config.model import Dtype
from drift.config.task import CountdownConfig, RewardConfig, SudokuConfig, Truncated
from drift.tasks import Task, build_task
from drift.tasks.extract import Block, is_well_formed
from drift.tasks.reward import grade
from drift.training.report import step_metrics
from tests.conftest import make_rollout, make_trace

SOLVED = "1234341221434321"
PUZZLE = "0034341221434300"


def countdown(**weights: Any) -> tuple[Task, Example]:
    task = build_task(
        CountdownConfig(
            name="countdown", prompt="{target}", gen_length=16, reward=RewardConfig(**weights)
        )
    )
    return task, task.example({"numbers": [3, 9, 5], "target": 11})


def sudoku(**weights: Any) -> tuple[Task, Example]:
    task = build_task(
        SudokuConfig(
            name="sudoku", prompt="{puzzle}", gen_length=24, reward=RewardConfig(**weights)
        )
    )
    return task, task.example({"puzzle": PUZZLE, "ground_truth_answer": SOLVED})


def test_by_default_the_reward_is_the_tasks_own() -> None:
    task, example = countdown()
    right, wrong = grade(task, [example] * 2, ["\\boxed{9+5-3}", "so \\boxed{9+5} or"])
    assert (right.reward, right.correct, right.rewards) == (1, True, {"answer": 1, "format": 1})
    assert (wrong.reward, wrong.correct, wrong.rewards) == (0, False, {"answer": 0, "format": 0})


def test_weights_add_up_and_leave_correct_alone() -> None:
    task, example = countdown(answer=2.0, format=0.5)
    texts = ["\\boxed{9+5-3}", "\\boxed{9+5-3} is it", "\\boxed{9+5}", "nothing"]
    scores = grade(task, [example] * 4, texts)
    assert [score.reward for score in scores] == [2.5, 2.0, 0.5, 0.0]
    assert [score.correct for score in scores] == [True, True, False, False]


def test_length_is_paid_for_in_proportion() -> None:
    task, example = countdown(length_penalty=0.5)
    texts = ["\\boxed{9+5-3}", "\\boxed{9+5-3}", "\\boxed{9}"]
    scores = grade(task, [example] * 3, texts, length_shares=[0.25, 1.0, 1.0])
    assert [score.reward for score in scores] == [0.875, 0.5, -0.5]


def test_evaluations_are_paid_for_by_right_answers_alone() -> None:
    """A wrong answer earns 0 however fast, so that giving up early is worth nothing."""
    task, example = countdown(nfe_penalty=0.4)
    texts = ["\\boxed{9+5-3}", "\\boxed{9+5-3}", "\\boxed{9}", "\\boxed{9}"]
    scores = grade(task, [example] * 4, texts, nfe_shares=[0.25, 1.0, 0.25, 1.0])
    assert [score.reward for score in scores] == pytest.approx([0.9, 0.6, 0, 0])
    assert [score.rewards["nfe_share"] for score in scores] == [0.25, 1, 0, 0]
    assert [score.rewards["answer"] for score in scores] == [1, 1, 0, 0]
    free, example = countdown()
    (score,) = grade(free, [example], texts[:1], nfe_shares=[1.0])
    assert (score.reward, score.rewards) == (1, {"answer": 1, "format": 1})


@pytest.mark.parametrize(("rule", "reward"), [(Truncated.keep, 1.2), (Truncated.zero, 0.0)])
def test_a_truncated_completion_keeps_or_loses_its_reward(rule: Truncated, reward: float) -> None:
    task, example = countdown(format=0.2, truncated=rule)
    cut, whole = grade(task, [example] * 2, ["\\boxed{9+5-3}"] * 2, finished=[False, True])
    assert (cut.reward, cut.correct) == (reward, True)
    assert whole.reward == 1.2


def test_sudoku_tells_the_share_of_empty_cells_that_are_right() -> None:
    task, example = sudoku(cells=0.5)
    answers = [SOLVED, "1134" + SOLVED[4:14] + "12", "12", "", "9" * 16, SOLVED + "1"]
    scores = grade(task, [example] * 6, [f"<answer>{answer}</answer>" for answer in answers])
    # the empty cells hold 1, 2, 2 and 1
    assert [score.rewards["cells"] for score in scores] == [1, 0.25, 0.5, 0, 0, 1]
    assert [score.reward for score in scores] == [1.5, 0.125, 0.25, 0, 0, 0.5]
    assert [score.correct for score in scores] == [True, False, False, False, False, False]


def test_a_step_logs_each_reward_and_the_share_of_graders_that_ran_out_of_time() -> None:
    def score(cells: float, verdict: str) -> Score:
        rewards = {"answer": 0.0, "format": 1.0, "cells": cells}
        return Score(reward=0.5, correct=False, answer="1", verdict=verdict, rewards=rewards)

    verdicts = ["wrong", "grader_timeout", "wrong", "no_answer"]
    rollout = replace(
        make_rollout([[5], [6]], make_trace([[0], [0], [0], [0]]), group_size=2),
        scores=[score(cells / 4, verdict) for cells, verdict in enumerate(verdicts)],
    )
    advantages = Advantages(
        values_B=torch.zeros(4), used_B=torch.zeros(4, dtype=torch.bool), zero_variance_groups=2
    )
    metrics = step_metrics(Engine(ClusterConfig(name="local"), Dtype.float32), rollout, advantages)
    assert metrics["reward/grader_timeout_frac"] == 0.25
    assert metrics["reward/cells"] == 0.375
    assert (metrics["reward/format"], metrics["reward/answer"]) == (1, 0)


@pytest.mark.parametrize(
    ("block", "text", "expected"),
    [
        (Block.box, "so \\boxed{5}", True),
        (Block.box, "so $\\boxed{5}$.", True),
        (Block.box, "\\[\\boxed{\\frac{1}{2}}\\]\n", True),
        (Block.box, "<answer>\\boxed{5}</answer>", True),
        (Block.box, "\\boxed{5}<|eot_id|><|endoftext|>", True),
        (Block.box, "\\boxed{{5}}", True),
        (Block.box, "\\boxed{5} is it", False),
        (Block.box, "\\boxed{5}}", False),
        (Block.box, "\\boxed{4} \\boxed{5}", False),
        (Block.box, "\\boxed{} \\boxed{5}", False),
        (Block.box, "\\boxed{}", False),
        (Block.box, "\\boxed{\\boxed{5}}", False),
        (Block.box, "\\boxed{5", False),
        (Block.box, "<answer>5</answer>", False),
        (Block.box, "5", False),
        (Block.box, "", False),
        (Block.answer, "so\n<answer>5</answer>\n", True),
        (Block.answer, "<answer>5</answer><|eot_id|>", True),
        (Block.answer, "<answer>5</answer>.", False),
        (Block.answer, "<answer></answer>", False),
        (Block.answer, "<answer>4</answer><answer>5</answer>", False),
        (Block.answer, "</answer>5<answer>", False),
        (Block.answer, "\\boxed{5}", False),
        (Block.code, "so\n```python\nreturn 5\n```", True),
        (Block.code, "```\nreturn 5\n```\n", True),
        (Block.code, "```\nreturn 5\n``` done", False),
        (Block.code, "```\n\n```", False),
        (Block.code, "```\na\n```\n```\nb\n```", False),
        (Block.code, "```\nreturn 5", False),
        (Block.code, "return 5", False),
    ],
)
def test_the_form_asked_for(block: Block, text: str, expected: bool) -> None:
    assert is_well_formed(text, block) is expected


PIECES = [
    "\\boxed{",
    "}",
    "{",
    "<answer>",
    "</answer>",
    "```",
    "\n",
    "5",
    "$",
    "<|eot_id|>",
    "\ud800",
]


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_the_form_of_any_text_can_be_told(text: str) -> None:
    for block in Block:
        assert is_well_formed(text, block) in (True, False)
