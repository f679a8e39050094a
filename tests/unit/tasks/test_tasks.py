r"""Graders and generated problems: exact values, refusals, splits, demonstrations."""

import itertools
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from drift.common.errors import ConfigError
from drift.common.types import Example, Score
from drift.config.task import CountdownConfig, Split, SudokuConfig, TaskConfig
from drift.tasks import Task, build_task
from drift.tasks.base import GeneratedTask, split_of
from drift.tasks.countdown import evaluate, solutions
from drift.tasks.extract import last_boxed, last_tag
from drift.tasks.sudoku import is_solved, solve, solved_grids
from tests.oracles import exact, expression_trees, rendered, sudoku_grids

SIZES: dict[str, Any] = {"train_size": 1500, "validation_size": 60, "test_size": 150}
SOLVED = "1234341221434321"
PUZZLE = "0034341221434300"  # SOLVED with four cells emptied: exactly one solution
SQUARES = "1234"  # what each row, column and 2x2 box must hold


def countdown(**changes: Any) -> GeneratedTask:
    values = {"name": "countdown", "prompt": "{numbers}={target}", "gen_length": 16} | SIZES
    return build_task(CountdownConfig(**(values | changes)))  # type: ignore[return-value]


def sudoku(**changes: Any) -> GeneratedTask:
    values = {"name": "sudoku", "prompt": "{puzzle}", "gen_length": 24} | SIZES
    return build_task(SudokuConfig(**(values | changes)))  # type: ignore[return-value]


TASKS_MADE = {"countdown": countdown, "sudoku": sudoku}
both_tasks = pytest.mark.parametrize("name", ["countdown", "sudoku"])


def numbers_to_target(numbers: list[int], target: int, **changes: Any) -> tuple[Task, Example]:
    task = countdown(**changes)
    return task, task.example({"numbers": numbers, "target": target})


def the_puzzle() -> tuple[Task, Example]:
    task = sudoku()
    return task, task.example({"puzzle": PUZZLE, "ground_truth_answer": SOLVED})


# Countdown: the value of an expression


@settings(max_examples=300, deadline=None)
@given(tree=expression_trees)
def test_evaluate_is_exact(tree: Any) -> None:
    text = rendered(tree)
    if len(text) > 200 or exact(tree) is None:
        assert evaluate(text) is None
    else:
        assert evaluate(text) == (exact(tree), [int(n) for n in re.findall(r"\d+", text)])


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("2+3*4", Fraction(14), [2, 3, 4]),
        ("2-3-4", Fraction(-5), [2, 3, 4]),
        ("8/4/2", Fraction(1), [8, 4, 2]),
        ("1/3+1/6", Fraction(1, 2), [1, 3, 1, 6]),
        ("-2*-(3)", Fraction(6), [2, 3]),
        ("--5", Fraction(5), [5]),
        (" ( 9 + 5 ) - 3 ", Fraction(11), [9, 5, 3]),
        ("999999999", Fraction(999999999), [999999999]),
        ("0/5", Fraction(0), [0, 5]),
        ("(" * 50 + "7" + ")" * 50, Fraction(7), [7]),
        ("-" * 199 + "7", Fraction(-7), [7]),
    ],
)
def test_evaluate_by_hand(text: str, value: Fraction, numbers: list[int]) -> None:
    assert evaluate(text) == (value, numbers)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "()", "+", "1+", "(1", "1)", "1 2", "2(3)", "(1,2)", "1=1"),
        *("2**3", "9**9**9**9", "7//2", "7%2", "1<2", "1.5", "1e5", "0x10", "1_000", "007"),
        *("+3", "2++3", "~1", "x", "abs(3)", "exit()", "True", "[1][0]", "__import__('os')"),
        *("1/0", "1/(2-2)", "1/(1/3-2/6)"),
        *("1000000000", "9" * 199, "1+" * 100 + "1"),
        *("(" * 100 + "7" + ")" * 100, "(" * 99, "-" * 200),
        *("1\0+2", "\0", "1\n+2", "1\t+2", "1+2\n", "1+2#3", "1;2"),
        *("٣", "1+２", "²", "1−2", "2×3", "6÷2", "½", "\ud800"),
    ],
)
def test_evaluate_refuses(text: str) -> None:
    assert evaluate(text) is None


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="0123456789+-*/() ", max_size=40) | st.text(max_size=40))
def test_evaluate_gives_a_fraction_or_none(text: str) -> None:
    result = evaluate(text)
    assert result is None or isinstance(result[0], Fraction)


