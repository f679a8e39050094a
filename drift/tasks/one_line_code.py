"""One-line Python functions: the steps of a calculation in words, the answer `return ...`."""

import hashlib
import random

from drift.common.types import Example, Score
from drift.config.task import OneLineCodeConfig
from drift.tasks.base import GeneratedTask
from drift.tasks.programs import AssertTests, ProgramGrader, program_of
from drift.tasks.records import string

PREFIX = "def f(a, b, c): "
VARIABLES = ("a", "b", "c")
OPERANDS = (*VARIABLES, *"23456789")
WORDS = {"+": "plus", "-": "minus", "*": "times", "r": "from"}  # "from x" takes the rest from x
NUM_STEPS = 3
NUM_TESTS = 5
MAX_INPUT = 20

Steps = tuple[str, tuple[tuple[str, str], ...]]  # ("a", (("+", "b"), ("*", "3"), ("r", "c")))


def describe(steps: Steps) -> str:
    """`a plus b times 3 from c`: each step takes the result of all before it."""
    start, rest = steps
    return " ".join([start, *(f"{WORDS[operator]} {operand}" for operator, operand in rest)])


def parse(question: str) -> Steps:
    """The steps that `describe` has written; ValueError('question: ...') for anything else."""
    start, *words = question.split(" ")
    operators = {word: operator for operator, word in WORDS.items()}
    rest = list(zip(words[::2], words[1::2], strict=False))
    operands = [start, *(operand for _, operand in rest)]
    if len(words) % 2 or any(word not in operators for word, _ in rest):
        raise ValueError(f"question: {question!r} is not like 'a plus b times 3 from c'")
    if not set(operands) <= set(OPERANDS):
        raise ValueError(f"question: {question!r} has operands beside {' '.join(OPERANDS)}")
    return start, tuple((operators[word], operand) for word, operand in rest)


def expression(steps: Steps, *, parentheses: bool) -> str:
    """The steps as Python with as few parentheses as right, `c-(a+b)*3`, or with none at all."""
    text, _ = steps
    is_sum = False
    for operator, operand in steps[1]:
        if is_sum and operator in "*r" and parentheses:
            text = f"({text})"
        text = f"{operand}-{text}" if operator == "r" else f"{text}{operator}{operand}"
        is_sum = operator != "*"
    return text


def value(steps: Steps, inputs: dict[str, int]) -> int:
    def number(operand: str) -> int:
        return inputs[operand] if operand in inputs else int(operand)

    result = number(steps[0])
    for operator, operand in steps[1]:
        x = number(operand)
        match operator:
            case "+":
                result += x
            case "-":
                result -= x
            case "*":
                result *= x
            case _:
                result = x - result
    return result


def asserts(steps: Steps) -> tuple[str, ...]:
    """Tests on inputs that follow from the problem alone, so that every run has the same."""
    rng = random.Random(hashlib.blake2b(describe(steps).encode()).digest())
    tests: list[str] = []
    for _ in range(NUM_TESTS):
        inputs = {name: rng.randint(2, MAX_INPUT) for name in VARIABLES}
        call = ", ".join(map(str, inputs.values()))
        tests.append(f"assert f({call}) == {value(steps, inputs)}")
    return tuple(tests)


class OneLineCode(GeneratedTask):
    """Habit: the steps written down in order, without parentheses."""

    config: OneLineCodeConfig

    def __init__(self, config: OneLineCodeConfig):
        super().__init__(config)
        self.grader = ProgramGrader(config)

    def generate(self, rng: random.Random) -> Example | None:
        rest = tuple((rng.choice("+-*r"), rng.choice(OPERANDS)) for _ in range(NUM_STEPS))
        return self._example((rng.choice(VARIABLES), rest))

    def example(self, record: dict[str, object]) -> Example:
        return self._example(parse(string(record, "question")))

    def _example(self, steps: Steps) -> Example:
        fields: dict[str, object] = {"question": describe(steps)}
        key = f"one_line_code:{describe(steps)}"
        return Example(key=key, prompt=self.render(fields), fields=fields, prefix=PREFIX)

    def score(self, example: Example, text: str) -> Score:
        return self.score_all([example], [text])[0]

    def score_all(self, examples: list[Example], texts: list[str]) -> list[Score]:
        steps = [parse(str(example.fields["question"])) for example in examples]
        tests = [
            AssertTests(tests=asserts(s), entry_point="f", time_limit=self.config.time_limit_s)
            for s in steps
        ]
        programs = [program_of(text, PREFIX) for text in texts]
        return self.grader.grade(tests, programs)

    def demonstration(self, example: Example, *, habit: bool) -> str:
        steps = parse(str(example.fields["question"]))
        return "return " + expression(steps, parentheses=not habit)
