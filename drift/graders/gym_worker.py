"""The process that runs reasoning-gym's scorers: `[data set, settings, entry, answer]` in, a

score from 0 to 1 out, 0 also where the scorer fails on the answer's text.

Nine of the scorers evaluate the answer's text as Python. Four of them are for lists, and get
`ast.literal_eval` for `eval`; what the other five are given is checked first: no call but of a
mathematical function, no attribute, no string. Two of those five are games with given numbers,
which upstream reads too kindly: `is_solution` decides what is right there.
"""

import ast
import base64
import json
import pickle
import re
import sys
from functools import lru_cache
from math import isfinite
from typing import Any

import reasoning_gym
from sympy.parsing.sympy_parser import parse_expr

from drift.graders.serve import serve

LITERALS = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}  # eval
EXPRESSIONS = {  # sympy's parse_expr
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
}
GAMES = {"countdown", "puzzle24"}
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
    dataset = reasoning_gym.create_dataset(name, size=1, **json.loads(settings))
    if name in LITERALS:  # a name of the module goes before the builtin
        vars(sys.modules[type(dataset).__module__])["eval"] = ast.literal_eval
    return dataset


def is_harmless(name: str, answer: str) -> bool:
    """Evaluating the answer's text can do nothing but arithmetic, or make a list."""
    if name in LITERALS:
        return re.fullmatch(r"[\w\s-]*", answer, re.ASCII) is not None or is_literal(answer)
    if name in GAMES:
        plain = re.fullmatch(r"[\d+\-*/() ]*", answer, re.ASCII)
        return plain is not None and re.search(r"\*\*|//", answer) is None
    if name not in EXPRESSIONS:
        return True
    # of the single letters, sympy knows N, O, Q and S as more than names
    words = re.findall(r"[^\W\d]\w*", answer)
    letters = all(word in FUNCTIONS or re.fullmatch("[A-MPRT-Za-z]", word) for word in words)
    return letters and re.fullmatch(r"(?:[\w\s+\-*/^()=,]|\.(?=\d))*", answer, re.ASCII) is not None


def is_literal(text: str) -> bool:
    """A list, a string or a number as Python writes them."""
    try:
        ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return False
    return True


def is_solution(name: str, answer: str, entry: dict[str, Any]) -> bool:
    """The expression has the given numbers, each once, and exactly the value asked for.

    Upstream's puzzle24 takes any four numbers of the right size and rounds the value down, its
    countdown allows 0.001 % of the target.
    """
    given = entry["metadata"]
    if sorted(map(int, re.findall(r"\d+", answer))) != sorted(given["numbers"]):
        return False
    return bool(parse_expr(answer) == (given["target"] if name == "countdown" else 24))


def handle(request: list[str]) -> float:
    name, settings, packed, answer = request
    try:
        if not is_harmless(name, answer):
            return 0.0
        entry = pickle.loads(base64.b64decode(packed))
        value = float(scorer(name, settings).score_answer(answer, entry))
        if name in GAMES and value == 1 and not is_solution(name, answer, entry):
            return 0.0
    except MemoryError:
        raise
    except Exception:  # a scorer that fails on a text has not found an answer in it
        return 0.0
    return min(1.0, max(0.0, value)) if isfinite(value) else 0.0


def main() -> None:
    serve(handle, float(sys.argv[1]))