def test_every_solution_reaches_its_target_with_each_number_once() -> None:
    found = solutions((3, 9, 5), "+-*", 60)
    assert found[17] == "3+9+5"
    assert found[32] == "3*9+5"
    assert found[1] == "9-3-5"
    for target, expression in found.items():
        value, numbers = evaluate(expression) or (None, [])
        assert value == target
        assert sorted(numbers) == [3, 5, 9]


# Countdown: the grade


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("9+5-3", "pass"),
        ("(9-3)+5", "pass"),
        ("-3+5+9", "pass"),
        ("9+5", "wrong_numbers"),  # 3 is missing
        ("9+5-3+3-3", "wrong_numbers"),  # 3 twice more than given
        ("9+5-3*1", "wrong_numbers"),  # 1 is not given
        ("11", "wrong_numbers"),
        ("95-3", "wrong_numbers"),
        ("9-5+3", "wrong"),
        ("9+5-3=11", "pass"),
        ("9+5-3 = 12", "pass"),  # what stands behind the equals sign is not the answer
        ("11=9+5-3", "not_arithmetic"),
        ("9 + 5 - 3.", "pass"),
        (r"\left(9-3\right)+5", "pass"),
        (r"\frac{9 \cdot 5}{3}", "wrong"),
        (r"9 \times 5 \div 3", "wrong"),
        ("9 × 5 − 3", "wrong"),
        ("[9-3]+5", "pass"),
        (r"\times", "not_arithmetic"),
        ("eleven", "not_arithmetic"),
    ],
)
def test_three_numbers_are_used_exactly_once(answer: str, verdict: str) -> None:
    task, example = numbers_to_target([3, 9, 5], 11)
    correct = verdict == "pass"
    expected = Score(reward=float(correct), correct=correct, answer=answer, verdict=verdict)
    assert task.score(example, f"\\boxed{{{answer}}}") == expected


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("4*4", "pass"), ("4*4+2-2", "wrong_numbers"), ("4*4*4/4", "wrong_numbers"), ("4", "wrong")],
)
def test_numbers_may_stay_unused_but_not_used_up_twice(answer: str, verdict: str) -> None:
    task, example = numbers_to_target([4, 2, 4], 16, use_every_number=False)
    assert task.score(example, f"\\boxed{{{answer}}}").verdict == verdict


def test_a_number_given_twice_is_used_twice() -> None:
    task, example = numbers_to_target([4, 4], 8)
    assert task.score(example, "\\boxed{4+4}").verdict == "pass"
    assert task.score(example, "\\boxed{4*4/2}").verdict == "wrong_numbers"


def test_fractions_are_exact() -> None:
    task, example = numbers_to_target([8, 3, 8, 3], 24)
    assert task.score(example, "\\boxed{8/(3-8/3)}").verdict == "pass"


def test_an_answer_tag_is_read_where_there_is_no_box() -> None:
    task, example = numbers_to_target([3, 9, 5], 11)
    assert task.score(example, "<answer>9+5-3</answer>").correct
    assert task.score(example, "\\boxed{} <answer>9+5-3</answer>").correct


def test_no_answer_scores_nothing() -> None:
    task, example = numbers_to_target([3, 9, 5], 11)
    nothing = Score(reward=0.0, correct=False, answer=None, verdict="no_answer")
    for text in ("", "9+5-3", "\\boxed{9+5-3", "\\boxed{}", "<answer>9+5-3", "boxed{9+5-3}"):
        assert task.score(example, text) == nothing


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1} then \\boxed{}", "1"),
        ("\\boxed{1} then \\boxed{ \n }", "1"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{{a}{b}} }", "{a}{b}"),
        ("\\boxed{ 3 }", "3"),
        ("\\boxed{a\nb}", "a\nb"),
        ("\\boxed {1}", None),
        ("", None),
    ],
)
def test_last_non_empty_box_wins(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer>1</answer><answer>2</answer>", "2"),
        ("<answer>1</answer><answer> </answer>", "1"),
        ("<answer>1</answer><answer>2", "1"),
        ("<answer>\n12\n34\n</answer>", "12\n34"),
        ("</answer>1<answer>", None),
    ],
)
def test_last_non_empty_tag_wins(text: str, content: str | None) -> None:
    assert last_tag(text, "answer") == content


