r"""Arithmetic, sudoku of 9x9, countdown in LaTeX, reasoning-gym."""

import base64
import itertools
import json
import pickle
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from drift.common.errors import ConfigError, DataError
from drift.common.types import Example
from drift.config.task import ArithmeticConfig, FilesConfig, ReasoningGymConfig, Split, SudokuConfig
from drift.graders.gym_worker import handle
from drift.tasks import build_task
from drift.tasks.arithmetic import Arithmetic
from drift.tasks.base import split_of
from drift.tasks.countdown import evaluate, plain
from drift.tasks.reasoning_gym import ReasoningGym
from drift.tasks.sudoku import Sudoku, is_solved
from tests.oracles import exact, expression_trees, rendered

SIZES: dict[str, Any] = {"train_size": 400, "validation_size": 40, "test_size": 100}


# Arithmetic


def arithmetic(**changes: Any) -> Arithmetic:
    values = {"name": "arithmetic", "prompt": "{question}", "gen_length": 24} | SIZES
    return build_task(ArithmeticConfig(**(values | changes)))  # type: ignore[return-value]


def test_a_question_says_what_its_numbers_say() -> None:
    plus, minus = {"buys", "finds", "gets", "wins"}, {"drops", "loses", "sells", "uses"}
    for example in arithmetic(max_number=30, num_changes=3).examples(Split.test):
        question = str(example.fields["question"])
        first = re.match(r"[A-Z][a-z]+ has (\d+) [a-z]+, ", question)
        changes = re.findall(r"([a-z]+) (\d+)[,.]", question)
        assert first is not None and len(changes) == 3 and question.endswith(". How many?")
        assert {verb for verb, _ in changes} <= plus | minus
        running = list(
            itertools.accumulate(
                [int(first[1]), *(int(n) if verb in plus else -int(n) for verb, n in changes)]
            )
        )
        assert min(running) >= 0
        assert running[-1] == example.fields["ground_truth_answer"]


def test_arithmetic_splits_share_no_sum() -> None:
    task = arithmetic()
    keys = {split: {e.key for e in task.examples(split)} for split in Split}
    for one, other in itertools.combinations(Split, 2):
        assert not keys[one] & keys[other]
    assert len(keys[Split.test]) == 100 and len(keys[Split.validation]) == 40


def test_generated_sums_are_never_those_of_a_file(tmp_path: Any) -> None:
    made = {split: arithmetic(max_number=9).examples(split) for split in Split}
    leaked = [*made[Split.train][:100], *made[Split.validation][:10]]
    file = tmp_path / "test.jsonl"
    lines = [json.dumps(e.fields) for e in leaked]
    file.write_text("\n".join(re.sub(r"\w+ has (\d+) \w+", r"Zoe has \1 hats", x) for x in lines))
    task = arithmetic(max_number=9, files=FilesConfig(test=str(file)))
    assert [e.key for e in task.examples(Split.test)] == [e.key for e in leaked]
    given = {e.key for e in leaked}
    for split in (Split.train, Split.validation):
        assert not given & {e.key for e in task.examples(split)}


@pytest.mark.parametrize(
    ("question", "key"),
    [
        ("Ann has 12 pens, loses 5, buys 8. How many?", "+12-5+8"),
        ("Bob has 12 hats, uses 5, wins 08. How many?", "+12-5+8"),
        ("Ann has 12 pens, eats 5. How many?", "Ann has 12 pens, eats 5. How many?"),
        ("Ann has 12 pens. How many?", "Ann has 12 pens. How many?"),
        ("12-5+8?", "12-5+8?"),
    ],
)
def test_a_question_of_the_generators_form_is_known_by_its_sum(question: str, key: str) -> None:
    example = arithmetic().example({"question": question, "ground_truth_answer": 15})
    assert example.key == f"arithmetic:{key}"


