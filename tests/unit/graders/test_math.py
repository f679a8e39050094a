r"""Mathematics: where an answer stands, what equals what, and graders that hang or die."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from drift.common.errors import DataError, GradingError
from drift.common.types import Example
from drift.config.task import FilesConfig, MathConfig, Split
from drift.graders.parse import number, parse
from drift.graders.pool import WorkerPool
from drift.tasks import build_task
from drift.tasks.math import Math
from tests.math_pairs import DIFFERENT, EQUAL


def math(**changes: object) -> Math:
    values: dict[str, object] = {"name": "math", "prompt": "{question}", "gen_length": 256}
    return build_task(MathConfig(**(values | changes)))  # type: ignore


@pytest.fixture(scope="module")
def task() -> Iterator[Math]:
    made = math()
    yield made
    made.pool.close()


def asked(task: Math, gold: str) -> Example:
    return task.example({"question": "How many?", "ground_truth_answer": gold})


# What equals what


def verdicts(task: Math, pairs: list[tuple[str, str]]) -> list[str]:
    examples = [asked(task, gold) for gold, _ in pairs]
    return [s.verdict for s in task.score_all(examples, [f"\\boxed{{{a}}}" for _, a in pairs])]


def test_equal_answers_pass(task: Math) -> None:
    found = zip(EQUAL, verdicts(task, EQUAL), strict=True)
    assert [pair for pair, verdict in found if verdict != "pass"] == []


def test_different_answers_are_wrong(task: Math) -> None:
    found = zip(DIFFERENT, verdicts(task, DIFFERENT), strict=True)
    assert [
        (pair, verdict) for pair, verdict in found if verdict in ("pass", "grader_timeout")
    ] == []


@settings(max_examples=200, deadline=None)
@given(value=st.fractions(max_denominator=10**6))
def test_numbers_are_read_exactly(value: object) -> None:
    a, b = value.numerator, value.denominator  # type: ignore[attr-defined]
    assert number(f"{a}/{b}" if b != 1 else str(a)) == value
    sign = "-" if a < 0 else ""
    assert number(f"{sign}\\frac{{{abs(a)}}}{{{b}}}") == value
    assert number(f"\\frac{{{a}}}{{{b}}}") == value


@settings(max_examples=100, deadline=None)
@given(
    value=st.decimals(
        allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9
    )
)
def test_decimals_with_and_without_commas_are_one_number(value: object) -> None:
    assert verdicts(math(), [(f"{value}", f"{value:,}")]) == ["pass"]


# Where the answer stands


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{5}.", "5"),
        ("\\boxed{4} or rather \\boxed{5}", "5"),
        ("\\boxed{5} \\boxed{}", "5"),
        ("\\boxed{5}<|eot_id|><|endoftext|>", "5"),
        ("\\boxed{<|mdm_mask|>5}", "5"),
        ("<answer>5</answer>", "5"),
        ("<answer>\\boxed{5}</answer> <answer>6</answer>", "5"),
        ("<answer>5<|eot_id|></answer>", "5"),
        ("<answer>5", None),
        ("5", None),
        ("#### 5", None),
        ("", None),
    ],
)
def test_the_last_box_then_the_last_tag_is_the_answer(
    task: Math, text: str, answer: str | None
) -> None:
    score = task.score(asked(task, "5"), text)
    assert score.answer == answer
    assert score.verdict == ("no_answer" if answer is None else "pass")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 2+3=5\n#### 5", "5"),
        ("#### 4\n#### 5\nthat is all", "5"),
        ("#### $1,000", "$1,000"),
        ("####\n5", "5"),
        ("\\boxed{6} #### 5", "6"),
        ("####", None),
        ("### 5", None),
    ],
)
def test_hashes_are_read_where_asked_for(text: str, answer: str | None) -> None:
    assert math(hash_answer=True).score(asked(math(), "5"), text).answer == answer
    assert math().find_answer("#### 5") is None


# Whatever a policy writes

PIECES = [
    "\\boxed{",
    "}",
    "{",
    "<answer>",
    "</answer>",
    "####",
    "\\frac",
    "\\sqrt",
    "(",
    ")",
    "[",
    "]",
]
PIECES += [
    "\\begin{pmatrix}",
    "\\end{pmatrix}",
    "\\\\",
    "&",
    ",",
    "=",
    "\\cup",
    "\\pm",
    "\\{",
    "\\}",
]
PIECES += [
    "\\text{",
    "^",
    "_",
    "1",
    "23",
    ".5",
    "x",
    "%",
    "$",
    "\\$",
    "\0",
    "\ud800",
    "٣",
    "½",
    "\x01",
]
PIECES += [
    "9**9**9",
    "<|eot_id|>",
    " ",
    "\n",
    "\\",
    "or",
    "-",
    "/",
    "\\le",
    "<",
    "e",
    "i",
    "\x02\x03",
]
anything = st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=anything)
def test_parsing_never_raises(text: str) -> None:
    parse(text)


GOLDS = ["5", "\\sqrt{2}x", "(1,2)", "1,2", "\\text{east}", "(-\\infty,2]", "x<2"]


@settings(max_examples=100, deadline=None)
@given(text=anything, gold=st.sampled_from(GOLDS))
def test_grading_never_raises(task: Math, text: str, gold: str) -> None:
    for completion in (text, f"\\boxed{{{text}}}"):
        score = task.score(asked(task, gold), completion)
        assert score.reward == float(score.correct) == float(score.verdict == "pass")
        assert (score.answer is None) == (score.verdict == "no_answer")


HOSTILE = [
    "\\boxed{" + "9" * 200_000 + "}",
    "\\boxed{" * 30_000,
    "\\boxed{" + "{" * 100_000 + "}" * 100_001,
    "<answer>" * 25_000,
    "</answer>" * 25_000,
    "<answer></answer>" * 12_000,
    "#" * 200_000,
    "<|" * 100_000,
    "\\boxed{" + "(" * 400 + "5" + ")" * 400 + "}",
    "\\boxed{" + "\\frac{1}{" * 90 + "5" + "}" * 90 + "}",
    "\\boxed{" + "1," * 400 + "5}",
    "\\boxed{x" + "(2" * 30 + ")" * 30 + "}",
    "\\boxed{" + " " * 900 + "x}",
    "\\boxed{" + "\\text{a}" * 120 + "}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:16])
def test_hostile_text_is_graded_at_once(text: str) -> None:
    task = math(time_limit_s=1.0)
    started = time.monotonic()
    assert not task.score(asked(task, "\\sqrt{5}"), text).correct
    task.pool.close()
    assert time.monotonic() - started < 60  # a start of a worker and its limit; no blow-up


# Workers


def test_an_answer_that_never_ends_is_a_timeout_and_nothing_is_lost() -> None:
    task = math(workers=2, time_limit_s=1.0)
    answers = [f"\\sqrt{{{4 * i}}}" for i in range(2, 12)]
    golds = [f"2\\sqrt{{{i}}}" for i in range(2, 12)]
    answers[3] = answers[7] = "9^{9^{9^{9^9}}}"
    examples = [asked(task, gold) for gold in golds]
    scores = task.score_all(examples, [f"\\boxed{{{a}}}" for a in answers])
    task.pool.close()
    expected = ["pass"] * 10
    expected[3] = expected[7] = "grader_timeout"
    assert [score.verdict for score in scores] == expected
    assert not scores[3].correct and scores[3].reward == 0


def test_killed_workers_are_replaced_and_lose_no_answer() -> None:
    pool = WorkerPool("drift.graders.math_worker", num_workers=2, cpu_limit_s=5)
    requests = [[f"\\sqrt{{{4 * i}}}", f"2\\sqrt{{{i}}}"] for i in range(2, 40)]
    assert pool.map(requests) == [True] * 38
    first = [worker.process.pid for worker in pool.workers]
    for worker in pool.workers:
        worker.process.kill()
        worker.process.wait()
    assert pool.map(requests[:1]) == [True]  # fewer than the dead: none of them had its request
    assert pool.map(requests) == [True] * 38
    assert not set(first) & {worker.process.pid for worker in pool.workers}
    pool.close()
    assert pool.workers == []


@pytest.mark.parametrize("kills", [1, 3, 4])
def test_workers_killed_as_they_start_are_replaced_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    lines = [
        "import os, pathlib",
        "from drift.graders.math_worker import main as grade",
        "def main():",
        f"    for i in range({kills}):",
        "        try:",
        "            pathlib.Path(__file__).with_name(f'{i}.killed').touch(exist_ok=False)",
        "        except FileExistsError:",
        "            continue",
        "        os.kill(os.getpid(), 9)",
        "    grade()",
    ]
    (tmp_path / "unlucky.py").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    pool = WorkerPool("unlucky", num_workers=2, cpu_limit_s=5)
    requests = [["\\sqrt{8}", "2\\sqrt{2}"], ["\\sqrt{8}", "3\\sqrt{2}"]]
    if kills == 4:
        with pytest.raises(GradingError, match="unlucky cannot start: killed by SIGKILL each"):
            pool.map(requests)
        assert pool.workers == []
    assert pool.map(requests) == [True, False]
    pool.close()


def test_a_stopped_worker_is_killed_after_its_wall_time() -> None:
    pool = WorkerPool("drift.graders.math_worker", num_workers=1, cpu_limit_s=0.3)
    assert pool.map([["\\sqrt{8}", "2\\sqrt{2}"]]) == [True]
    stopped = pool.workers[0].process.pid
    os.kill(stopped, signal.SIGSTOP)
    assert pool.map([["\\sqrt{8}", "2\\sqrt{2}"], ["\\sqrt{8}", "3\\sqrt{2}"]]) == [None, False]
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)
    pool.close()


def test_no_worker_is_started_for_plain_answers() -> None:
    task = math()
    assert task.score(asked(task, "1,000"), "\\boxed{1000}").correct
    assert not task.score(asked(task, "1,000"), "\\boxed{1001}").correct
    assert task.pool.workers == []


def test_a_worker_that_cannot_start_says_why() -> None:
    pool = WorkerPool("drift.graders.no_such_worker", num_workers=1, cpu_limit_s=1)
    with pytest.raises(GradingError, match="No module named 'drift"):
        pool.map([1])


def test_a_worker_that_hangs_in_its_imports_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "pathlib.Path(__file__).with_name(f'{os.getpid()}.pid').touch(); time.sleep(600)"
    (tmp_path / "asleep.py").write_text(f"import os, pathlib, time\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("drift.graders.pool.START_LIMIT_S", 2.0)
    pool = WorkerPool("asleep", num_workers=2, cpu_limit_s=1)
    begun, used = time.monotonic(), time.process_time()
    with pytest.raises(GradingError, match="asleep cannot start: no reply in 2 s"):
        pool.map([1, 2])
    assert 2 <= time.monotonic() - begun < 30
    assert time.process_time() - used < 0.5  # it waits, and does not turn in circles
    assert pool.workers == []
    pids = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)


# Records


def test_records_are_read_and_bad_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "math.jsonl"
    good = {"question": "1+1?", "ground_truth_answer": "2"}
    path.write_text(json.dumps(good) + "\n")
    task = math(files=FilesConfig(test=str(path)))
    (example,) = task.examples(Split.test)
    assert (example.key, example.prompt, example.fields) == ("math:1+1?", "1+1?", good)
    for bad, reason in (
        ({"question": "1+1?"}, "ground_truth_answer: missing"),
        ({"ground_truth_answer": "2"}, "question: missing"),
        (good | {"ground_truth_answer": 2}, "ground_truth_answer: 2 is not a non-empty string"),
        (
            good | {"ground_truth_answer": "9" * 1001},
            "ground_truth_answer: more than 1000 characters",
        ),
    ):
        path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
        with pytest.raises(DataError, match=f"math.jsonl:2: {reason}"):
            math(files=FilesConfig(test=str(path))).examples(Split.test)
