"""Whether two parsed answers are the same; the leaves are compared by a function of choice."""

import re
from collections.abc import Callable

from drift.graders.parse import Group, Kind, Leaf, Node, Unit, number, parse

NAME = re.compile(
    r"(?:m?\\(?:angle|triangle) ?)?\\?[A-Za-z]+'*(?:_\{\w+\})?(?:\([A-Za-z](?:,[A-Za-z])*\))?"
)
RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-z])")
CONSTANTS = {"\\pi", "\\infty", "e", "i"}
FLIPPED = {">": "<", "\\ge": "\\le", "\\ne": "\\ne"}
# Work that an answer leaves undone, so that copying the question into the box earns nothing
UNDONE = re.compile(r"\\(?:int|iint|sum|prod|lim|binom|dbinom|choose)(?![a-z])|!")
# Where a number is asked for, its signs, fractions, roots and logarithms are all there may be: no
# variable, relation, product or other function; no sum; no numbers side by side, as in `3(4)`
NUMBER_SIGNS = re.compile(r"(?:\\(?:frac|sqrt|log|ln)(?![a-z])|[\dei./^_{}()\[\]+ -])*")
SUM = re.compile(r"[\w})\]][-+]")
SIDE_BY_SIDE = re.compile(
    r"\d [\d.]|[\d)}](?:\(|\\frac)|[)}][\d.]|(?:^|[^a-zA-Z}\]^])\{"  # a brace opens an argument
)
SUBSCRIPT = re.compile(r"_(?:\{\w*\}|\w)")

Equal = Callable[[Leaf, Leaf], bool]


class Undecided(Exception):  # noqa: N818  a question, not an error
    """Only sympy can say."""


def compare(gold: Node, answer: Node, equal: Equal) -> bool:
    """Whether an answer is the reference's; not symmetric: the reference decides the form.

    Args:
        gold: the reference.
        answer: the student's.
        equal: compares two leaves, the reference's first.

    Raises:
        Whatever `equal` raises.
    """
    if _is(gold, Kind.equation) or _is(answer, Kind.equation):
        return _equations(gold, answer, equal)
    if _is(gold, Kind.list) or _is(answer, Kind.list):
        return _any_order(_items(gold, Kind.list), _items(answer, Kind.list), equal)
    if isinstance(gold, Leaf) and isinstance(answer, Leaf):
        return equal(gold, answer)
    if isinstance(gold, Group) and isinstance(answer, Group) and gold.kind == answer.kind:
        if gold.kind == Kind.union:
            return _any_order(gold.items, answer.items, equal)
        return gold.brackets == answer.brackets and _in_order(gold.items, answer.items, equal)
    if isinstance(answer, Leaf):  # `-2 < x < 7` is (-2, 7)
        solved = solution(answer.text)
        return solved is not None and compare(gold, solved, equal)
    if isinstance(gold, Leaf) and RELATION.search(gold.text):
        solved = solution(gold.text)
        if solved is not None:
            return compare(solved, answer, equal)
        return equal(Leaf(gold.text), Leaf(answer.text))
    return False


def _is(node: Node, kind: Kind) -> bool:
    return isinstance(node, Group) and node.kind == kind


def _items(node: Node, kind: Kind) -> tuple[Node, ...]:
    return node.items if isinstance(node, Group) and node.kind == kind else (node,)


def _in_order(gold: tuple[Node, ...], answer: tuple[Node, ...], equal: Equal) -> bool:
    if len(gold) != len(answer):
        return False
    return all(compare(g, a, equal) for g, a in zip(gold, answer, strict=True))


def _any_order(gold: tuple[Node, ...], answer: tuple[Node, ...], equal: Equal) -> bool:
    """Each item of one finds its own in the other."""
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for item in gold:
        match = next((i for i, other in enumerate(left) if compare(item, other, equal)), None)
        if match is None:
            return False
        del left[match]
    return True


def _is_name(node: Node) -> bool:
    if isinstance(node, Group):  # (x, y) = (1, 2)
        return node.kind == Kind.ordered and all(map(_is_name, node.items))
    return node.is_word or NAME.fullmatch(node.text) is not None


def solution(relation: str) -> Node | None:
    r"""The set that a solved relation says: (-2, 7] for `-2 < x \le 7`; None for any other text.

    Solved is a bare variable beside or between its bounds. An inequality as a question has it is
    not: `x^2 < 9` leaves the work of finding (-3, 3) to the grader.
    """
    signs = [sign.strip() for sign in RELATION.findall(relation)]
    sides = [side.strip() for side in RELATION.split(relation)]
    if signs and all(sign in FLIPPED for sign in signs):
        signs, sides = [FLIPPED[sign] for sign in reversed(signs)], sides[::-1]
    match [NAME.fullmatch(side) is not None and side not in CONSTANTS for side in sides]:
        case [_, True, _]:
            pass
        case [True, False]:
            sides, signs = ["-\\infty", *sides], ["<", *signs]
        case [False, True]:
            sides, signs = [*sides, "\\infty"], [*signs, "<"]
        case _:
            return None
    low, _, high = sides
    if "\\ne" in signs and "\\infty" in (high, low.removeprefix("-")):
        bound = high if low == "-\\infty" else low
        return parse(f"(-\\infty,{bound})\\cup({bound},\\infty)")
    if not set(signs) <= {"<", "\\le"}:
        return None
    left, right = ("(" if signs[0] == "<" else "["), (")" if signs[1] == "<" else "]")
    return parse(f"{left}{low},{high}{right}")


def _equations(gold: Node, answer: Node, equal: Equal) -> bool:
    """`x = 5` is 5 and the other way round; `2 + 3 = 5` is 5; `x = 5` is not `y = 5`."""
    golds, answers = _items(gold, Kind.equation), _items(answer, Kind.equation)
    if len(golds) == 1:
        *others, last = answers
        return compare(gold, last, equal) and all(
            _is_name(other) or compare(other, last, equal) for other in others
        )
    if len(answers) == 1:
        return _is_name(golds[0]) and compare(golds[-1], answer, equal)
    if _is_name(golds[0]) and golds[0].text == answers[0].text:
        return compare(golds[-1], answers[-1], equal)
    return equal(Leaf(gold.text), Leaf(answer.text))


def equal_by_form(gold: Leaf, answer: Leaf) -> bool:
    """Equality of leaves that needs no algebra.

    Raises:
        Undecided: it does.
    """
    if Unit.none not in (gold.unit, answer.unit) and gold.unit != answer.unit:
        return False
    if gold.text == answer.text:
        return True
    if gold.is_word or answer.is_word:
        return gold.text.casefold() == answer.text.casefold()
    expected, given = number(gold.text), number(answer.text)
    if expected is not None and given is not None:
        return expected == given
    if not answer.text or left_undone(gold.text, answer.text, expected is not None):
        return False
    raise Undecided


def left_undone(gold: str, answer: str, gold_is_number: bool) -> bool:
    """The answer is more than a number where a number is asked for, or has sums, integrals, ...

    that the reference does not have.
    """
    if gold_is_number:
        plain = SUBSCRIPT.sub("", answer).replace("\\frac ", "\\frac")
        return (
            NUMBER_SIGNS.fullmatch(answer) is None
            or SUM.search(answer) is not None
            or SIDE_BY_SIDE.search(plain) is not None
            or plain.count("}{") > plain.count("\\frac")  # each of its own has two arguments
        )
    return any(command not in gold for command in UNDONE.findall(answer))