def test_arithmetics_demonstrations_are_right_and_its_habit_adds() -> None:
    task = arithmetic()
    for example in task.examples(Split.validation):
        assert task.score(example, task.demonstration(example, habit=False)).verdict == "pass"
    fields: dict[str, object] = {"numbers": [12, -5, 8], "ground_truth_answer": 15}
    example = Example(key="", prompt="", fields=fields)
    assert task.demonstration(example, habit=False) == "12-5=7 7+8=\\boxed{15}"
    assert task.demonstration(example, habit=True) == "12+5=17 17+8=\\boxed{25}"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("\\boxed{15}", "pass"),
        ("<answer>15</answer>", "pass"),
        ("\\boxed{14} \\boxed{15}", "pass"),
        ("\\boxed{16}", "wrong"),
        ("\\boxed{-15}", "wrong"),
        ("\\boxed{12-5+8}", "not_a_number"),
        ("\\boxed{１５}", "not_a_number"),
        ("15", "no_answer"),
    ],
)
def test_an_arithmetic_answer_is_graded(text: str, verdict: str) -> None:
    task = arithmetic()
    example = task.example({"question": "12-5+8?", "ground_truth_answer": 15})
    assert task.score(example, text).verdict == verdict


def test_arithmetic_from_a_file_has_no_demonstration() -> None:
    task = arithmetic()
    example = task.example({"question": "1+1?", "ground_truth_answer": 2})
    with pytest.raises(DataError, match="only generated problems have demonstrations"):
        task.demonstration(example, habit=False)


# Sudoku


def sudoku() -> Sudoku:
    values = {"name": "sudoku", "prompt": "{puzzle}", "gen_length": 96} | SIZES
    return build_task(SudokuConfig(**values))  # type: ignore[return-value]


def shuffled_grid(rng: random.Random) -> str:
    """A solved 9x9 grid: rows and columns of a pattern shuffled within their bands."""
    lines = [3 * band + i for band in rng.sample(range(3), 3) for i in rng.sample(range(3), 3)]
    columns = [3 * band + i for band in rng.sample(range(3), 3) for i in rng.sample(range(3), 3)]
    digits = rng.sample("123456789", 9)
    return "".join(digits[(3 * (r % 3) + r // 3 + c) % 9] for r in lines for c in columns)


def brute_force_solved(grid: str, side: int, box: int) -> bool:
    cells = {(i // side, i % side): digit for i, digit in enumerate(grid)}
    for (r, c), digit in cells.items():
        for (s, d), other in cells.items():
            peers = r == s or c == d or (r // box, c // box) == (s // box, d // box)
            if (r, c) != (s, d) and peers and digit == other:
                return False
    return all(1 <= int(digit) <= side for digit in grid)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    changes=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 9)), max_size=2),
)
def test_is_solved_9x9_against_brute_force(seed: int, changes: list[tuple[int, int]]) -> None:
    grid = shuffled_grid(random.Random(seed))
    for cell, digit in changes:
        grid = grid[:cell] + str(digit) + grid[cell + 1 :]
    assert is_solved(grid) == brute_force_solved(grid, 9, 3)
    assert is_solved(grid) or changes


@settings(max_examples=200, deadline=None)
@given(grid=st.text(alphabet="1234", min_size=16, max_size=16))
def test_is_solved_4x4_against_brute_force(grid: str) -> None:
    assert is_solved(grid) == brute_force_solved(grid, 4, 2)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("<answer>{grid}</answer>", "pass"),
        ("{grid}", "pass"),
        ("{grid}<|eot_id|>", "pass"),
        ("1{grid}", "no_answer"),
        ("<answer>{grid}1</answer>", "wrong_size"),
        ("<answer>{other}</answer>", "changed_givens"),
        ("<answer>{empty}</answer>", "wrong"),
        ("1234341221434321", "no_answer"),
    ],
)
def test_a_9x9_answer_is_graded(answer: str, verdict: str) -> None:
    task, grid = sudoku(), shuffled_grid(random.Random(0))
    puzzle = "00" + grid[2:40] + "0" + grid[41:]
    example = task.example({"puzzle": puzzle, "ground_truth_answer": grid})
    other = shuffled_grid(random.Random(1))
    text = answer.format(grid=grid, other=other, empty=puzzle)
    assert task.score(example, text).verdict == verdict
    with pytest.raises(DataError, match="only 4x4 puzzles have demonstrations"):
        task.demonstration(example, habit=False)


def test_a_9x9_record_is_checked() -> None:
    task, grid = sudoku(), shuffled_grid(random.Random(0))
    for record, reason in (
        ({"puzzle": "0" * 80, "ground_truth_answer": grid}, "puzzle: .* is not 16 digits"),
        ({"puzzle": "0" * 81, "ground_truth_answer": grid[:80] + "0"}, "not a solved grid"),
        ({"puzzle": "0" * 81, "ground_truth_answer": grid[::-1][:80]}, "not a solved grid"),
        ({"puzzle": grid[1:] + grid[:1], "ground_truth_answer": grid}, "does not fit the puzzle"),
    ):
        with pytest.raises(ValueError, match=reason):
            task.example(record)


