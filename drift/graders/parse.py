r"""From an answer as models write it to a small tree of lists, tuples, matrices and expressions.

Conventions, those of the MATH data set's references where they have one:
- Delimiters, spacing, sizes, `\left` and `\right` mean nothing; `\dfrac12` is `\frac{1}{2}`.
- A unit is left out: `5.4 \text{ cents}` is 5.4, `30^\circ` is 30, `\$36` is 36, `50\%` is 50 (and
  not 0.5). Two units of different kinds, as in `\$36` and `36^\circ`, are different answers. Words
  like million multiply: `2.5 \text{ million dollars}` is `\$2500000`. Text with a digit is no unit.
- `1,000` is a number, `3, 5, 7` a list without order; `(3, 5)` has an order, `\{3, 5\}` has none.
- `1 \pm x` is a list of two.
- Words (`\text{east}`, `\text{(B)}`) are compared as words; `(B)` and `B` are one choice.
- A number in another base (`2516_8`) is compared digit by digit, its base included.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache

MAX_DEPTH = 8


class Unit(StrEnum):
    none = "none"
    money = "money"
    percent = "percent"
    degree = "degree"
    other = "other"


class Kind(StrEnum):
    equation = "equation"  # of two or more sides
    list = "list"  # without order: `1, 2` or `\{1, 2\}`
    union = "union"
    matrix = "matrix"  # of rows
    row = "row"
    ordered = "ordered"  # a tuple or an interval: the brackets are compared too


@dataclass(frozen=True, slots=True)
class Leaf:
    """One number, expression or word."""

    text: str
    unit: Unit = Unit.none
    is_word: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    r"""`(1, 2]` is Group(Kind.ordered, (Leaf("1"), Leaf("2")), "(1, 2]", "(]")."""

    kind: Kind
    items: tuple["Node", ...]
    text: str
    brackets: str = ""


Node = Leaf | Group

MONEY, ROW = "\x01", "\x02"  # stand for \$ and \\ while an answer is read
UNICODE = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": "\\times ",
        "·": "\\cdot ",
        "÷": "\\div ",
        "π": "\\pi ",
        "∞": "\\infty ",
        "°": "^\\circ ",
        "≤": "\\le ",
        "≥": "\\ge ",
        "≠": "\\ne ",
        "∪": "\\cup ",
        "∈": "\\in ",
        "±": "\\pm ",
        "θ": "\\theta ",
        "½": "\\frac{1}{2}",
        "²": "^2",
        "³": "^3",
        "€": MONEY,
        "£": MONEY,
        "¥": MONEY,
        "√": "\\sqrt ",
    }
)
REWRITES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\\\(\[[^\]]*\])?", ROW),
        (r"\\\$|\\dollar(?![a-z])", MONEY),
        (r"^\s*\$(?=\s*-?[\d.])(?!.*\$)", MONEY),  # one $ alone, before a number
        (r"\$|\\[()\[\]]", ""),
        (r"(,)\\!\s*|\\!", r"\1"),
        (r"(?<=\d)(\\,|\\ |\\;)(?=\d{3}(?!\d))", ""),
        (r"\\(displaystyle|textstyle|left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        (r"\\[,;:> ]|~|\\q?quad(?![a-z])", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(mathrm|mathbf|mathit|textbf|textit|textrm|mbox|operatorname)\s*\{", r"\\text{"),
        (r"\s*\\degree(?![a-z])|\s*\^\s*\{?\s*\\circ\s*\}?", r"^\\circ"),
        (r"\\leq?(?![a-z])|\\leqslant(?![a-z])|<=", r"\\le "),
        (r"\\geq?(?![a-z])|\\geqslant(?![a-z])|>=", r"\\ge "),
        (r"\\neq(?![a-z])", r"\\ne "),
        (r"\\lt(?![a-z])", "<"),
        (r"\\gt(?![a-z])", ">"),
        (r"\\%", "%"),
        (r"\{\s*,\s*\}", ","),
        (r"\\lbrace(?![a-z])", r"\\{"),
        (r"\\rbrace(?![a-z])", r"\\}"),
        (r"(?<![\\a-zA-Z])(pi|sqrt|infty)(?![a-zA-Z])", r"\\\1 "),
        (r"(?<![\\a-zA-Z])inf(inity)?(?![a-zA-Z])", r"\\infty "),
        (r"\\sqrt\s*([0-9a-z])", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\frac\s*([0-9a-z])\s*([0-9a-z])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\{[^{}]*\})\s*([0-9a-z])", r"\\frac\1{\2}"),
        (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
        (r"\s*([\^_])\s*\{\s*([0-9a-zA-Z]+)\s*\}", r"\1{\2}"),
        (r"\s*([\^_])\s*([0-9]+|[a-zA-Z])", r"\1{\2}"),
        (r",?\s*(\\text\s*\{\s*(and|or)\s*\}|(?<![\\a-zA-Z])(and|or)(?![a-zA-Z]))\s*|\s*;\s*", ","),
        (r"\s+", " "),
    )
)

DECIMAL = r"(?:\d{1,60}(?:\.\d{0,60})?|\.\d{1,60})"
FRACTION = re.compile(
    rf"(?:(?P<whole>\d{{1,60}})(?: ?(?=\\frac)| ))?"
    rf"(?:\\frac\{{(?P<a>-?{DECIMAL})\}}\{{(?P<b>-?{DECIMAL})\}}|(?P<c>{DECIMAL})/(?P<d>{DECIMAL}))"
)
SCIENTIFIC = re.compile(
    rf"(?P<m>{DECIMAL})(?:[eE](?P<e>[+-]?\d{{1,2}})|"
    rf"(?:\\times|\\cdot|\*|x)10\^\{{(?P<t>-?\d{{1,2}})\}})"
)
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
OPEN, CLOSE = "([{", ")]}"
MATRIX = re.compile(
    r"\\begin\s*\{([pb]?matrix|smallmatrix|array)\}(?:\s*\{[lcr| ]*\})?(.*)\\end\s*\{\1\}",
    re.DOTALL,
)
WORD = re.compile(r"[A-Za-z]{4,}|[A-Za-z]{2,}(?:[ '][A-Za-z]+)+|yes|no|odd", re.IGNORECASE)
IN_BASE = re.compile(r"-?[0-9A-F.]{1,60}_\{\d{1,2}\}")
TEXT_UNIT = re.compile(r"(.*\S)\s*\\text\s*\{([^{}\d]*)\}\s*(?:\^\{[0-9]\})?")
PLAIN_UNIT = re.compile(
    r"(.*[\d}])\s*((?:(?:cm|mm|km|ft|in|kg|mg|ml|mi|hr|oz|lb|pm|am)\b|[A-Za-z]{3,})[A-Za-z /.-]*)"
    r"(?:\^\{[0-9]\})?"
)
UNIT_WORDS = {"dollar": Unit.money, "percent": Unit.percent, "%": Unit.percent}
UNIT_WORDS |= {"degree": Unit.degree, MONEY: Unit.money}
SCALES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
SCALES |= {"trillion": 10**12}


@lru_cache(maxsize=4096)
def parse(answer: str) -> Node:
    """The tree of an answer; never raises."""
    text = answer.translate(UNICODE)
    for pattern, new in REWRITES:
        text = pattern.sub(new, text)
    return _node(text.strip(), 0)


def number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed number or scientific notation."""
    text = text.strip()
    negative = text.startswith("-")
    text = text.lstrip("+-").strip() if text[1:2] not in "+-" else text
    if re.fullmatch(DECIMAL, text):
        value = Fraction(text)
    elif found := FRACTION.fullmatch(text):
        numerator, denominator = found["a"] or found["c"], Fraction(found["b"] or found["d"])
        if not denominator:
            return None
        value = Fraction(found["whole"] or 0) + Fraction(numerator) / denominator
    elif found := SCIENTIFIC.fullmatch(text.replace(" ", "")):
        value = Fraction(found["m"]) * Fraction(10) ** int(found["e"] or found["t"])
    else:
        return None
    return -value if negative else value


