"""The sandbox on honest programs: verdicts, and the data that crosses."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from drift.sandbox import VERDICTS, Asserts, Sandbox, Stdio, Verdict, wire
from tests.honest import MODULES, SCRIPTS

leaves = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    *(st.fractions(), st.decimals(allow_nan=False), st.dates(), st.timedeltas()),
    *(st.complex_numbers(allow_nan=False), st.integers(min_value=2**60)),
)
keys = st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.tuples(st.integers()))
plain = st.recursive(
    leaves,
    lambda inner: st.one_of(
        *(st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(keys, inner)),
        *(st.sets(keys), st.frozensets(keys), st.binary().map(bytearray)),
    ),
    max_leaves=20,
)
tags = st.sampled_from([*wire.MAKERS, "object", "eval", "t", ""])
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=2),
        st.fixed_dictionaries({"t": tags, "v": inner}),
    ),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=2) as sandbox:
        yield sandbox


def asserts(source: str, *tests: str, **changes: Any) -> Asserts:
    return Asserts(source=source, tests=tests, **({"names": ("f",), "entry_point": "f"} | changes))


def stdio(source: str, stdin: str, expected: str, **changes: Any) -> Stdio:
    return Stdio(source=source, stdin=stdin, expected=expected, **changes)


# Verdicts


@pytest.mark.parametrize(
    ("source", "tests", "verdict", "passed"),
    [
        ("def f(x): return x + 1", ["assert f(1) == 2", "assert f(-1) == 0"], "pass", 2),
        ("def f(x): return x + 1", ["assert f(1) == 2", "assert f(1) == 3"], "wrong", 1),
        ("def f(x): return x + 1", ["assert f('a') == 2", "assert f(1) == 2"], "error", 1),
        ("def f(x): return 1 / x", ["assert f(1) == 2", "assert f(0) == 1"], "wrong", 0),
        ("def f(x) return x", ["assert f(1) == 1"], "error", 0),
        ("1 / 0", ["assert f(1) == 1"], "error", 0),
        ("def g(x): return x", ["assert f(1) == 1"], "error", 0),
        ("", ["assert f(1) == 1"], "error", 0),
        ("f = 5", ["assert f(1) == 1"], "error", 0),
        ("f = lambda x: x", ["assert f(1) == 1"], "pass", 1),
        ("def f(): pass", ["f()", "assert f() is None"], "pass", 2),
        ("def f(): return '2'", ["assert f() == 2"], "wrong", 0),
        ("def f(): return 2.0", ["assert f() == 2"], "pass", 1),
        ("def f(): return True", ["assert f() is True", "assert f() == 1"], "pass", 2),
        ("def f(n):\n while n: pass", ["f(0)", "f(1)", "f(0)"], "timeout", 1),
        ("def f(n): return bytes(n)", ["f(1)", "f(1 << 40)"], "memory", 1),
        ("def f(g): return g(1)", ["assert f(lambda x: x) == 1"], "unsupported", 0),
        ("def f(g): return g(1)", ["try: f(print)\nexcept: pass"], "unsupported", 0),
    ],
)
def test_asserts(
    sandbox: Sandbox, source: str, tests: list[str], verdict: str, passed: int
) -> None:
    result = sandbox.run(asserts(source, *tests, time_limit=0.5))
    assert (result.verdict, result.passed) == (verdict, passed), result
    assert verdict in VERDICTS


@pytest.mark.parametrize(
    ("source", "stdin", "expected", "verdict"),
    [
        ("print(int(input()) + int(input()))", "1\n2\n", "3", "pass"),
        ("print(1); print(2)", "", "1\n2\n", "pass"),
        ("print(1, end=' \\n\\n\\n')", "", "1", "pass"),
        ("print(' 1')", "", "1", "wrong"),
        ("print('1\\n\\n2')", "", "1\n2", "wrong"),
        ("print(1)", "", "1.0", "wrong"),
        ("", "", "", "pass"),
        ("print(1); exit()", "", "1", "pass"),
        ("print(1); exit(1)", "", "1", "error"),
        ("print(1); exit('bad')", "", "1", "error"),
        ("print(1); 1 / 0", "", "1", "error"),
        ("print(input())", "", "", "error"),
        ("print(1", "", "1", "error"),
        ("while True: pass", "", "1", "timeout"),
        ("x = bytes(1 << 40)", "", "1", "memory"),
        ("import os; os.write(1, b'\\xff')", "", "\ufffd", "wrong"),
        ("print('數')", "", "數", "pass"),
        ("print(input()[::-1])", "é數\n", "數é", "pass"),
        ("import sys; print(len(sys.stdin.buffer.read()))", "數", "3", "pass"),
        ("print(open(0).read())", "a\nb", "a\nb", "pass"),
        ("print('x' * 200_000)", "", "x" * 200_000, "pass"),
        ("for line in range(100_000): print(line)", "", "\n".join(map(str, range(10**5))), "pass"),
        ("print(sum(map(int, open(0))))", "1\n" * 300_000, "300000", "pass"),
    ],
)
def test_stdio(sandbox: Sandbox, source: str, stdin: str, expected: str, verdict: str) -> None:
    result = sandbox.run(stdio(source, stdin, expected))
    assert result.verdict == verdict, result
    assert result.passed == (verdict == "pass")


@pytest.mark.parametrize("name", MODULES)
def test_an_honest_module_passes(sandbox: Sandbox, name: str) -> None:
    source, test = MODULES[name]
    result = sandbox.run(asserts(source, test))
    assert result == Verdict(verdict="pass", passed=1, detail="")


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_honest_script_passes(sandbox: Sandbox, name: str) -> None:
    source, stdin, expected = SCRIPTS[name]
    result = sandbox.run(stdio(source, stdin, expected))
    assert result == Verdict(verdict="pass", passed=1, detail="")


@pytest.mark.parametrize("level", ["landlock", "seccomp"])
@pytest.mark.parametrize("name", ["a class", "threads", "random", "recursion"])
def test_an_honest_module_passes_behind_less(level: str, name: str) -> None:
    source, test = MODULES[name]
    with Sandbox(workers=1, level=level) as sandbox:
        assert sandbox.run(asserts(source, test)).verdict == "pass"


def test_the_reason_is_said(sandbox: Sandbox) -> None:
    def detail(source: str, *tests: str, **changes: Any) -> str:
        return sandbox.run(asserts(source, *tests, **changes)).detail

    assert detail("def f(): return 1", "assert f() == 2") == "assert f() == 2"
    assert detail("def f(): return 1", "assert f() == 2, 'not two'") == "not two"
    assert detail("def f(): return {}['a']", "f()") == "KeyError: 'a'"
    assert detail("x = y", "f()") == "NameError: name 'y' is not defined"
    assert detail("", "f()") == "NameError: name 'f' is not defined"
    assert detail("while True: pass", "f()", time_limit=0.2) == "more than 0.2 s"
    assert sandbox.run(stdio("1 / 0", "", "")).detail == "ZeroDivisionError: division by zero"


# What crosses

VALUES = [
    *("None", "True", "0", "-5", "2**53", "-(2**200)", "1.5", "float('inf')", "1e-320", "-0.0"),
    *("''", "'é數\\0\\ud800'", "b'\\0\\xff'", "bytearray(b'x')", "1 + 2j", "range(3, 9, 2)"),
    *("[]", "[1, [2, [3]]]", "(1,)", "()", "{}", "{1: 'a', (2, 3): [4]}", "{None: {'x': None}}"),
    *("{1, 2}", "set()", "frozenset({1, (2,)})", "[(1, 2), {'a': {3}}]", "int", "[str, list]"),
]


@pytest.mark.parametrize("value", VALUES)
def test_plain_data_goes_and_comes_with_its_exact_type(sandbox: Sandbox, value: str) -> None:
    source = f"def f(x):\n same(x, {value})\n return x\n{SAME}"
    test = f"{SAME}\nsame(f({value}), {value})\nsame(f(x={value}), {value})"
    assert sandbox.run(asserts(source, test)).verdict == "pass"


SAME = """
def same(a, b):
    assert type(a) is type(b) and a == b and repr(a) == repr(b)
    if type(a) in (list, tuple): [same(x, y) for x, y in zip(a, b)]
