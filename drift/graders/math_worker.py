"""The process that asks sympy: `[reference, answer]` in, whether they are equal out."""

import random
import re
import sys
from functools import lru_cache
from typing import Any

import mpmath
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from math_verify import verify
from sympy import Basic, Derivative, Expr, I, MatrixBase, Rational

from drift.graders.compare import Undecided, compare, equal_by_form
from drift.graders.parse import Leaf, parse
from drift.graders.serve import serve

POINTS = 3  # at which two expressions are compared
DIGITS = 50
mpmath.mp.dps = DIGITS
TOLERANCE = mpmath.mpf(10) ** -30
CONVERSION = ConversionConfig(lowercase_symbols=False)
MIXED = re.compile(r"\d+\\frac\{\d+\}\{\d+\}")


class Converter(_Latex2Sympy):
    r"""`2 3` and `3(4)` are products, only `2\frac{1}{4}` is a sum.

    Upstream adds an integer to any rational number behind it, whatever its settings say.
    """

    def convert_postfix_list(self, arr: list[Any], i: int = 0) -> Any:
        left = self.convert_postfix(arr[i])
        if isinstance(left, list) and len(left) == 1:  # d/dx
            return Derivative(self.convert_postfix_list(arr, i + 1), left[0])
        if i == len(arr) - 1:
            return left
        right = self.convert_postfix_list(arr, i + 1)
        if isinstance(left, MatrixBase) or isinstance(right, MatrixBase):
            return self.mat_mul_flat(left, right)
        is_mixed = len(arr) - i == 2 and MIXED.fullmatch(arr[i].getText() + arr[i + 1].getText())
        if is_mixed and right < 1:
            return left + right
        return self.mul_flat(left, right)


@lru_cache(maxsize=1024)
def expression(latex: str) -> Any:
    """LaTeX as a sympy object; raises whatever the parser raises."""
    exact = re.sub(r"\d*\.\d+|\d+\.", _fraction, latex)
    parsed: Any = Converter(is_real=True, config=CONVERSION).parse(exact)
    units = {s: I for s in parsed.free_symbols if s.name == "i"}
    return parsed.subs(units) if units else parsed


def _fraction(found: re.Match[str]) -> str:
    whole, _, digits = found[0].partition(".")
    return f"{{\\frac{{{whole}{digits}}}{{1{'0' * len(digits)}}}}}"


@lru_cache(maxsize=1024)
def values(latex: str) -> tuple[Any, ...] | None:
    """An expression at random points, always the same ones; None where it has no finite value."""
    parsed = expression(latex)
    if not isinstance(parsed, Expr):
        return None
    symbols: list[Any] = sorted(parsed.free_symbols, key=str)
    found: list[Any] = []
    for point in range(POINTS):
        if symbols or not found:
            at = {
                s: Rational(random.Random(f"{s}:{point}").randint(-2000, 2000), 997)
                for s in symbols
            }
            value = parsed.subs(at).evalf(DIGITS)
            if not (value.is_number and value.is_finite):
                return None
            found.append(mpmath.mpc(*(mpmath.mpf(str(part)) for part in value.as_real_imag())))
        else:
            found.append(found[0])
    return tuple(found)


def same_value(gold: str, answer: str) -> bool | None:
    """Equality at random points to 30 digits; None where there is no number to compare.

    Two expressions that agree there are the same for all that an answer can hold, and this is a
    hundred times faster than to simplify their difference, which may also never end.
    """
    expected, given = values(gold), values(answer)
    if expected is None or given is None:
        return None
    for a, b in zip(expected, given, strict=True):
        size = max(abs(a), abs(b))
        if size < TOLERANCE:  # 0, or too small to tell
            return None
        if abs(a - b) > TOLERANCE * size:
            return False
    return True


def equal_by_algebra(gold: str, answer: str) -> bool:
    """Equality of two expressions, relations or sets in LaTeX; may take for ever."""
    try:
        expected, given = expression(gold), expression(answer)
        decided = same_value(gold, answer)
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
