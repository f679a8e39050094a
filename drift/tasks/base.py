"""What a task is: problems of a split, and a grade for a text."""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from drift.config import GeneratedTaskConfig, Split, TaskConfig
from drift.errors import ConfigError, DataError
from drift.tasks.extract import Block, is_well_formed
from drift.tasks.records import read_records
from drift.types import Example, Score

TEST_PERCENT, VALIDATION_PERCENT = 20, 7
MAX_TRIES = 20_000  # in a row without a new problem: there are no more


def split_of(key: str) -> Split:
    """The split that a problem belongs to, by a hash of its key; every run has the same."""
    percent = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") % 100
    if percent < TEST_PERCENT:
        return Split.test
    if percent < TEST_PERCENT + VALIDATION_PERCENT:
        return Split.validation
    return Split.train


class Task(ABC):
    """Problems and their grader. Grading never raises: text that makes no sense is a wrong answer.

    A task whose problems come from data files reads them by `example`; `fields` names what a
    record must have.
    """

    block: Block = Block.box  # where the prompt asks for the answer

    def __init__(self, config: TaskConfig):
        self.config = config

    def examples(self, split: Split) -> list[Example]:
        """The problems of one split, from its data file.

        Raises:
            DataError: no file is given, it cannot be read, or a record is bad.
        """
        path = getattr(self.config.files, split.value)
        if path is None:
            raise DataError(
                f"task={self.config.name} needs a data file: set task.files.{split}=FILE"
            )
        return list(self.read(Path(path)))

    def read(self, path: Path) -> Iterator[Example]:
        for number, record in read_records(path):
            try:
                yield self.example(record)
            except ConfigError:
                raise  # a bad prompt template is not the file's fault
            except ValueError as error:
                raise DataError(f"{path}:{number}: {error}") from None

    def render(self, fields: dict[str, object]) -> str:
        """The prompt's text: the task's template over an example's fields."""
        try:
            return self.config.prompt.format(**fields)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"task.prompt={self.config.prompt!r} does not fit the fields {sorted(fields)}: "
                f"{error!r}"
            ) from None

    @abstractmethod
    def example(self, record: dict[str, object]) -> Example:
        """One problem from a record of a data file; ValueError('field: reason') if it is bad."""

    @abstractmethod
    def score(self, example: Example, text: str) -> Score:
        """Grade a completion; never raises."""

    def is_well_formed(self, text: str) -> bool:
        """The answer stands where the task asks for it, once, with nothing behind it."""
        return is_well_formed(text, self.block)

    def score_all(self, examples: list[Example], texts: list[str]) -> list[Score]:
        """Grade completions, one for each example, in order; graders with workers override it."""
        return [self.score(e, t) for e, t in zip(examples, texts, strict=True)]


class GeneratedTask(Task):
    """A task that can also make its own problems from a seed."""

    config: GeneratedTaskConfig

    def __init__(self, config: GeneratedTaskConfig):
        super().__init__(config)

    def examples(self, split: Split) -> list[Example]:
        """Problems from the split's data file, or generated.

        Generated problems of different splits are different problems (see `split_of`), and
        those of validation and test are distinct among themselves.

        Raises:
            ConfigError: the settings allow fewer problems than the split's size.
        """
        if getattr(self.config.files, split.value) is not None:
            return super().examples(split)
        size = getattr(self.config, f"{split}_size")
        rng = random.Random(f"{self.config.seed}:{split}")
        found: set[str] = set()
        examples: list[Example] = []
        tries = 0
        while len(examples) < size:
            if tries == MAX_TRIES:
                raise ConfigError(
                    f"task.{split}_size={size} is more than the {len(examples)} {split} problems "
                    f"found with these settings; lower it or widen the task"
                )
            tries += 1
            example = self.generate(rng)
            if example is None or split_of(example.key) != split:
                continue
            if split != Split.train and example.key in found:
                continue
            found.add(example.key)
            examples.append(example)
            tries = 0
        return examples

    @abstractmethod
    def generate(self, rng: random.Random) -> Example | None:
        """A random problem of any split; None where this try made none."""

    @abstractmethod
    def demonstration(self, example: Example, *, habit: bool) -> str:
        """A completion to imitate: a right one, or the task's bad habit (drift.sft)."""