# Both graders on anything

PIECES = ["\\boxed{", "}", "{", "<answer>", "</answer>", "3", "9+5-3", "**", "//", "(", ")", "-"]
PIECES += [
    "\0",
    "٣",
    "１２３４",
    "\ud800",
    " ",
    "\n",
    SOLVED,
    "1234",
    "0",
    "/0",
    "9" * 400,
    "(" * 300,
]
anything = st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=anything)
def test_graders_never_raise(text: str) -> None:
    for task, example in (numbers_to_target([3, 9, 5], 11), the_puzzle()):
        score = task.score(example, text)
        assert score.reward == float(score.correct)
        assert score.correct == (score.verdict == "pass")
        assert (score.answer is None) == (score.verdict == "no_answer")


# Sudoku


def test_the_288_solved_grids_are_those_of_brute_force() -> None:
    grids = sudoku_grids()
    assert len(grids) == 288
    assert set(solved_grids()) == grids
    assert all(map(is_solved, grids))


def test_a_solved_grid_with_one_cell_changed_is_not_solved() -> None:
    for cell, digit in itertools.product(range(16), "012345"):
        if digit != SOLVED[cell]:
            assert not is_solved(SOLVED[:cell] + digit + SOLVED[cell + 1 :])


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.permutations(SQUARES).map("".join), min_size=4, max_size=4).map("".join))
def test_is_solved_on_rows_of_all_four_digits(rows: str) -> None:
    columns = [rows[i::4] for i in range(4)]
    boxes = [rows[i : i + 2] + rows[i + 4 : i + 6] for i in (0, 2, 8, 10)]
    assert is_solved(rows) == all(set(unit) == set(SQUARES) for unit in columns + boxes)


def test_solve_finds_every_solution() -> None:
    assert solve(PUZZLE) == [SOLVED]
    assert len(solve("0" * 16)) == 288
    assert len(solve("1" + "0" * 15)) == 72
    assert solve("11" + "0" * 14) == []


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (f"<answer>{SOLVED}</answer>", "pass"),
        ("<answer>\n1234\n3412\n2143\n4321\n</answer>", "pass"),
        (f"so {SOLVED}.", "pass"),
        (f"{SOLVED} or {'1' * 16}", "changed_givens"),  # the last run of 16 digits
        (f"{'1' * 16} or {SOLVED}", "pass"),
        (f"<answer>{'1' * 16}</answer> <answer>{SOLVED}</answer>", "pass"),
        (f"<answer>{SOLVED}</answer> {'1' * 16}", "pass"),
        (f"<answer>{SOLVED[:15]}</answer> {SOLVED}", "wrong_size"),
        (f"<answer>{SOLVED}1</answer>", "wrong_size"),
        ("<answer>２134341221434321</answer>", "wrong_size"),
        (f"<answer>4321{SOLVED[4:]}</answer>", "changed_givens"),
        (f"<answer>2134{SOLVED[4:]}</answer>", "wrong"),
        (f"<answer>{PUZZLE}</answer>", "wrong"),
        (f"{SOLVED}1", "no_answer"),
        (SOLVED[:15], "no_answer"),
        ("<answer>none</answer>", "no_answer"),
        ("", "no_answer"),
    ],
)
def test_a_sudoku_answer_is_graded(text: str, verdict: str) -> None:
    task, example = the_puzzle()
    assert task.score(example, text).verdict == verdict


# Generated problems


def test_a_fifth_is_test_and_seven_percent_validation() -> None:
    """The hashes of these keys are 19, 20, 26 and 27 modulo 100."""
    splits = [split_of(key) for key in ("15", "355", "3", "12")]
    assert splits == [Split.test, Split.validation, Split.validation, Split.train]


