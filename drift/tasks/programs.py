"""Programs in completions, their tests, and their grade from the sandbox."""

import ast
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from drift.common import terminal
from drift.common.types import Score
from drift.config.task import SandboxConfig
from drift.sandbox import Asserts, Request, Sandbox, Stdio, Verdict
from drift.sandbox.names import Uses, examine
from drift.tasks.base import graded

BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
DEFINED = re.compile(r"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", re.MULTILINE)


def program_of(text: str, prefix: str = "") -> str:
    """The program in a completion: its last fenced block that is not empty, else all of it.

    A prefix is the program's beginning, which the model was given. A block that defines again what
    the prefix defines stands for itself, behind the prefix where that is a whole program: its
    imports and helpers are the program's too. A prefix that opens a block is closed by the first
    fence of the completion.
    """
    if prefix.count("```") % 2:
        begun = prefix.rpartition("```")[2].partition("\n")[2]
        body = text.partition("```")[0]
        return begun + body if body.strip() else ""
    blocks = [block for block in BLOCK.findall(text) if block.strip()]
    program = blocks[-1] if blocks else text
    if not prefix or not program.strip():
        return program if program.strip() else ""
    names = DEFINED.findall(prefix)
    if not names or names[-1] not in _definitions(program):
        return prefix + program
    return f"{prefix}\n{program}" if _is_python(prefix) else program


def _definitions(program: str) -> list[str]:
    """Names of top-level functions and classes; none where the text is not Python."""
    if not _is_python(program):
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(program).body if isinstance(node, kinds)]


def _is_python(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


@lru_cache(maxsize=100_000)
def _examined(setup: str, tests: tuple[str, ...], entry_point: str) -> Uses:
    return examine(setup, tests, entry_point)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssertTests:
    """AssertTests(tests=("assert f(1) == 2",), entry_point="f", time_limit=1.0)"""

    tests: tuple[str, ...]
    entry_point: str = ""
    setup: str = ""
    time_limit: float

    @property
    def unsupported(self) -> str | None:
        return _examined(self.setup, self.tests, self.entry_point).unsendable

    def requests(self, program: str) -> list[Request]:
        uses = _examined(self.setup, self.tests, self.entry_point)
        return [
            Asserts(
                source=program,
                tests=self.tests,
                names=tuple(uses.names),
                entry_point=self.entry_point,
                setup="\n".join([*uses.imports, self.setup]),
                time_limit=self.time_limit,
            )
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioTests:
    """StdioTests(tests=(("1 2", "3"), ("2 2", "4")), time_limit=1.0)"""

    tests: tuple[tuple[str, str], ...]  # standard input, standard output
    time_limit: float
    unsupported: None = None

    def requests(self, program: str) -> list[Request]:
        return [
            Stdio(source=program, stdin=given, expected=expected, time_limit=self.time_limit)
            for given, expected in self.tests
        ]


Tests = AssertTests | StdioTests


class ProgramGrader:
    """Runs programs against tests in a sandbox that is opened when it is first needed."""

    def __init__(self, config: SandboxConfig):
        self.config = config
        self._sandbox: Sandbox | None = None

    def open(self) -> Sandbox:
        """The sandbox; SandboxError where programs cannot be isolated."""
        if self._sandbox is None:
            config = self.config
            self._sandbox = Sandbox(
                workers=config.workers,
                memory_mb=config.memory_mb,
                allow_unsafe=config.allow_unsafe,
            )
        return self._sandbox

    def grade(self, tests: Sequence[Tests], programs: Sequence[str]) -> list[Score]:
        """One score for each program, in order; the same program on the same tests runs once."""
        wanted = [
            t.requests(p) if p and not t.unsupported else []
            for t, p in zip(tests, programs, strict=True)
        ]
        distinct = list(dict.fromkeys(request for requests in wanted for request in requests))
        sandbox = self.open()
        with terminal.bar("running programs", len(distinct)) as bar:
            found = sandbox.run_all(distinct, bar.advance)
        verdicts = dict(zip(distinct, found, strict=True))
        return [
            self._score(t, program, [verdicts[request] for request in requests])
            for t, program, requests in zip(tests, programs, wanted, strict=True)
        ]

    def _score(self, tests: Tests, program: str, verdicts: list[Verdict]) -> Score:
        if tests.unsupported:
            return graded(program, "unsupported")
        if not program:
            return graded(None, "no_answer")
        failed = Counter(v.verdict for v in verdicts if v.verdict != "pass")
        passed = sum(verdict.passed for verdict in verdicts)
        reward = passed / len(tests.tests) if self.config.partial else float(not failed)
        verdict = failed.most_common(1)[0][0] if failed else "pass"
        return Score(reward=reward, correct=not failed, answer=program, verdict=verdict)