"""


@pytest.mark.parametrize(
    ("made", "came"),
    [
        ("collections.Counter('aab')", "{'a': 2, 'b': 1}"),
        ("collections.OrderedDict(a=1)", "{'a': 1}"),
        ("collections.defaultdict(list, a=[1])", "{'a': [1]}"),
        ("collections.namedtuple('P', 'x y')(1, 2)", "(1, 2)"),
        ("collections.deque([1])", "__import__('collections').deque([1])"),
        ("enum.IntEnum('E', 'a')(1)", "1"),
        ("{'a': 1}.keys()", "['a']"),
        ("fractions.Fraction(1, 3)", "__import__('fractions').Fraction(1, 3)"),
        ("decimal.Decimal('0.1')", "__import__('decimal').Decimal('0.1')"),
        ("datetime.date(2020, 2, 29)", "__import__('datetime').date(2020, 2, 29)"),
    ],
)
def test_a_subclass_comes_as_its_base(sandbox: Sandbox, made: str, came: str) -> None:
    source = "import collections, datetime, decimal, enum, fractions\n"
    result = sandbox.run(asserts(f"{source}def f(): return {made}", f"assert f() == {came}"))
    assert result.verdict == "pass", result


@pytest.mark.parametrize(
    "body", ["(x * x for x in range(3))", "map(lambda x: x * x, range(3))", "iter([0, 1, 4])"]
)
def test_an_iterator_comes_as_an_iterator(sandbox: Sandbox, body: str) -> None:
    test = "i = f()\nassert next(i) == 0\nassert list(i) == [1, 4]"
    assert sandbox.run(asserts(f"def f(): return {body}", test)).verdict == "pass"


@pytest.mark.parametrize(
    ("source", "test"),
    [
        ("def f(x): x.sort()", "x = [3, 1, 2]\nf(x)\nassert x == [1, 2, 3]"),
        ("def f(x): x[0].append(9)", "y = [1]\nx = [y]\nf(x)\nassert y == [1, 9] and x[0] is y"),
        ("def f(x): x['b'] = x.pop('a')", "x = {'a': 1}\nf(x)\nassert x == {'b': 1}"),
        ("def f(x): x.add(3)", "x = {1}\nf(x)\nassert x == {1, 3}"),
        ("def f(n, x): x.clear()", "x = [1]\nf(2, x=x)\nassert x == []"),
        ("def f(x): x = x + [1]", "x = [3]\nf(x)\nassert x == [3]"),
    ],
)
def test_what_is_changed_in_place_is_changed(sandbox: Sandbox, source: str, test: str) -> None:
    assert sandbox.run(asserts(source, test)).verdict == "pass"


@pytest.mark.parametrize(
    ("raised", "caught"),
    [
        ("ValueError('bad')", "ValueError"),
        ("KeyError('k')", "LookupError"),
        ("type('Mine', (IndexError,), {})('x')", "IndexError"),
        ("type('Mine', (Exception,), {})('x')", "Exception"),
        ("UnicodeDecodeError('utf-8', b'', 0, 1, 'x')", "Exception"),
        ("SystemExit(0)", "Exception"),
    ],
)
def test_an_exception_comes_by_its_built_in_type(
    sandbox: Sandbox, raised: str, caught: str
) -> None:
    test = f"try: f()\nexcept {caught} as error: pass\nelse: assert False"
    assert sandbox.run(asserts(f"def f(): raise {raised}", test)).verdict == "pass"


STACK = """
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, x): self.items.append(x); return self
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
    def __eq__(self, other): return self.items == other.items
    def __str__(self): return f'Stack{self.items}'
