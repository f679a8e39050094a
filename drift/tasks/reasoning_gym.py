"""Any data set of the package reasoning-gym, by name, with its own generator and scorer."""

import base64
import difflib
import importlib
import json
import pickle
from typing import Any

from drift.common.errors import ConfigError
from drift.common.types import Example, Score
from drift.config.task import ReasoningGymConfig, Split
from drift.graders.pool import WorkerPool
from drift.tasks.base import Task, split_of
from drift.tasks.extract import Block, last_boxed, last_tag, without_special_tokens
from drift.tasks.records import integer

CHUNK = 500  # problems of one seed; some generators prepare all of theirs at once
MAX_TRIES = 5_000  # in a row without a new problem
MAX_CHARS = 20_000  # of an answer


class ReasoningGym(Task):
    """Fields: `index`, the number of a problem in the stream that `task.seed` begins.

    The problems of all splits come from one stream, each going to the split of its question
    (`split_of`). The answer is the last `<answer>` block, else the last box. A score of 1 is
    correct, anything between 0 and 1 a partial reward.
    """

    config: ReasoningGymConfig
    block = Block.answer
    packages = ("reasoning-gym", "sympy")

    def __init__(self, config: ReasoningGymConfig):
        super().__init__(config)
        self.gym = import_gym()
        self._chunk: tuple[int, Any] = (-1, None)
        self._entries: list[dict[str, Any]] = []
        self.check()
        self.pool = WorkerPool(
            "drift.graders.gym_worker",
            num_workers=config.workers,
            cpu_limit_s=config.time_limit_s,
        )

    def check(self) -> None:
        """Refuse an unknown data set, or settings that it does not have."""
        name = self.config.dataset
        known = sorted(set(self.gym.factory.DATASETS) - {"composite"})
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"task.dataset={name}: reasoning-gym has no such data set; {hint}")
        try:
            self.entry(0)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"task.settings={self.config.settings}: not for task.dataset={name}: {error}"
            ) from None

    def entry(self, index: int) -> dict[str, Any]:
        """A problem as reasoning-gym gives it: `question`, `answer`, `metadata`."""
        while index >= len(self._entries):
            chunk, place = divmod(len(self._entries), CHUNK)
            if self._chunk[0] != chunk:
                seed = self.config.seed + chunk * CHUNK
                data = self.gym.create_dataset(
                    self.config.dataset, size=CHUNK, seed=seed, **self.config.settings
                )
                self._chunk = chunk, data
            self._entries.append(self._chunk[1][place])
        return self._entries[index]

    def examples(self, split: Split) -> list[Example]:
        """The first problems of the stream that belong to a split, all of them distinct."""
        size = getattr(self.config, f"{split}_size")
        found: dict[str, Example] = {}
        index = newest = 0
        while len(found) < size:
            if index - newest == MAX_TRIES:
                raise ConfigError(
                    f"task.{split}_size={size} is more than the {len(found)} {split} problems "
                    f"found in task.dataset={self.config.dataset}; lower it or widen task.settings"
                )
            example = self.example({"index": index})
            if split_of(example.key) == split and example.key not in found:
                found[example.key] = example
                newest = index
            index += 1
        return list(found.values())

    def example(self, record: dict[str, object]) -> Example:
        index = integer(record, "index", 0, 10**7)
        question = self.entry(index)["question"]
        key = f"reasoning_gym:{self.config.dataset}:{question}"
        fields: dict[str, object] = {"index": index}
        return Example(key=key, prompt=self.render({"question": question}), fields=fields)

    def score(self, example: Example, text: str) -> Score:
        return self.score_all([example], [text])[0]

    def score_all(self, examples: list[Example], texts: list[str]) -> list[Score]:
        plain = [without_special_tokens(text) for text in texts]
        answers = [last_tag(text, "answer") or last_boxed(text) for text in plain]
        asked = [row for row, a in enumerate(answers) if a is not None and len(a) <= MAX_CHARS]
        settings = json.dumps(self.config.settings)
        requests = [
            (self.config.dataset, settings, self._packed(examples[row]), answers[row])
            for row in asked
        ]
        values = dict(zip(asked, self.pool.map(requests), strict=True))
        return [
            graded(answer, row in values, values.get(row)) for row, answer in enumerate(answers)
        ]

    def _packed(self, example: Example) -> str:
        entry = self.entry(int(str(example.fields["index"])))
        return base64.b64encode(pickle.dumps(entry)).decode()


def import_gym() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        if error.name != "reasoning_gym":
            raise
        raise ConfigError(
            "task=reasoning_gym needs the package reasoning-gym; "
            "install it with: pip install 'drift[reasoning-gym]'"
        ) from None


def graded(answer: str | None, asked: bool, value: float | None) -> Score:
    if answer is None:
        verdict = "no_answer"
    elif not asked:
        verdict = "too_long"
    elif value is None:
        verdict = "grader_timeout"
    elif value > 1 - 1e-9:
        verdict = "pass"
    else:
        verdict = "partial" if value > 0 else "wrong"
    return Score(reward=value or 0.0, correct=verdict == "pass", answer=answer, verdict=verdict)
