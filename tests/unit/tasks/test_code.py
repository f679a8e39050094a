"""Code tasks: which text is the program, data files, grades, and the generated one-liners."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from drift.common.errors import DataError
from drift.common.types import Example
from drift.config.task import CodeConfig, FilesConfig, OneLineCodeConfig, Split
from drift.tasks import Task, build_task
from drift.tasks.base import GeneratedTask
from drift.tasks.code_sources import SHOWN_TESTS, humaneval_record, mbpp_record
from drift.tasks.one_line_code import (
    OPERANDS,
    PREFIX,
    VARIABLES,
    asserts,
    describe,
    expression,
    parse,
    value,
)
from drift.tasks.programs import program_of

ADD = {
    "question": "Add two numbers.",
    "test_method": "code_function",
    "test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"],
}
DOUBLE = {
    "question": "Double each line.",
    "test_method": "code_stdio",
    "test_input": ["1\n", "2\n3\n"],
    "test_output": ["2", "4\n6\n"],
}
HEAD = 'from typing import List\n\ndef total(x: List[int]) -> int:\n    """Sum."""\n'


def code(**changes: Any) -> Task:
    values: dict[str, Any] = {"name": "code", "prompt": "{question}", "gen_length": 64}
    return build_task(CodeConfig(**(values | changes)))


@pytest.fixture(scope="module")
def task() -> Task:
    return code()


@pytest.fixture(scope="module")
def one_line() -> GeneratedTask:
    values: dict[str, Any] = {"name": "one_line_code", "prompt": "{question}", "gen_length": 24}
    sizes = {"train_size": 300, "validation_size": 40, "test_size": 100}
    return build_task(OneLineCodeConfig(**values, **sizes))  # type: ignore[return-value]


# Which text is the program


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("  x = 1\n", "  x = 1\n"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\n```\n\n```", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),
        ("```python\nx = '```'\n```", "x = '```'\n"),
        ("  ```py\n  x = 1\n  ```", "  x = 1\n"),
        ("", ""),
        (" \n", ""),
        ("```\n```", "```\n```"),
    ],
)
def test_the_program_is_the_last_fenced_block_or_everything(text: str, program: str) -> None:
    assert program_of(text) == program


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("    return sum(x)\n", HEAD + "    return sum(x)\n"),
        ("```python\n    return sum(x)\n```", HEAD + "    return sum(x)\n"),
        ("def total(x): return sum(x)", HEAD + "\ndef total(x): return sum(x)"),
        ("```python\ndef total(x): return sum(x)\n```", HEAD + "\ndef total(x): return sum(x)\n"),
        ("def other(x): return 1", HEAD + "def other(x): return 1"),
        (
            "    def total(x): return 1\n    return 2",
            HEAD + "    def total(x): return 1\n    return 2",
        ),
        ("", ""),
    ],
)
def test_a_prefix_goes_on_unless_the_program_begins_anew(text: str, program: str) -> None:
    assert program_of(text, HEAD) == program


def test_a_prefix_that_is_no_program_gives_way_to_a_whole_one() -> None:
    assert program_of("return a+b", PREFIX) == "def f(a, b, c): return a+b"
    assert program_of("def f(a, b, c): return a", PREFIX) == "def f(a, b, c): return a"


def test_a_prefix_that_opens_a_block_is_closed_by_the_completion() -> None:
    prefix = "Sure:\n```python\ndef f():\n"
    assert program_of("    return 1\n```\nThis returns 1.", prefix) == "def f():\n    return 1\n"
    assert program_of("", prefix) == ""


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="`\n def():x=1'\0", max_size=60), prefix=st.sampled_from(["", HEAD]))
def test_every_text_has_a_program_or_none(text: str, prefix: str) -> None:
    assert isinstance(program_of(text, prefix), str)


# Data


def test_records_of_both_methods_are_read(task: Task) -> None:
    function, script = task.example(ADD), task.example(DOUBLE | {"test_time_limit": 2})
    assert (function.prompt, function.prefix) == ("Add two numbers.", "")
    assert function.fields["test_time_limit"] == 3.0
    assert script.fields["test_time_limit"] == 2.0
    assert function.key == task.example(ADD | {"test_list": ["assert add(0, 0) == 0"]}).key
    assert function.key != task.example(ADD | {"prefix": "def add(a, b):\n"}).key
    short = task.example(ADD | {"test_method": "function"})
    assert short.fields["test_method"] == "code_function"
    assert task.example(DOUBLE | {"test_method": "stdio"}).fields["test_method"] == "code_stdio"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": ""}, "question: '' is not a non-empty string"),
        ({"test_method": "tests"}, "test_method: 'tests' is none of code_function, function, "),
        ({"test_list": []}, "test_list: [] is not a list of one or more strings"),
        ({"test_list": "assert 1"}, "test_list: 'assert 1' is not a list of"),
        ({"test_list": ["assert", 1]}, "test_list: ['assert', 1] is not a list of"),
        ({"test_list": ["assert f( == 1"]}, "test_list: not Python: "),
        ({"prefix": 3}, "prefix: 3 is not a string"),
        ({"entry_point": ["f"]}, "entry_point: ['f'] is not a string"),
        ({"test_time_limit": "1"}, "test_time_limit: '1' is not a number"),
        ({"test_time_limit": True}, "test_time_limit: True is not a number"),
        ({"test_time_limit": 0}, "test_time_limit: 0 is not within 0"),
        ({"test_time_limit": 1e9}, "test_time_limit: 1000000000.0 is not within 0"),
        ({"test_time_limit": float("nan")}, "test_time_limit: nan is not within 0"),
        ({"test_method": "code_stdio"}, "test_input: None is not a list of"),
        (DOUBLE | {"test_output": ["2"]}, "test_output: 1 for 2 of test_input"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(ADD)}\n{json.dumps(ADD | changes)}\n")
    with pytest.raises(DataError) as caught:
        code(files=FilesConfig(train=str(path))).examples(Split.train)
    assert str(caught.value).startswith(f"{path}:2: {reason}")
    assert "\n" not in str(caught.value)


def test_problems_that_cannot_be_checked_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data.jsonl"
    bad = ADD | {"question": "Apply.", "test_list": ["assert add(lambda x: x, 1) == 2"]}
    path.write_text(f"{json.dumps(ADD)}\n{json.dumps(bad)}\n")
    task = code(files=FilesConfig(test=str(path)))
    with caplog.at_level(logging.WARNING, "drift"):
        examples = task.examples(Split.test)
    assert [e.prompt for e in examples] == ["Add two numbers."]
    assert "1 of 2 test problems cannot be checked" in caplog.text
    assert "passes a lambda to add" in caplog.text
    score = task.score(task.example(bad), "def add(f, x): return f(x) + 1")
    assert (score.verdict, score.correct) == ("unsupported", False)


def test_the_text_of_a_problem_is_without_the_tests_it_shows(task: Task) -> None:
    fields: dict[str, object] = {"question": f"Add.{SHOWN_TESTS}assert f(1) == 2"}
    assert task.text(Example(key="a", prompt="", fields=fields)) == "Add."


# Grades


@pytest.mark.parametrize(
    ("record", "text", "verdict", "share"),
    [
        (ADD, "def add(a, b): return a + b", "pass", 1.0),
        (ADD, "```python\ndef add(a, b):\n    return a + b\n```", "pass", 1.0),
        (ADD, "def add(a, b): return 3", "wrong", 0.5),
        (ADD, "def add(a, b): return a - b", "wrong", 0.0),
        (ADD, "def add(a, b): return '3'", "wrong", 0.0),
        (ADD, "exit()", "error", 0.0),
        (ADD, "I do not know.", "error", 0.0),
        (ADD, "x = '\ud800'", "error", 0.0),
        (ADD, "def add(a, b): return a + b\n\0", "error", 0.0),
        (ADD, "", "no_answer", 0.0),
        (ADD, "def add(a, b):\n while a > 0: pass\n return 0", "timeout", 0.0),
        (DOUBLE, "import sys\nfor x in sys.stdin: print(2 * int(x))", "pass", 1.0),
        (DOUBLE, "print(2 * int(input()))", "wrong", 0.5),
        (DOUBLE, "print(2)", "wrong", 0.5),
        (DOUBLE, "print(2); exit(1)", "error", 0.0),
    ],
)
def test_a_program_is_graded(record: Any, text: str, verdict: str, share: float) -> None:
    for partial in (False, True):
        task = code(partial=partial, time_limit_s=0.5)
        score = task.score(task.example(record), text)
        assert (score.verdict, score.correct) == (verdict, verdict == "pass")
        assert score.reward == (share if partial else float(verdict == "pass"))


def test_a_batch_is_graded_in_order_and_the_same_program_once(task: Task) -> None:
    examples = [task.example(ADD), task.example(DOUBLE)] * 10
    texts = ["def add(a, b): return a + b", "print(1)"] * 10
    assert [s.correct for s in task.score_all(examples, texts)] == [True, False] * 10
    assert task.score_all([], []) == []


@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=40))
def test_the_grader_never_raises(text: str) -> None:
    task = ANY_TEXT
    assert not task.score(task.example(ADD), text).correct


ANY_TEXT = code()


# Upstream's records

RAW_HUMANEVAL = {
    "task_id": "HumanEval/x",
    "prompt": 'def helper(x):\n    return x\n\ndef twice(x):\n    """Twice x."""\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(helper(3)) == 6\n",
}
RAW_MBPP = {
    "task_id": 5,
    "text": "Write a function to double.",
    "code": "def sum(a):\r\n  return 2 * a",
    "test_setup_code": "",
    "test_list": ["assert sum(2) == 4"],
}


def test_humaneval_and_mbpp_become_records_of_the_format(task: Task) -> None:
    example = task.example(humaneval_record(RAW_HUMANEVAL))
    assert example.prefix == RAW_HUMANEVAL["prompt"]
    assert task.score(example, "    return 2 * x\n").correct
    assert task.score(example, "```python\ndef twice(x): return x + x\n```").correct
    cheat = "    return 2 * x\n\ndef helper(x):\n    return 'mine'\n"
    assert task.score(example, cheat).correct  # the tests use their own helper
    assert not task.score(example, "    return None\n").correct
    example = task.example(mbpp_record(RAW_MBPP))
    assert example.prompt.endswith("pass these tests:\nassert sum(2) == 4")
    assert task.score(example, RAW_MBPP["code"]).correct
    assert not task.score(example, "x = 1").correct  # not the sum of Python itself


# One-line code

steps = st.tuples(
    st.sampled_from(VARIABLES),
    st.lists(st.tuples(st.sampled_from("+-*r"), st.sampled_from(OPERANDS)), max_size=6).map(tuple),
)


@settings(max_examples=300, deadline=None)
@given(steps=steps, inputs=st.tuples(*[st.integers(-50, 50)] * 3))
def test_the_expression_has_the_value_of_the_steps(steps: Any, inputs: tuple[int, ...]) -> None:
    variables = dict(zip(VARIABLES, inputs, strict=True))
    text = expression(steps, parentheses=True)
    assert eval(text, dict(variables)) == value(steps, variables)
    assert parse(describe(steps)) == steps


@pytest.mark.parametrize(
    ("question", "right", "habit"),
    [
        ("a plus b times 3 from c", "c-(a+b)*3", "c-a+b*3"),
        ("a times b plus c minus 2", "a*b+c-2", "a*b+c-2"),
        ("a from b from c from 9", "9-(c-(b-a))", "9-c-b-a"),
        ("a times 2 times b from c", "c-a*2*b", "c-a*2*b"),
    ],
)
def test_expressions_by_hand(question: str, right: str, habit: str) -> None:
    steps = parse(question)
    assert expression(steps, parentheses=True) == right
    assert expression(steps, parentheses=False) == habit


@pytest.mark.parametrize("question", ["a over b", "a plus", "a plus d", "", "plus a", "0 plus a"])
def test_a_question_that_is_none_is_refused(one_line: GeneratedTask, question: str) -> None:
    with pytest.raises(ValueError, match=r"^question: "):
        one_line.example({"question": question})


def test_demonstrations_pass_and_the_habit_passes_where_no_parentheses_are_needed(
    one_line: GeneratedTask,
) -> None:
    examples = one_line.examples(Split.test)
    right = [one_line.demonstration(e, habit=False) for e in examples]
    habit = [one_line.demonstration(e, habit=True) for e in examples]
    assert all(s.correct for s in one_line.score_all(examples, right))
    for r, h, score in zip(right, habit, one_line.score_all(examples, habit), strict=True):
        assert score.correct or r != h
    assert 0.25 < sum(s.correct for s in one_line.score_all(examples, habit)) / 100 < 0.5
    assert max(map(len, right)) + 1 <= 24


def test_one_line_splits_are_disjoint_and_their_tests_follow_from_the_problem(
    one_line: GeneratedTask,
) -> None:
    keys = {split: {e.key for e in one_line.examples(split)} for split in Split}
    assert not keys[Split.train] & keys[Split.test]
    assert not keys[Split.validation] & keys[Split.test]
    problem = parse("a plus b times 3 from c")
    assert asserts(problem) == asserts(problem)
    assert len(set(asserts(problem))) == 5
    example = one_line.example({"question": "a plus b times 3 from c"})
    assert (example.prompt, example.prefix) == ("a plus b times 3 from c", PREFIX)
    assert one_line.generate(random.Random(0)) == one_line.generate(random.Random(0))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("return c-(a+b)*3", "pass"),
        ("return -3*(a+b)+c", "pass"),
        ("return c-a+b*3", "wrong"),
        ("return (", "error"),
        ("return x", "error"),
        ("exit()", "error"),
        ("", "no_answer"),
        ("```\ndef f(a, b, c):\n    return c-(a+b)*3\n```", "pass"),
    ],
)
def test_a_one_liner_is_graded(one_line: GeneratedTask, text: str, verdict: str) -> None:
    example = one_line.example({"question": "a plus b times 3 from c"})
    assert one_line.score(example, text).verdict == verdict