def _split(text: str, separator: str) -> list[str]:
    """Parts between the separators that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(rf"\\?[()\[\]{{}}]|{separator}", text):
        if found[0][-1] in OPEN:
            depth += 1
        elif found[0][-1] in CLOSE:
            depth -= 1
        elif depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    return [*parts, text[start:]]


def _encloses(text: str, left: str, right: str) -> bool:
    """The first bracket of `left...right` closes at the very end."""
    if not (text.startswith(left) and text.endswith(right)) or len(text) < len(left + right):
        return False
    depth = 0
    for found in re.finditer(r"\\?[()\[\]{}]", text):
        depth += 1 if found[0][-1] in OPEN else -1
        if depth == 0:
            return found.end() == len(text)
    return False


def _node(text: str, depth: int) -> Node:
    text = text.strip().rstrip(ROW).strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].strip()
    if depth > MAX_DEPTH:
        return Leaf(text)
    while _encloses(text, "{", "}"):
        text = text[1:-1].strip()
    if found := MATRIX.fullmatch(text):
        rows = [_cells(row, depth) for row in found[2].strip().strip(ROW).split(ROW)]
        return Group(Kind.matrix, tuple(rows), text.replace(ROW, r"\\"))
    # inside of brackets a comma separates: (1,000) is a pair
    whole = text if depth else THOUSANDS.sub(_bare_thousands, text)
    parts = _split(whole, ",")
    if len(parts) > 1 and all(part.strip() for part in parts):
        items = [item for part in parts for item in _flat(_node(part, depth + 1))]
        return Group(Kind.list, tuple(items), text)
    return _one(whole, depth)


def _bare_thousands(found: re.Match[str]) -> str:
    before = found.string[: found.start()]
    inside = sum(before.count(bracket) for bracket in OPEN) > sum(map(before.count, CLOSE))
    return found[0] if inside else found[0].replace(",", "")


def _cells(row: str, depth: int) -> Group:
    return Group(Kind.row, tuple(_node(cell, depth + 1) for cell in row.split("&")), row)


def _flat(node: Node) -> tuple[Node, ...]:
    """The two values of `a \\pm b` within a list are two of its items."""
    if isinstance(node, Group) and node.kind == Kind.list and "\\pm" in node.text:
        return (node,) if node.text.startswith("\\{") else node.items
    return (node,)


def _one(text: str, depth: int) -> Node:
    """A node that is no list."""
    text = re.sub(r"^[A-Za-z]\s*\\in(?![a-z])\s*(?=[(\[{\\])", "", text)
    for kind, separator in ((Kind.equation, "="), (Kind.union, r"\\cup(?![a-z])")):
        parts = _split(text, separator)
        if len(parts) > 1 and all(part.strip() for part in parts):
            return Group(kind, tuple(_node(part, depth + 1) for part in parts), text)
    if _encloses(text, "\\{", "\\}"):
        inner = _node(text[2:-2], depth + 1)
        items = inner.items if isinstance(inner, Group) and inner.kind == Kind.list else (inner,)
        return Group(Kind.list, items, text)
    for left, right in ("()", "(]", "[)", "[]"):
        if _encloses(text, left, right):
            parts = _split(text[1:-1], ",")
            if len(parts) == 1 and left + right == "()":
                return _node(parts[0], depth + 1)
            items = tuple(_node(part, depth + 2) for part in parts)
            return Group(Kind.ordered, items, text, left + right)
    if text.count("\\pm") == 1:
        both = (_leaf(text.replace("\\pm", sign).strip()) for sign in "+-")
        return Group(Kind.list, tuple(both), text)
    return _leaf(text)


def _leaf(text: str) -> Leaf:
    if found := re.fullmatch(r"\\text\s*\{([^{}]*)\}", text):
        text = found[1].strip()
        if not re.search(r"\d", text):
            return Leaf(_word(text), is_word=True)
    text, unit = _without_unit(text)
    if IN_BASE.fullmatch(text) or WORD.fullmatch(text):
        return Leaf(_word(text), is_word=True)
    # a space means something only between digits and behind a command
    text = re.sub(r"(?<=\d) (?=[\d.])|(?<=\\frac) ", "\x03", text.strip().removeprefix("+"))
    text = re.sub(r"(\\[a-zA-Z]+) (?=[a-zA-Z])", "\\1\x03", text).replace(" ", "")
    return Leaf(text.replace("\x03", " "), unit)


def _word(text: str) -> str:
    """Words without case, quotation marks and the brackets of a choice."""
    return re.sub(r"[\s'\"()]+", " ", text).strip(" .").casefold()


def _without_unit(text: str) -> tuple[str, Unit]:
    if MONEY in text:
        text = re.sub(rf"{MONEY}\s*", "", text)
        value, _ = _without_unit(re.sub(r"^\s*\\text\s*\{[^{}\d]*\}", "", text).strip())
        return value, Unit.money
    for ending, unit in (("%", Unit.percent), ("^\\circ", Unit.degree)):
        if text.endswith(ending) and text != ending:
            return text.removesuffix(ending).strip(), unit
    found = TEXT_UNIT.fullmatch(text)
    if found is None:
        found = PLAIN_UNIT.fullmatch(text)
        if found is None or number(found[1]) is None:
            return text, Unit.none
    value, inner = _without_unit(found[1].strip())
    scale, word = _scale(found[2].strip().casefold())
    if scale > 1:
        scaled = number(value)
        if scaled is None:
            return text, Unit.none
        value = str(scaled * scale)
        if not word:
            return value, inner
    unit = UNIT_WORDS.get(word.removesuffix("s"))
    return value, unit or (inner if inner != Unit.none else Unit.other)


def _scale(words: str) -> tuple[int, str]:
    """The factor that a unit begins with, and the unit: (10**6, "dollars")."""
    scale, rest = 1, words
    while found := re.match(r"([a-z]+)(?![a-z])\s*", rest):
        factor = SCALES.get(found[1].removesuffix("s"))
        if factor is None:
            break
        scale, rest = scale * factor, rest[found.end() :].removeprefix("of ").strip()
    return scale, rest
