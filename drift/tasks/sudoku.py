"""Sudoku: fill the zeros so that each row, column and box holds each digit once; 4x4 and 9x9."""

import itertools
import random
import re
from functools import lru_cache
from math import isqrt

from drift.common.errors import DataError
from drift.common.types import Example, Score
from drift.config.task import SudokuConfig
from drift.tasks.base import GeneratedTask
from drift.tasks.extract import Block, last_tag, without_special_tokens
from drift.tasks.records import string

SIDE = 4  # of generated puzzles
CELLS = SIDE * SIDE
SIZES = {16: 4, 81: 9}  # cells -> side


@lru_cache
def units(side: int) -> list[list[int]]:
    """The cells of each row, column and box of a grid."""
    box = isqrt(side)
    rows = [[side * row + i for i in range(side)] for row in range(side)]
    columns = [[side * i + column for i in range(side)] for column in range(side)]
    boxes = [
        [(top + i) * side + left + j for i in range(box) for j in range(box)]
        for top in range(0, side, box)
        for left in range(0, side, box)
    ]
    return rows + columns + boxes


def is_solved(grid: str) -> bool:
    """Every unit of a grid of 16 (81) digits holds 1 to 4 (9) once."""
    side = SIZES[len(grid)]
    digits = [str(digit) for digit in range(1, side + 1)]
    return all(sorted(grid[i] for i in unit) == digits for unit in units(side))


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
    """Fields: `puzzle` (16 or 81 digits, 0 = empty), `ground_truth_answer` (as many digits).

    The answer is the digits of the last `<answer>` block, else the last run of 16 or 81 digits. Any
    solution is correct, also where a puzzle has several. The reward `cells` is the share of empty
    cells that are right.
    Habit: each row's empty cells get the row's missing digits in ascending order.
    """

    config: SudokuConfig
    block = Block.answer

    def generate(self, rng: random.Random) -> Example | None:
        grid = rng.choice(list(solved_grids()))
        num_empty = rng.randint(self.config.min_empty, self.config.max_empty)
        empty = set(rng.sample(range(CELLS), num_empty))
        puzzle = "".join("0" if i in empty else digit for i, digit in enumerate(grid))
        return self._example(puzzle, grid) if len(solve(puzzle)) == 1 else None

    def example(self, record: dict[str, object]) -> Example:
        puzzle = string(record, "puzzle")
        answer = string(record, "ground_truth_answer")
        side = SIZES.get(len(puzzle))
        if side is None or not re.fullmatch(f"[0-{side}]+", puzzle):
            raise ValueError(f"puzzle: {puzzle!r} is not 16 digits from 0 to 4 or 81 from 0 to 9")
        if not re.fullmatch(f"[1-{side}]{{{len(puzzle)}}}", answer) or not is_solved(answer):
            raise ValueError(f"ground_truth_answer: {answer!r} is not a solved grid")
        if any(given not in ("0", cell) for given, cell in zip(puzzle, answer, strict=True)):
            raise ValueError(f"ground_truth_answer: {answer!r} does not fit the puzzle")
        return self._example(puzzle, answer)

    def _example(self, puzzle: str, answer: str) -> Example:
        fields: dict[str, object] = {"puzzle": puzzle, "ground_truth_answer": answer}
        return Example(key=f"sudoku:{puzzle}", prompt=self.render(fields), fields=fields)

    def score(self, example: Example, text: str) -> Score:
        puzzle, solution = (str(example.fields[f]) for f in ("puzzle", "ground_truth_answer"))
        answer = find_answer(text, len(puzzle))
        if not answer:
            verdict = "no_answer"
        elif len(answer) != len(puzzle):
            verdict = "wrong_size"
        elif any(given not in ("0", cell) for given, cell in zip(puzzle, answer, strict=True)):
            verdict = "changed_givens"
        else:
            verdict = "pass" if is_solved(answer) else "wrong"
        correct = verdict == "pass"
        right = [
            cell < len(answer) and answer[cell] == solution[cell]
            for cell, given in enumerate(puzzle)
            if given == "0"
        ]
        cells = 1.0 if correct else sum(right) / max(1, len(right))
        return Score(
            reward=float(correct),
            correct=correct,
            answer=answer or None,
            verdict=verdict,
            rewards={"cells": cells},
        )

    def demonstration(self, example: Example, *, habit: bool) -> str:
        puzzle, answer = (str(example.fields[f]) for f in ("puzzle", "ground_truth_answer"))
        if len(puzzle) != CELLS:
            raise DataError(f"{example.key}: only 4x4 puzzles have demonstrations")
        if habit:
            answer = "".join(_fill_row(puzzle[i : i + SIDE]) for i in range(0, CELLS, SIDE))
        return f"<answer>{answer}</answer>"


def find_answer(text: str, size: int) -> str:
    """The digits of an answer to a puzzle of `size` cells; "" if there is none."""
    text = without_special_tokens(text)
    tagged = last_tag(text, "answer")
    if tagged is not None:
        return re.sub(r"[^0-9]", "", tagged)
    runs = re.findall(rf"(?<![0-9])[0-9]{{{size}}}(?![0-9])", text)
    return runs[-1] if runs else ""


def _fill_row(row: str) -> str:
    missing = iter(sorted(set("1234") - set(row)))
    return "".join(next(missing) if digit == "0" else digit for digit in row)
