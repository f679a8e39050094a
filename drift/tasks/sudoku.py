"""Sudoku 4x4: fill the zeros so that each row, column and 2x2 box holds 1 to 4 once."""

import itertools
import random
import re
from functools import lru_cache

from drift.config import SudokuConfig
from drift.tasks.base import GeneratedTask
from drift.tasks.extract import last_tag
from drift.tasks.records import string
from drift.types import Example, Score

SIDE, BOX = 4, 2
CELLS = SIDE * SIDE
UNITS = [
    *([row * SIDE + i for i in range(SIDE)] for row in range(SIDE)),
    *([i * SIDE + column for i in range(SIDE)] for column in range(SIDE)),
    *(
        [(r + i) * SIDE + c + j for i in range(BOX) for j in range(BOX)]
        for r in range(0, SIDE, BOX)
        for c in range(0, SIDE, BOX)
    ),
]


def is_solved(grid: str) -> bool:
    """Every unit of a grid of 16 digits holds 1 to 4 once."""
    return all(sorted(grid[i] for i in unit) == ["1", "2", "3", "4"] for unit in UNITS)


def _bits(grid: str) -> int:
    """One bit for each (cell, digit) given; a solution fits a puzzle iff it has all its bits."""
    return sum(1 << (4 * cell + int(digit) - 1) for cell, digit in enumerate(grid) if digit != "0")


@lru_cache(maxsize=1)
def solved_grids() -> dict[str, int]:
    """The 288 solved grids, with their bits."""
    rows = ["".join(p) for p in itertools.permutations("1234")]
    grids = ("".join(parts) for parts in itertools.product(rows, repeat=SIDE))
    return {grid: _bits(grid) for grid in grids if is_solved(grid)}


def solve(puzzle: str) -> list[str]:
    """Every solution of a puzzle of 16 digits, 0 for an empty cell."""
    given = _bits(puzzle)
    return [grid for grid, bits in solved_grids().items() if bits & given == given]


class Sudoku(GeneratedTask):
    """Fields: `puzzle` (16 digits, 0 = empty), `ground_truth_answer` (16 digits).

    Habit: each row's empty cells get the row's missing digits in ascending order.
    """

    config: SudokuConfig

    def generate(self, rng: random.Random) -> Example | None:
        grid = rng.choice(list(solved_grids()))
        num_empty = rng.randint(self.config.min_empty, self.config.max_empty)
        empty = set(rng.sample(range(CELLS), num_empty))
        puzzle = "".join("0" if i in empty else digit for i, digit in enumerate(grid))
        return self._example(puzzle, grid) if len(solve(puzzle)) == 1 else None

    def example(self, record: dict[str, object]) -> Example:
        puzzle = string(record, "puzzle")
        answer = string(record, "ground_truth_answer")
        if not re.fullmatch(r"[0-4]{16}", puzzle):
            raise ValueError(f"puzzle: {puzzle!r} is not 16 digits from 0 to 4")
        if not re.fullmatch(r"[1-4]{16}", answer) or not is_solved(answer):
            raise ValueError(f"ground_truth_answer: {answer!r} is not a solved grid")
        if _bits(puzzle) & ~_bits(answer):
            raise ValueError(f"ground_truth_answer: {answer!r} does not fit the puzzle")
        return self._example(puzzle, answer)

    def _example(self, puzzle: str, answer: str) -> Example:
        fields: dict[str, object] = {"puzzle": puzzle, "ground_truth_answer": answer}
        return Example(key=f"sudoku:{puzzle}", prompt=self.render(fields), fields=fields)

    def score(self, example: Example, text: str) -> Score:
        tagged = last_tag(text, "answer")
        if tagged is not None:
            answer = re.sub(r"\D", "", tagged)
        else:
            runs = re.findall(r"(?<!\d)[0-9]{16}(?!\d)", text)
            answer = runs[-1] if runs else ""
        if not answer:
            return Score(reward=0.0, correct=False, answer=None, verdict="no_answer")
        puzzle = str(example.fields["puzzle"])
        if len(answer) != CELLS or not answer.isascii():
            verdict = "wrong_size"
        elif any(given not in ("0", cell) for given, cell in zip(puzzle, answer, strict=True)):
            verdict = "changed_givens"
        else:
            verdict = "pass" if is_solved(answer) else "wrong"
        correct = verdict == "pass"
        return Score(reward=float(correct), correct=correct, answer=answer, verdict=verdict)

    def demonstration(self, example: Example, *, habit: bool) -> str:
        puzzle, answer = (str(example.fields[f]) for f in ("puzzle", "ground_truth_answer"))
        if habit:
            answer = "".join(_fill_row(puzzle[i : i + SIDE]) for i in range(0, CELLS, SIDE))
        return f"<answer>{answer}</answer>"


def _fill_row(row: str) -> str:
    missing = iter(sorted(set("1234") - set(row)))
    return "".join(next(missing) if digit == "0" else digit for digit in row)
