"""The process that runs reasoning-gym's scorers: `[data set, settings, entry, answer]` in, a

score from 0 to 1 out, 0 also where the scorer fails on the answer's text.

Nine of the scorers evaluate the answer's text as Python. What they are given is therefore checked
first: no call but of a mathematical function, no attribute, no string.
"""

import base64
import json
import pickle
import re
import sys
from functools import lru_cache
from math import isfinite
from typing import Any

import reasoning_gym

from drift.graders.serve import serve

LITERALS = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}  # eval
EXPRESSIONS = {  # sympy's parse_expr
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
}
FUNCTIONS = {
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
}
FUNCTIONS |= {"exp", "log", "ln", "sqrt", "pi", "Abs", "abs"}


@lru_cache(maxsize=8)
def scorer(name: str, settings: str) -> Any:
    return reasoning_gym.create_dataset(name, size=1, **json.loads(settings))


def is_harmless(name: str, answer: str) -> bool:
    """Evaluating the answer's text can do nothing but arithmetic."""
    if name in LITERALS:
        return not re.search(r"[({]", answer)
    if name not in EXPRESSIONS:
        return True
    # of the single letters, sympy knows N, O, Q and S as more than names
    words = re.findall(r"[^\W\d]\w*", answer)
    letters = all(word in FUNCTIONS or re.fullmatch("[A-MPRT-Za-z]", word) for word in words)
    return letters and re.fullmatch(r"(?:[\w\s+\-*/^()=,]|\.(?=\d))*", answer, re.ASCII) is not None


def handle(request: list[str]) -> float:
    name, settings, entry, answer = request
    if not is_harmless(name, answer):
        return 0.0
    try:
        value = float(
            scorer(name, settings).score_answer(answer, pickle.loads(base64.b64decode(entry)))
        )
    except MemoryError:
        raise
    except Exception:  # a scorer that fails on a text has not found an answer in it
        return 0.0
    return min(1.0, max(0.0, value)) if isfinite(value) else 0.0


def main() -> None:
    serve(handle, float(sys.argv[1]))
