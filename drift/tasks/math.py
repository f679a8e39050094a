r"""Mathematics: a question, and a reference that the answer in `\boxed{}` must equal.

How answers are read and compared: drift/graders/parse.py and compare.py.
"""

from drift.common.types import Example, Score
from drift.config.task import MathConfig
from drift.graders.compare import Undecided, compare, equal_by_form
from drift.graders.parse import parse
from drift.graders.pool import WorkerPool
from drift.tasks.base import Task, graded
from drift.tasks.extract import after_hashes, last_boxed, last_tag, without_special_tokens
from drift.tasks.records import string

MAX_CHARS = 1000  # of an answer; the longest reference of MATH500 has 54


class Math(Task):
    r"""Fields: `question`, `ground_truth_answer`.

    The answer is the last non-empty `\boxed{}`, else the last `<answer>` block, else, with
    `task.hash_answer`, what follows the last `####`.
    """

    config: MathConfig
    packages = ("math-verify", "latex2sympy2-extended", "sympy", "mpmath")

    def __init__(self, config: MathConfig):
        super().__init__(config)
        self.pool = WorkerPool(
            "drift.graders.math_worker",
            num_workers=config.workers,
            cpu_limit_s=config.time_limit_s,
        )

    def example(self, record: dict[str, object]) -> Example:
        fields: dict[str, object] = {
            "question": string(record, "question"),
            "ground_truth_answer": string(record, "ground_truth_answer"),
        }
        if len(str(fields["ground_truth_answer"])) > MAX_CHARS:
            raise ValueError(f"ground_truth_answer: more than {MAX_CHARS} characters")
        key = f"math:{' '.join(str(fields['question']).split())}"
        return Example(key=key, prompt=self.render(fields), fields=fields)

    def find_answer(self, text: str) -> str | None:
        text = without_special_tokens(text)
        answer = last_boxed(text) or last_tag(text, "answer")
        if answer is None and self.config.hash_answer:
            return after_hashes(text)
        return answer

    def score(self, example: Example, text: str) -> Score:
        return self.score_all([example], [text])[0]

    def score_all(self, examples: list[Example], texts: list[str]) -> list[Score]:
        answers = [self.find_answer(text) for text in texts]
        golds = [str(example.fields["ground_truth_answer"]) for example in examples]
        verdicts = {pair: verdict(*pair) for pair in zip(golds, answers, strict=True)}
        hard = [pair for pair, found in verdicts.items() if found is None]
        for pair, equal in zip(hard, self.pool.map(hard), strict=True):
            verdicts[pair] = "grader_timeout" if equal is None else PASS[equal]
        return [
            graded(answer, verdicts[gold, answer] or "")
            for gold, answer in zip(golds, answers, strict=True)
        ]


PASS = {True: "pass", False: "wrong"}


def verdict(gold: str, answer: str | None) -> str | None:
    """What can be said of an answer without sympy; None if nothing can."""
    if answer is None:
        return "no_answer"
    if len(answer) > MAX_CHARS:
        return "too_long"
    try:
        return PASS[compare(parse(gold), parse(answer), equal_by_form)]
    except Undecided:
        return None
