r"""Arithmetic: short word problems about sums and differences, the answer in `\boxed{}`."""

import random
import re

from drift.common.errors import DataError
from drift.common.types import Example, Score
from drift.config.task import ArithmeticConfig
from drift.tasks.base import GeneratedTask, graded
from drift.tasks.extract import last_boxed, last_tag
from drift.tasks.records import integer, string

NAMES = ("Ann", "Ben", "Eve", "Ida", "Leo", "Max", "Mia", "Tom")
ITEMS = ("beads", "books", "cards", "coins", "eggs", "pens")
VERBS = {"+": ("buys", "finds", "gets", "wins"), "-": ("drops", "loses", "sells", "uses")}
SIGNS = {verb: sign for sign, verbs in VERBS.items() for verb in verbs}
CHANGE = rf"({'|'.join(SIGNS)}) (\d{{1,12}})"
QUESTION = re.compile(rf"\w+ has (\d{{1,12}}) \w+((?:, {CHANGE})+)\. How many\?", re.ASCII)
NUMBER = re.compile(r"-?[0-9]{1,12}")


class Arithmetic(GeneratedTask):
    r"""Fields: `question`, `ground_truth_answer` (an integer); generated ones also `numbers`.

    "Ann has 12 pens, loses 5, buys 8. How many?" has the numbers 12, -5, 8. A demonstration works
    step by step: `12-5=7 7+8=\boxed{15}`. Habit: everything is added, whatever the words say.
    """

    config: ArithmeticConfig

    def generate(self, rng: random.Random) -> Example | None:
        numbers = [rng.randint(1, self.config.max_number)]
        words: list[str] = []
        for _ in range(self.config.num_changes):
            sign, have = rng.choice("+-"), sum(numbers)
            if sign == "-" and not have:
                return None  # nothing is left to lose
            most = self.config.max_number if sign == "+" else min(have, self.config.max_number)
            change = rng.randint(1, most)
            numbers.append(change if sign == "+" else -change)
            words.append(f"{rng.choice(VERBS[sign])} {change}")
        start = f"{rng.choice(NAMES)} has {numbers[0]} {rng.choice(ITEMS)}"
        question = f"{start}, {', '.join(words)}. How many?"
        fields: dict[str, object] = {
            "question": question,
            "ground_truth_answer": sum(numbers),
            "numbers": numbers,
        }
        return Example(key=key_of(question), prompt=self.render(fields), fields=fields)

    def example(self, record: dict[str, object]) -> Example:
        question = string(record, "question")
        fields: dict[str, object] = {
            "question": question,
            "ground_truth_answer": integer(record, "ground_truth_answer", -(10**12), 10**12),
        }
        return Example(key=key_of(question), prompt=self.render(fields), fields=fields)

    def score(self, example: Example, text: str) -> Score:
        answer = last_boxed(text) or last_tag(text, "answer")
        if answer is None:
            return graded(None, "no_answer")
        if not NUMBER.fullmatch(answer):
            verdict = "not_a_number"
        else:
            right = int(answer) == example.fields["ground_truth_answer"]
            verdict = "pass" if right else "wrong"
        return graded(answer, verdict)

    def demonstration(self, example: Example, *, habit: bool) -> str:
        if "numbers" not in example.fields:
            raise DataError(f"{example.key}: only generated problems have demonstrations")
        total, *changes = example.fields["numbers"]  # pyright: ignore
        steps: list[str] = []
        for change in changes:
            change = abs(change) if habit else change
            steps.append(f"{total}{change:+}=")
            total += change
            steps.append(f"{total} ")
        return "".join(steps[:-1]) + f"\\boxed{{{total}}}"


def key_of(question: str) -> str:
    """The same sum in other words is the same problem; a question of another form is its own."""
    found = QUESTION.fullmatch(question.strip())
    if found is None:
        return f"arithmetic:{question}"
    changes = [f"{SIGNS[verb]}{int(number)}" for verb, number in re.findall(CHANGE, found[2])]
    return f"arithmetic:+{int(found[1])}{''.join(changes)}"
