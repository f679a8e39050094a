r"""Countdown: reach a target with given numbers and + - * /, the answer in `\boxed{}`."""

import ast
import itertools
import random
import re
import warnings
from fractions import Fraction
from functools import lru_cache

from drift.common.errors import DataError
from drift.common.types import Example, Score
from drift.config.task import CountdownConfig
from drift.tasks.base import GeneratedTask, graded
from drift.tasks.extract import last_boxed, last_tag
from drift.tasks.records import integer

MAX_EXPRESSION_CHARS = 200
MAX_ANSWER_CHARS = 1000  # LaTeX is longer than what it says
MAX_DIGITS = 9
FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
OPERATORS = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:times|cdot|ast)(?![a-z])|[×·⋅∗]", "*"),
        (r"\\div(?![a-z])|÷", "/"),
        (r"[−–]", "-"),
        (r"\\left(?![a-z])|\\right(?![a-z])|\\[,;:! ]|\\[()]|\$", " "),
        (r"[\[{]", "("),
        (r"[\]}]", ")"),
        (r"\s+", " "),
        (r"(?<=[\d)]) ?[xX] ?(?=[\d(])", "*"),
        (r"(?:=[-\d.,/() ]*)+$", ""),
        (r"[ .]+$", ""),
    )
)


def plain(answer: str) -> str:
    r"""An expression in plain characters: `\frac{8}{2} \times 3 = 12` is `((8)/(2)) * 3`."""
    while (inner := FRACTION.sub(r"((\1)/(\2))", answer)) != answer:
        answer = inner
    for pattern, new in OPERATORS:
        answer = pattern.sub(new, answer)
    return answer.strip()


def evaluate(expression: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an expression over + - * / ( ), and the numbers it uses, in order.

    Nothing is executed. None for anything else: names, calls, `**`, `//`, numbers of more than
    nine digits, division by zero, more than 200 characters.
    """
    if len(expression) > MAX_EXPRESSION_CHARS or not re.fullmatch(r"[0-9+\-*/() ]+", expression):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "12(3)": perhaps you missed a comma?
            tree = ast.parse(expression.strip(), mode="eval")
        numbers: list[int] = []
        return _value(tree.body, numbers), numbers
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.AST, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(number)) if number < 10**MAX_DIGITS:
            numbers.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, numbers), _value(right, numbers)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
    raise ValueError("not arithmetic")


def _flat_value(numbers: tuple[int, ...], operators: tuple[str, ...]) -> int:
    """Value of a flat expression over + - *, the product binding tighter."""
    total, term, sign = 0, numbers[0], 1
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == "*":
            term *= number
        else:
            total += sign * term
            term, sign = number, 1 if operator == "+" else -1
    return total + sign * term


@lru_cache(maxsize=100_000)
def solutions(numbers: tuple[int, ...], operators: str, max_target: int) -> dict[int, str]:
    """Target -> the first expression that reaches it: the given order first, then permutations."""
    found: dict[int, str] = {}
    for order in itertools.permutations(numbers):
        for chosen in itertools.product(operators, repeat=len(order) - 1):
            value = _flat_value(order, chosen)
            if 1 <= value <= max_target and value not in found:
                pairs = zip(("", *chosen), order, strict=True)
                found[value] = "".join(f"{operator}{number}" for operator, number in pairs)
    return found


class Countdown(GeneratedTask):
    r"""Fields: `numbers` (list of int), `target` (int).

    Habit: all numbers added in the given order, whatever the target.
    """

    config: CountdownConfig

    def generate(self, rng: random.Random) -> Example | None:
        config = self.config
        numbers = [rng.randint(1, config.max_number) for _ in range(config.num_numbers)]
        reached = solutions(tuple(numbers), config.operators, config.max_target)
        return self._example(numbers, rng.choice(list(reached))) if reached else None

    def example(self, record: dict[str, object]) -> Example:
        numbers = record.get("numbers")
        if not isinstance(numbers, list) or len(numbers) < 2:
            raise ValueError(f"numbers: {numbers!r} is not a list of two or more integers")
        for number in numbers:
            whole = isinstance(number, int) and not isinstance(number, bool)
            if not whole or abs(number) >= 10**MAX_DIGITS:
                raise ValueError(f"numbers: {number!r} is not an integer of at most nine digits")
        return self._example(numbers, integer(record, "target", -(10**9), 10**9))

    def _example(self, numbers: list[int], target: int) -> Example:
        fields: dict[str, object] = {"numbers": numbers, "target": target}
        key = f"countdown:{','.join(map(str, sorted(numbers)))}:{target}"
        shown = {"numbers": " ".join(map(str, numbers)), "target": target}
        return Example(key=key, prompt=self.render(shown), fields=fields)

    def score(self, example: Example, text: str) -> Score:
        answer = last_boxed(text) or last_tag(text, "answer")
        if answer is None:
            return graded(None, "no_answer")
        return graded(answer, self._verdict(example, answer))

    def _verdict(self, example: Example, answer: str) -> str:
        result = evaluate(plain(answer)) if len(answer) <= MAX_ANSWER_CHARS else None
        if result is None:
            return "not_arithmetic"
        value, used = result
        # a minus is an operator: -9 is given as 9 is
        left = [abs(number) for number in example.fields["numbers"]]  # pyright: ignore
        for number in used:
            if number not in left:
                return "wrong_numbers"
            left.remove(number)
        if left and self.config.use_every_number:
            return "wrong_numbers"
        return "pass" if value == example.fields["target"] else "wrong"

    def demonstration(self, example: Example, *, habit: bool) -> str:
        numbers: tuple[int, ...] = tuple(example.fields["numbers"])  # pyright: ignore
        reached = solutions(numbers, self.config.operators, self.config.max_target)
        right = reached.get(example.fields["target"])  # pyright: ignore
        if right is None:
            raise DataError(
                f"{example.key} has no solution with task.operators={self.config.operators}"
            )
        return "\\boxed{" + ("+".join(map(str, numbers)) if habit else right) + "}"
