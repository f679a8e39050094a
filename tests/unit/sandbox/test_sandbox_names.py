"""What tests use of a program, read from their text."""

import pytest

from drift.sandbox.names import called_first, examine


@pytest.mark.parametrize(
    ("setup", "tests", "entry_point", "names", "imports"),
    [
        ("", ["assert f(1) == 2"], "f", ["f"], []),
        ("", ["assert f(1) == 2"], "", ["f"], []),
        ("", ["assert sum(1, 2) == 3"], "", [], []),
        ("", ["assert sum(1, 2) == 3"], "sum", ["sum"], []),
        ("", ["assert math.isclose(f(1), 2)"], "f", ["f"], ["import math"]),
        ("", ["assert Counter(f(1)) == {2: 1}"], "f", ["f"], ["from collections import Counter"]),
        ("", ["assert Counter().hit() == 1"], "Counter", ["Counter"], []),
        ("", ["assert add(1) == gcd(2)"], "", ["add", "gcd"], []),
        ("import math", ["assert math.isclose(f(1), 2)"], "f", ["f"], []),
        ("n = Node(1)\nm = n", ["assert f(m) == 2"], "f", ["Node", "f"], []),
        ("def f(): pass\ndef g(): pass", ["assert f(g()) == 2"], "f", ["f"], []),
        ("", ["def check(candidate):\n assert candidate(1)", "check(f)"], "f", ["f"], []),
        ("", ["try: f()\nexcept E as e: print(e)"], "", ["E", "f"], []),
        ("", ["for i in [1]:\n assert all(f(j) for j in [i])"], "", ["f"], []),
    ],
)
def test_names_of_the_program(
    setup: str, tests: list[str], entry_point: str, names: list[str], imports: list[str]
) -> None:
    uses = examine(setup, tests, entry_point)
    assert (uses.names, uses.imports) == (names, imports)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("assert f(lambda x: x, 1) == 1", "passes a lambda to f"),
        ("assert f(key=lambda x: x) == 1", "passes a lambda to f"),
        ("def g(): pass\nf(g)", "passes g, which is no plain data, to f"),
        ("assert sorted(f(1), key=lambda x: x) == 1", None),
        ("def check(candidate): assert candidate(1)\ncheck(f)", None),
    ],
)
def test_tests_that_cannot_cross_are_seen(test: str, reason: str | None) -> None:
    assert examine("", [test], "f").unsendable == reason


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ("assert f(1) == 2", "f"),
        ("assert set(f(1)) == set([2])", "f"),
        ("assert sum(10, 15) == 6", "sum"),
        ("assert (max_height(root)) == 3", "max_height"),
        ("assert f(g(1)) == 2", "f"),
        ("x = 1", ""),
    ],
)
def test_the_function_that_a_test_calls(test: str, name: str) -> None:
    assert called_first(test) == name
