"""Records of drift's data format from the upstream records of HumanEval and MBPP."""

from typing import Any

from drift.sandbox.names import called_first
from drift.tasks.records import string, strings, text

HUMANEVAL_LIMIT_S = 3  # CPU seconds; the slowest reference solution takes 0.2
MBPP_LIMIT_S = 6  # the slowest (task 123) takes 2.3 for one of its tests


SHOWN_TESTS = "\nYour code should pass these tests:\n"  # in questions of MBPP, before its asserts


def humaneval_record(raw: dict[str, Any]) -> dict[str, Any]:
    """HumanEval (openai/human-eval): complete a function whose signature and docstring are given.

    The test is upstream's `check(candidate)` as a whole. It may use what the prompt defines beside
    the function, so the prompt is its setup: such helpers are the data set's, not the program's.
    """
    prompt, entry_point = string(raw, "prompt"), string(raw, "entry_point")
    return {
        "task_id": string(raw, "task_id"),
        "question": f"Complete this Python function:\n```python\n{prompt.strip()}\n```",
        "prefix": prompt,
        "entry_point": entry_point,
        "test_method": "code_function",
        "test_setup": prompt,
        "test_list": [f"{string(raw, 'test')}\ncheck({entry_point})\n"],
        "test_time_limit": HUMANEVAL_LIMIT_S,
    }


def mbpp_record(raw: dict[str, Any]) -> dict[str, Any]:
    """MBPP (google-research/mbpp): a sentence and the asserts, which show the function's name."""
    tests = [test.strip() for test in strings(raw, "test_list")]
    shown = "\n".join(tests)
    try:
        entry_point = called_first(tests[0])
    except SyntaxError as error:
        raise ValueError(f"test_list: not Python: {error}") from None
    return {
        "task_id": raw["task_id"],
        "question": string(raw, "text").strip() + SHOWN_TESTS + shown,
        "entry_point": entry_point,
        "test_method": "code_function",
        "test_setup": text(raw, "test_setup_code").replace("\r\n", "\n"),
        "test_list": tests,
        "test_time_limit": MBPP_LIMIT_S,
    }