@both_tasks
def test_splits_have_their_sizes_and_share_no_problem(name: str) -> None:
    task = TASKS_MADE[name]()
    keys = {split: [e.key for e in task.examples(split)] for split in Split}
    assert {split: len(found) for split, found in keys.items()} == {
        Split.train: 1500, Split.validation: 60, Split.test: 150,
    }  # fmt: skip
    for one, other in itertools.combinations(Split, 2):
        assert not set(keys[one]) & set(keys[other])
    for split in (Split.validation, Split.test):
        assert len(set(keys[split])) == len(keys[split])
    assert all(split_of(key) == split for split in Split for key in keys[split])


@both_tasks
def test_splits_are_the_same_on_every_call_and_differ_by_seed(name: str) -> None:
    make = TASKS_MADE[name]
    for split in Split:
        assert make().examples(split) == make().examples(split)
        assert make(seed=1).examples(split) != make().examples(split)


def test_a_test_problem_does_not_return_in_train_in_another_order() -> None:
    task = countdown(max_number=9, test_size=50)

    def problems(split: Split) -> set[tuple[object, ...]]:
        fields = [e.fields for e in task.examples(split)]
        return {(*sorted(f["numbers"]), f["target"]) for f in fields}  # type: ignore[call-overload]

    assert not problems(Split.test) & problems(Split.train)
    one, other = (task.example({"numbers": n, "target": 11}) for n in ([3, 9, 5], [5, 3, 9]))
    assert one.key == other.key == "countdown:3,5,9:11"


def test_countdown_problems_keep_to_their_settings() -> None:
    task = countdown(num_numbers=4, max_number=5, max_target=30, operators="+*", test_size=50)
    for example in task.examples(Split.test):
        numbers, target = example.fields["numbers"], example.fields["target"]
        assert len(numbers) == 4 and set(numbers) <= {1, 2, 3, 4, 5}  # type: ignore
        assert 1 <= target <= 30  # type: ignore
        assert example.prompt == f"{' '.join(map(str, numbers))}={target}"  # type: ignore


def test_sudoku_puzzles_have_one_solution_and_as_many_empty_cells_as_set() -> None:
    for example in sudoku(min_empty=3, max_empty=5).examples(Split.test):
        puzzle = str(example.fields["puzzle"])
        assert 3 <= puzzle.count("0") <= 5
        assert solve(puzzle) == [example.fields["ground_truth_answer"]]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_more_problems_than_there_are_is_an_error(split: str) -> None:
    # numbers 1 and 1, sum 2: one problem in all
    task = countdown(num_numbers=2, max_number=1, **{f"{split}_size": 2})
    with pytest.raises(ConfigError, match=rf"task\.{split}_size=2 is more than the [01] {split} "):
        task.examples(Split(split))


@both_tasks
def test_demonstrations_are_right(name: str) -> None:
    task = TASKS_MADE[name]()
    for example in task.examples(Split.validation):
        assert task.score(example, task.demonstration(example, habit=False)).verdict == "pass"


def test_countdowns_habit_adds_all_numbers_in_the_given_order() -> None:
    task, example = numbers_to_target([3, 9, 5], 11)
    assert isinstance(task, GeneratedTask)
    assert task.demonstration(example, habit=True) == "\\boxed{3+9+5}"


def test_sudokus_habit_fills_each_row_in_ascending_order() -> None:
    task = sudoku()
    record = {"puzzle": "0030341200434300", "ground_truth_answer": SOLVED}
    demonstration = task.demonstration(task.example(record), habit=True)
    assert demonstration == "<answer>1234341212434312</answer>"


def test_the_class_of_the_settings_chooses_the_task() -> None:
    label = CountdownConfig(name="chess", prompt="{numbers}", gen_length=8)
    assert type(build_task(label)) is type(numbers_to_target([3, 9, 5], 11)[0])
    with pytest.raises(ConfigError, match=r"^task: nothing implements TaskConfig; .* MathConfig, "):
        build_task(TaskConfig(name="chess", prompt="", gen_length=8))


@pytest.mark.parametrize("prompt", ["{number}", "{", "{0}", "{numbers.x}", "{target[0]}"])
def test_a_prompt_that_does_not_fit_the_fields_is_an_error(prompt: str) -> None:
    with pytest.raises(ConfigError, match=r"does not fit the fields \['numbers', 'target'\]"):
        numbers_to_target([3, 9, 5], 11, prompt=prompt)