def total(stack): return sum(stack.items)
"""


@pytest.mark.parametrize(
    "test",
    [
        "s = Stack()\ns.push(3)\ns.push(4)\nassert s.items == [3, 4]",
        "s = Stack([1])\ns.items = [5, 6]\nassert total(s) == 11",
        "s = Stack([1, 2])\nassert len(s) == 2 and list(s) == [1, 2] and 2 in s and s[0] == 1",
        "assert Stack([1]) == Stack([1]) and Stack([1]) != Stack([2]) and not Stack()",
        "assert str(Stack([1])) == 'Stack[1]'",
        "s = Stack()\nassert s.push(1) is s",
        "assert total(Stack([1]).push(2)) == 3",
        "assert [total(s) for s in [Stack([1]), Stack([2])]] == [1, 2]",
        "assert Stack([1]) != [1]",
    ],
)
def test_objects_of_a_class_that_tests_name(sandbox: Sandbox, test: str) -> None:
    request = asserts(STACK, test, names=("Stack", "total"), entry_point="")
    result = sandbox.run(request)
    assert result.verdict == "pass", result


def test_a_setup_stands_beside_what_is_tested_never_for_it(sandbox: Sandbox) -> None:
    setup = "def f(x): return 1\ndef helper(x): return f(x) + 100"
    request = asserts("def f(x): return 5\ndef helper(x): return 1", "assert helper(1) == 105")
    request = Asserts(source=request.source, tests=request.tests, names=("f",), entry_point="f",
                      setup=setup)  # fmt: skip
    assert sandbox.run(request).verdict == "pass"
    nothing = Asserts(source="", tests=("f(1)",), names=("f",), entry_point="f", setup=setup)
    assert sandbox.run(nothing).verdict == "error"


# The same every time, and nothing in common


def test_randomness_and_hashes_are_the_same_in_every_run(sandbox: Sandbox) -> None:
    source = "import random\nexit(repr((random.random(), hash('x'), {'a', 'b', 'c', 'd'})))"
    said = {verdict.detail for verdict in sandbox.run_all([stdio(source, "", "")] * 6)}
    assert len(said) == 1
    assert said.pop().startswith("(0.8444218515250481, ")


@pytest.mark.parametrize(
    ("leave", "look"),
    [
        ("open('/tmp/x', 'w').close()", "import os; assert not os.path.exists('/tmp/x')"),
        ("import os; os.environ['X'] = '1'", "import os; assert 'X' not in os.environ"),
        ("import math; math.pi = 3", "import math; assert math.pi > 3.1"),
        ("import sys; sys.modules['x'] = 1", "import sys; assert 'x' not in sys.modules"),
        ("import builtins; builtins.x = 1", "import builtins; assert 'x' not in dir(builtins)"),
    ],
)
def test_a_program_leaves_nothing_to_the_next(leave: str, look: str) -> None:
    with Sandbox(workers=1) as sandbox:
        if "/tmp" in leave and "namespaces" not in sandbox.isolation:
            pytest.skip("needs namespaces")
        assert sandbox.run(stdio(leave, "", "")).verdict == "pass"
        assert sandbox.run(stdio(look, "", "")).verdict == "pass"


@settings(max_examples=200, deadline=None)
@given(value=plain)
def test_decode_inverts_encode(value: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("plain data asks nobody")

    message = json.loads(json.dumps(wire.encode(value, refuse)))
    back = wire.decode(message, refuse)
    assert type(back) is type(value)
    assert repr(back) == repr(value) or back == value


@settings(max_examples=300, deadline=None)
@given(data=anything)
def test_decode_of_anything_is_data_or_a_refusal(data: Any) -> None:
    def refuse(tag: str, value: Any) -> Any:
        raise ValueError(tag)

    with contextlib.suppress(ValueError, TypeError, ArithmeticError, LookupError):
        wire.decode(data, refuse)
