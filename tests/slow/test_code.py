"""Code tasks: which text is the program, data files, grades, and the generated one-liners."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from drift.tasks import Task
from drift.tasks.code_sources import humaneval_record, mbpp_record
from tests.unit.tasks.test_code import code


@pytest.fixture(scope="module")
def task() -> Task:
    """With time for MBPP's slowest solution, which takes 2 to 8 s on machines that we met."""
    return code(time_limit_s=60.0)


def raw(name: str) -> list[dict[str, Any]]:
    folder = os.environ.get("DRIFT_DATA")
    if folder is None or not (Path(folder) / name).exists():
        pytest.skip(f"set DRIFT_DATA to a folder with {name}")
    path = Path(folder) / name
    data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def returning_none(solution: str) -> str:
    """The solution with its last line replaced by `return None`."""
    *lines, last = solution.rstrip().split("\n")
    return "\n".join([*lines, last[: len(last) - len(last.lstrip())] + "return None"]) + "\n"


def test_humanevals_solutions_pass_and_spoilt_ones_do_not(task: Task) -> None:
    records = raw("HumanEval.jsonl.gz")
    assert len(records) == 164
    examples = [task.example(humaneval_record(record)) for record in records]
    solutions = [record["canonical_solution"] for record in records]
    spoilt = [returning_none(solution) for solution in solutions]
    leaving = ["    exit()\n" + solution for solution in solutions]
    whole = [f"```python\n{r['prompt']}{r['canonical_solution']}\n```" for r in records]
    assert [s.verdict for s in task.score_all(examples, solutions)] == ["pass"] * 164
    assert [s.verdict for s in task.score_all(examples, whole)] == ["pass"] * 164
    assert not any(s.correct for s in task.score_all(examples, spoilt))
    assert not any(s.correct for s in task.score_all(examples, leaving))


# MBPP problems whose last line no test reaches, or needs: plain Python passes them without it too
LAST_LINE_UNTESTED = {
    *(9, 20, 29, 34, 177, 189, 223, 351, 382, 395, 404, 452, 485, 617, 627, 631, 802, 823, 838),
    *(842, 916, 928, 940, 954),
}


def test_mbpps_solutions_pass_and_spoilt_ones_do_not(task: Task) -> None:
    records = raw("mbpp.jsonl")
    assert len(records) == 974
    examples = [task.example(mbpp_record(record)) for record in records]
    solutions = [record["code"] for record in records]
    assert [s.verdict for s in task.score_all(examples, solutions)] == ["pass"] * 974
    spoilt = task.score_all(examples, [returning_none(solution) for solution in solutions])
    passed = {r["task_id"] for r, s in zip(records, spoilt, strict=True) if s.correct}
    assert passed == LAST_LINE_UNTESTED
    leaving = ["exit()\n" + solution.partition("\n")[2] for solution in solutions]
    assert not any(s.correct for s in task.score_all(examples, leaving))
