"""What a task is: problems of a split, and a grade for a text."""

import hashlib
import logging
import math
import random
import string
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from drift.common import terminal
from drift.common.errors import ConfigError, DataError, DriftError, GradingError
from drift.common.types import Example, Score
from drift.config.commands import Dataset
from drift.config.data import OnError
from drift.config.task import GeneratedTaskConfig, Split, TaskConfig
from drift.tasks.extract import Block, is_well_formed
from drift.tasks.records import Record, read_records

TEST_PERCENT, VALIDATION_PERCENT = 20, 7
MAX_HELD_OUT = 500  # problems held out from a training file for validation
MAX_TRIES = 20_000  # in a row without a new problem: there are no more
MAX_LISTED = 20  # bad records named in the log

log = logging.getLogger("drift")


def hash_of(key: str) -> int:
    """64 bits of a problem's key, the same in every run."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def split_of(key: str) -> Split:
    """The split that a problem belongs to, by a hash of its key; every run has the same."""
    percent = hash_of(key) % 100
    if percent < TEST_PERCENT:
        return Split.test
    if percent < TEST_PERCENT + VALIDATION_PERCENT:
        return Split.validation
    return Split.train


def held_out(keys: Iterable[str]) -> set[str]:
    """The problems to take out of a training set for validation, where it comes without one.

    7 % of the distinct keys, rounded down, from 1 to 500, those of the smallest hashes: the same
    in every run, whatever the order of the file. Empty if there is one problem only.
    """
    distinct = sorted(set(keys), key=hash_of)
    size = min(MAX_HELD_OUT, max(1, len(distinct) * VALIDATION_PERCENT // 100))
    return set(distinct[:size]) if len(distinct) > 1 else set()


def own_words(prompt: str, template: str) -> str:
    """A prompt without the fixed words of its template."""
    fixed = ""
    for text, field, *_ in [*string.Formatter().parse(template), ("", "end")]:
        fixed += text  # `{{` ends a piece of text too
        if field is not None:
            if any(char.isalpha() for char in fixed):
                prompt = prompt.replace(fixed, " ", 1)
            fixed = ""
    return prompt


def report_skipped(path: Path, bad: list[DataError], num_good: int) -> None:
    """Say which records were left out.

    Raises:
        DataError: no good one remains.
    """
    if bad and not num_good:
        raise DataError(f"{path} has no good record; the first fault: {bad[0]}")
    if bad:
        log.warning(
            "%d of the %d records of %s are bad and were left out (data.on_error=skip):",
            len(bad),
            len(bad) + num_good,
            path,
        )
    for error in bad[:MAX_LISTED]:
        log.warning("  %s", error)
    if len(bad) > MAX_LISTED:
        log.warning("  and %d more", len(bad) - MAX_LISTED)


def graded(answer: str | None, verdict: str) -> Score:
    """The score of a task that gives all or nothing: 1 for the verdict `pass`."""
    correct = verdict == "pass"
    return Score(reward=float(correct), correct=correct, answer=answer, verdict=verdict)


def fault_of(score: object, first: Score) -> str | None:
    """What is wrong with what a task gave as a score; None where nothing is.

    first: of the same texts, whose rewards' names all must have.
    """
    if not isinstance(score, Score):
        return f"{score!r} is no Score"
    for name, value in [("reward", score.reward), *score.rewards.items()]:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name}={value!r} is not a finite number"
    if not isinstance(score.correct, bool):
        return f"correct={score.correct!r} is neither True nor False"
    names, others = sorted(score.rewards), sorted(first.rewards)
    return None if names == others else f"rewards has the names {names}, of others {others}"


class Task(ABC):
    """Problems and their grader. Grading never raises: text that makes no sense is a wrong answer.

    A task whose problems come from data files reads them by `example`; `fields` names what a
    record must have.
    """

    block: Block = Block.box  # where the prompt asks for the answer
    packages: tuple[str, ...] = ()  # installed ones that decide a grade, by their names on PyPI
    on_error = OnError.refuse  # what `examples` does with a bad record

    def __init__(self, config: TaskConfig):
        self.config = config
        self.skipped: list[str] = []  # `file:line: field: reason` of the bad records left out
        self._files_read: dict[Split, list[Example]] = {}

    def examples(self, split: Split) -> list[Example]:
        """The problems of one split, from its data file.

        Without a validation file, validation is held out from train (see `held_out`), and train
        is what remains. The test split is never a part of either.

        Raises:
            DataError: no file is given, it cannot be read, or a record is bad.
        """
        files = self.config.files
        if split == Split.test or files.validation is not None or files.train is None:
            return self.from_file(split)
        train = self.from_file(Split.train)
        chosen = held_out(example.key for example in train)
        if not chosen:
            raise DataError(
                f"{files.train} has one problem only, none for validation; "
                "set task.files.validation=FILE"
            )
        if split == Split.validation:
            log.info(
                "no task.files.validation: %d of the %d problems of %s are held out",
                len(chosen),
                len({example.key for example in train}),
                files.train,
            )
        return [e for e in train if (e.key in chosen) == (split == Split.validation)]

    def from_file(self, split: Split) -> list[Example]:
        """The problems of a split's data file; it is read once.

        Raises:
            DataError: as `examples`.
        """
        if split not in self._files_read:
            path = getattr(self.config.files, split.value)
            if path is None:
                raise DataError(
                    f"task={self.config.name} needs a data file: set task.files.{split}=FILE"
                )
            self._files_read[split] = self._read(Path(path))
        return self._files_read[split]

    def _read(self, path: Path) -> list[Example]:
        if not path.exists() and path.parent.name in list(Dataset):
            dataset = path.parent.name
            command = f"python -m drift.prepare dataset={dataset}"
            raise DataError(f"{path}: no such data file; make it with `{command}`")
        good: list[Example] = []
        bad: list[DataError] = []
        for found in map(self.checked, read_records(path)):
            if isinstance(found, Example):
                good.append(found)
            elif self.on_error == OnError.refuse:
                raise found
            else:
                bad.append(found)
        report_skipped(path, bad, len(good))
        self.skipped += map(str, bad)
        return good

    def checked(self, record: Record) -> Example | DataError:
        """The problem of a record, or what is wrong with it: `file:line: field: reason`."""
        if isinstance(record.value, DataError):
            return record.value
        try:
            return self.example(record.value)
        except ConfigError:
            raise  # a bad prompt template is not the file's fault
        except ValueError as error:
            return DataError(f"{record.place}: {error}")
        except KeyError as error:  # record["question"] in a task that does not check by itself
            if not error.args or error.args[0] in record.value:
                raise
            return DataError(f"{record.place}: {error.args[0]}: missing")

    def render(self, fields: dict[str, object]) -> str:
        """The prompt's text: the task's template over an example's fields.

        Raises:
            ConfigError: the template names no field, or one that there is not.
        """
        template, names = self.config.prompt, sorted(fields)
        try:
            text = template.format(**fields)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"task.prompt={template!r} does not fit the fields {names}: {error!r}"
            ) from None
        if all(field is None for _, field, *_ in string.Formatter().parse(template)):
            raise ConfigError(
                f"task.prompt={template!r} is the same for every problem; put the problem into it "
                f"by its fields, in braces: {names}"
            )
        return text

    def text(self, example: Example) -> str:
        """What the problem says to a reader, to be compared with others (contamination.py)."""
        return own_words(example.prompt, self.config.prompt)

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
        scores: list[Score] = []
        with terminal.bar("grading answers", len(texts)) as bar:
            for example, text in zip(examples, texts, strict=True):
                try:
                    scores.append(self.score(example, text))
                except DriftError:
                    raise
                except Exception as error:  # whatever a task of the user raises
                    raise self.failure(f"the score of {example.key}", error) from error
                bar.advance()
        return scores

    def failure(self, what: str, error: Exception) -> GradingError:
        """`task=ones: the score of ones:0110: ones.py:23: TypeError: ...`, the line in the task."""
        frames = traceback.extract_tb(error.__traceback__)
        called = frames[min(1, len(frames) - 1)].filename  # by the frame that calls this method
        line = next(frame.lineno for frame in reversed(frames) if frame.filename == called)
        said = f"{called}:{line}: {type(error).__name__}: {error}"
        return GradingError(f"task={self.config.name}: {what}: {said}")

    def checked_scores(self, examples: list[Example], texts: list[str]) -> list[Score]:
        """What `score_all` gives, as every other file gets it.

        Raises:
            GradingError: the task raises, or something in it cannot be trained on or counted.
        """
        try:
            scores = self.score_all(examples, texts)
        except DriftError:
            raise
        except Exception as error:
            raise self.failure("its scores", error) from error
        for example, score in zip(examples, scores, strict=True):
            fault = fault_of(score, scores[0])
            if fault:
                raise GradingError(f"task={self.config.name}: the score of {example.key}: {fault}")
        return scores


class GeneratedTask(Task):
    """A task that can also make its own problems from a seed."""

    config: GeneratedTaskConfig

    def __init__(self, config: GeneratedTaskConfig):
        super().__init__(config)

    def examples(self, split: Split) -> list[Example]:
        """Problems from the split's data file, or generated.

        Generated problems of different splits are different problems (see `split_of`), none is a
        problem of another split's data file, and those of validation and test are distinct among
        themselves.

        Raises:
            ConfigError: the settings allow fewer problems than the split's size.
            DataError: a data file is given and cannot be read, or a record is bad.
        """
        files = self.config.files
        if getattr(files, split.value) is not None:
            return self.from_file(split)
        given = [s for s in Split if getattr(files, s.value) is not None]
        taken = {example.key for other in given for example in self.from_file(other)}
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
            if example is None or split_of(example.key) != split or example.key in taken:
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