# Countdown


def latex(tree: Any, draw: random.Random) -> str:
    """A tree as models write it."""
    match tree:
        case int(number):
            return str(number)
        case ("-", inner):
            return draw.choice("-−") + f"\\left({latex(inner, draw)}\\right)"
    left, operator, right = tree
    a, b = latex(left, draw), latex(right, draw)
    if operator == "/" and draw.random() < 0.5:
        return f"\\{draw.choice(['', 'd', 't'])}frac{{{a}}}{{{b}}}"
    signs = {
        "+": ["+"],
        "-": ["-", "−"],
        "*": ["\\times ", "\\cdot ", "×", "*"],
        "/": ["\\div ", "÷", "/"],
    }
    return f"({a}) {draw.choice(signs[operator])} ({b})"


@settings(max_examples=200, deadline=None)
@given(tree=expression_trees, seed=st.integers(0, 1000), value=st.integers(-99, 99))
def test_latex_is_read_as_the_expression_that_it_shows(tree: Any, seed: int, value: int) -> None:
    text = latex(tree, random.Random(seed)) + (f" = {value}" if seed % 2 else "")
    read = evaluate(plain(text))
    if len(plain(text)) > 200 or exact(tree) is None:
        assert read is None
    else:
        assert read == (exact(tree), [int(n) for n in re.findall(r"\d+", rendered(tree))])


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="0123456789+-*/() =\\{}frac.x×", max_size=40) | st.text(max_size=40))
def test_any_text_can_be_made_plain(text: str) -> None:
    evaluate(plain(text))


# reasoning-gym


def gym(dataset: str = "leg_counting", **changes: Any) -> ReasoningGym:
    values = {"name": "reasoning_gym", "prompt": "{question}", "gen_length": 64, "workers": 1}
    values |= {"train_size": 20, "validation_size": 5, "test_size": 8, "dataset": dataset}
    return build_task(ReasoningGymConfig(**(values | changes)))  # type: ignore


def own_answer(task: ReasoningGym, example: Example) -> str:
    return task.entry(int(str(example.fields["index"])))["answer"]


OWN = ["leg_counting", "polynomial_multiplication", "n_queens", "spiral_matrix", "binary_matrix"]
OWN += ["string_insertion", "countdown", "puzzle24"]


@pytest.mark.parametrize("dataset", OWN)
def test_a_data_set_grades_its_own_answers_as_right(dataset: str) -> None:
    task = gym(dataset)
    examples = task.examples(Split.test)
    texts = [f"<answer>{own_answer(task, example)}</answer>" for example in examples]
    assert [score.verdict for score in task.score_all(examples, texts)] == ["pass"] * 8
    wrong = task.score_all(examples, ["<answer>none</answer>", *["none"] * 7])
    assert wrong[0].reward < 1 and not wrong[0].correct
    assert [score.verdict for score in wrong[1:]] == ["no_answer"] * 7
    task.pool.close()


def test_gym_splits_share_no_question_and_are_the_same_on_every_call() -> None:
    keys = {split: [e.key for e in gym().examples(split)] for split in Split}
    assert {split: len(set(k)) for split, k in keys.items()} == {
        Split.train: 20, Split.validation: 5, Split.test: 8,
    }  # fmt: skip
    assert all(split_of(key) == split for split in Split for key in keys[split])
    assert [e.key for e in gym().examples(Split.test)] == keys[Split.test]
    assert [e.key for e in gym(seed=10**6).examples(Split.test)] != keys[Split.test]


def test_a_gym_answer_is_text_and_never_code(tmp_path: Any) -> None:
    path = tmp_path / "written"
    attacks = [
        f"open('{path}', 'w').write('x')",
        f"exec(\"open('{path}', 'w').write('x')\")",
        f"[open('{path}', 'w') for _ in '1']",
        f"S(\"open('{path}', 'w')\")",
        "().__class__.__bases__[0].__subclasses__()",
        "exit()",
    ]
    for dataset in ("n_queens", "countdown", "simple_integration", "spiral_matrix"):
        task = gym(dataset)
        example = task.examples(Split.validation)[0]
        scores = task.score_all([example] * 6, [f"<answer>{a}</answer>" for a in attacks])
        assert [score.reward for score in scores] == [0] * 6
        assert not path.exists()
        task.pool.close()


