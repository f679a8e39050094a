"""The process that asks sympy: `[reference, answer]` in, whether they are equal out."""

import random
import re
import sys
from functools import lru_cache
from typing import Any

from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from sympy import Abs, Basic, Expr, I, Rational

from drift.graders.compare import Undecided, compare, equal_by_form
from drift.graders.parse import Leaf, parse
from drift.graders.serve import serve

POINTS = 3  # at which two expressions are compared
DIGITS, TOLERANCE = 50, Rational(1, 10**30)
# `2 3` and `3(4)` are products here; parse.number reads the mixed numbers that are meant
CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)


@lru_cache(maxsize=1024)
def expression(latex: str) -> Any:
    """LaTeX as a sympy object; raises whatever the parser raises."""
    exact = re.sub(r"\d*\.\d+|\d+\.", _fraction, latex)
    parsed: Any = latex2sympy(
        exact, is_real=True, normalization_config=None, conversion_config=CONVERSION
    )
    units = {s: I for s in parsed.free_symbols if s.name == "i"}
    return parsed.subs(units) if units else parsed


def _fraction(found: re.Match[str]) -> str:
    whole, _, digits = found[0].partition(".")
    return f"{{\\frac{{{whole}{digits}}}{{1{'0' * len(digits)}}}}}"


def same_value(gold: Expr, answer: Expr) -> bool | None:
    """Equality at random points to 30 digits; None where there is no number to compare.

    Two expressions that agree there are the same for all that an answer can hold, and this is a
    hundred times faster than to simplify their difference, which may also never end.
    """
    draw = random.Random(0)
    symbols: list[Any] = sorted(gold.free_symbols | answer.free_symbols, key=str)
    for _ in range(POINTS if symbols else 1):
        point = {symbol: Rational(draw.randint(-2000, 2000), 997) for symbol in symbols}
        a, b = (side.subs(point).evalf(DIGITS) for side in (gold, answer))
        if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
            return None
        size = max(Abs(a).evalf(DIGITS), Abs(b).evalf(DIGITS))
        if size < TOLERANCE:
            return None
        if Abs(a - b).evalf(DIGITS) > TOLERANCE * size:
            return False
    return True


def equal_by_algebra(gold: str, answer: str) -> bool:
    """Equality of two expressions, relations or sets in LaTeX; may take for ever."""
    try:
        expected, given = expression(gold), expression(answer)
        if isinstance(expected, Expr) and isinstance(given, Expr):
            decided = same_value(expected, given)
            if decided is not None:
                return decided
        if not (isinstance(expected, Basic) and isinstance(given, Basic)):
            return False
        return verify(
            expected, given, float_rounding=15, allow_set_relation_comp=True, timeout_seconds=None
        )
    except MemoryError:
        raise
    except Exception:  # the parser's and sympy's are of every kind: no equality was found
        return False


def equal(gold: Leaf, answer: Leaf) -> bool:
    try:
        return equal_by_form(gold, answer)
    except Undecided:
        return equal_by_algebra(gold.text, answer.text)


def handle(request: list[str]) -> bool:
    gold, answer = request
    return compare(parse(gold), parse(answer), equal)


def main() -> None:
    serve(handle, float(sys.argv[1]))
