"""Python programs checked by tests: functions by asserts, scripts by what they print."""

import hashlib
import logging
from typing import Any

from drift.common.types import Example, Score
from drift.config.task import CodeConfig, Split
from drift.tasks.base import Task
from drift.tasks.code_sources import SHOWN_TESTS
from drift.tasks.extract import Block
from drift.tasks.programs import AssertTests, ProgramGrader, StdioTests, Tests, program_of
from drift.tasks.records import string, strings, text

log = logging.getLogger("drift")
METHODS = {
    "code_function": "code_function",
    "function": "code_function",
    "code_stdio": "code_stdio",
    "stdio": "code_stdio",
}
MAX_TIME_LIMIT = 300.0


class Code(Task):
    """Fields: `question`, `test_method`, and by it

    - code_function: `test_list` (Python code, one test each); optional `test_setup` (code before
      the tests) and `entry_point` (the tested name, which the tests may also call `candidate`);
    - code_stdio: `test_input` and `test_output` (strings, one pair for each test).

    Optional: `test_time_limit` (CPU seconds of a test), `prefix` (the program's beginning).
    """

    config: CodeConfig
    block = Block.code

    def __init__(self, config: CodeConfig):
        super().__init__(config)
        self.grader = ProgramGrader(config)

    def from_file(self, split: Split) -> list[Example]:
        """The problems of a split's file; those whose tests the sandbox cannot run are dropped.

        Raises:
            SandboxError: programs cannot be isolated on this machine; before a run writes anything.
        """
        examples = super().from_file(split)
        self.grader.open()
        reasons = {e.key: reason for e in examples if (reason := tests_of(e).unsupported)}
        if reasons:
            log.warning(
                "%d of %d %s problems cannot be checked in the sandbox and were dropped; "
                "the first: %s %s",
                len(reasons),
                len(examples),
                split,
                *next(iter(reasons.items())),
            )
        self._files_read[split] = [e for e in examples if e.key not in reasons]
        return self._files_read[split]

    def example(self, record: dict[str, object]) -> Example:
        question = string(record, "question")
        method = string(record, "test_method")
        if method not in METHODS:
            raise ValueError(f"test_method: {method!r} is none of {', '.join(METHODS)}")
        prefix = text(record, "prefix")
        fields: dict[str, object] = {
            "question": question,
            "test_method": METHODS[method],
            "test_time_limit": _seconds(record, self.config.time_limit_s),
        }
        if METHODS[method] == "code_function":
            fields["test_list"] = strings(record, "test_list")
            fields["test_setup"] = text(record, "test_setup")
            fields["entry_point"] = text(record, "entry_point")
        else:
            given, expected = strings(record, "test_input"), strings(record, "test_output")
            if len(given) != len(expected):
                raise ValueError(f"test_output: {len(expected)} for {len(given)} of test_input")
            fields["test_input"], fields["test_output"] = given, expected
        digest = hashlib.blake2b(f"{question}\0{prefix}".encode("utf-8", "replace"), digest_size=8)
        key = f"{self.config.name}:{digest.hexdigest()}"
        example = Example(key=key, prompt=self.render(fields), fields=fields, prefix=prefix)
        try:
            tests_of(example).unsupported  # noqa: B018  reads the tests
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"test_list: not Python: {error}") from None
        return example

    def text(self, example: Example) -> str:
        """The question without the tests it shows: many problems share their words."""
        return str(example.fields["question"]).partition(SHOWN_TESTS)[0]

    def score(self, example: Example, text: str) -> Score:
        return self.score_all([example], [text])[0]

    def score_all(self, examples: list[Example], texts: list[str]) -> list[Score]:
        programs = [program_of(t, e.prefix) for e, t in zip(examples, texts, strict=True)]
        return self.grader.grade([tests_of(example) for example in examples], programs)


def tests_of(example: Example) -> Tests:
    """The tests of a problem, from its fields."""
    fields: dict[str, Any] = example.fields
    limit = fields["test_time_limit"]
    if fields["test_method"] == "code_stdio":
        pairs = zip(fields["test_input"], fields["test_output"], strict=True)
        return StdioTests(tests=tuple(pairs), time_limit=limit)
    return AssertTests(
        tests=tuple(fields["test_list"]),
        entry_point=fields["entry_point"],
        setup=fields["test_setup"],
        time_limit=limit,
    )


def _seconds(record: dict[str, Any], default: float) -> float:
    value = record.get("test_time_limit")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"test_time_limit: {value!r} is not a number")
    if not 0 < value <= MAX_TIME_LIMIT:
        raise ValueError(f"test_time_limit: {value} is not within 0 (excluded) and 300 seconds")
    return float(value)