LISTS = ["n_queens", "spiral_matrix", "binary_matrix", "string_insertion"]


@pytest.mark.parametrize("dataset", LISTS)
def test_a_list_is_read_as_a_literal_and_cannot_take_over_its_grader(
    dataset: str, tmp_path: Any
) -> None:
    task, path = gym(dataset), tmp_path / "written"
    example = task.examples(Split.validation)[0]
    code = f"open('{path}','w')".replace("(", "\\x28").replace(")", "\\x29")
    attacks = [
        "[0 for s in [self] for s.score_answer in [lambda a, e: 1]]",
        "[0 for s in [self] for s._board_to_string in [exec]]",
        f"'{code}'",
        "entry['metadata']['solution']",
        "entry['metadata']['valid_answers'][0]",
        "[c for c in entry['answer']]",
        "[[c for c in r] for r in entry['metadata']['valid_answers'][0]]",
        "self",
        "none at all",
    ]
    texts = [f"<answer>{attack}</answer>" for attack in attacks]
    assert [s.reward for s in task.score_all([example] * len(texts), texts)] == [0] * len(texts)
    assert not path.exists()
    task.pool.close()


def test_an_honest_list_keeps_the_reward_that_its_data_set_has_for_one() -> None:
    for dataset, reward in zip(LISTS, (0.5, 0.1, 0.1, 0.1), strict=True):
        task = gym(dataset)
        example = task.examples(Split.validation)[0]
        own = own_answer(task, example)
        rows = [line.split() for line in own.splitlines()]
        if dataset == "binary_matrix":
            rows = [[int(cell) for cell in row] for row in rows]
        listed = {"spiral_matrix": rows[0], "string_insertion": list(own)}.get(dataset, rows)
        assert task.score(example, f"<answer>{listed}</answer>").reward == reward
        task.pool.close()


def test_a_game_counts_the_numbers_and_the_value_exactly() -> None:
    for dataset, metadata, attacks in (
        (
            "countdown",
            {"numbers": [6, 61, 94, 4, 309], "target": 309},
            ["(6+61+94+4)*0j-309j*1j", "309", "(6+61+94+4)*0e0+309", "309+0*(6+61+94+4)"],
        ),
        (
            "countdown",
            {"numbers": [309, 1, 1, 999, 1], "target": 309},
            ["309+1/(999+1*1)", "309*1**(1+999+1)", "309+1//(999+1+1)"],
        ),
        ("puzzle24", {"numbers": [8, 3, 2, 2]}, ["8*3*1*1", "(8*3)", "8*3*2*2", "8*3+2*2*0"]),
        ("puzzle24", {"numbers": [7, 7, 2, 1]}, ["7*7/2*1", "7*7//2*1"]),
    ):
        found = [
            handle([dataset, "{}", packed({"metadata": metadata}), attack]) for attack in attacks
        ]
        assert max(found) < 1, (dataset, found)
    for dataset, metadata, answer in (
        ("countdown", {"numbers": [2, 3, 5], "target": 16}, "(5 + 3) * 2"),
        ("puzzle24", {"numbers": [8, 3, 2, 2]}, "8*3*2/2"),
        ("puzzle24", {"numbers": [2, 2, 8, 3]}, "3/(2/8)*2"),
    ):
        assert handle([dataset, "{}", packed({"metadata": metadata}), answer]) == 1


def packed(entry: dict[str, Any]) -> str:
    return base64.b64encode(pickle.dumps(entry)).decode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "leg_countin"}, "task.dataset=leg_countin: .*; did you mean leg_counting"),
        ({"dataset": "composite"}, "task.dataset=composite: reasoning-gym has no such data set"),
        ({"settings": {"legs": 2}}, r"task.settings=\{'legs': 2\}: not for task.dataset=leg_count"),
        ({"settings": {"min_animals": 0}}, "min_animals must be positive"),
    ],
)
def test_gym_settings_that_cannot_work_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gym(**changes)


def test_more_gym_problems_than_there_are_is_an_error() -> None:
    task = gym("coin_flip", settings={"min_trials": 3, "max_trials": 3}, test_size=10**6)
    with pytest.raises(ConfigError, match=r"task\.test_size=1000000 is more than the \d+ test"):
        task.examples(Split.test)
