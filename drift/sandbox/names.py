"""What tests use of the program that they test, read from their text."""

import ast
import builtins
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

# Classes of the standard library: tests that leave their import to the program mean these, never
# what it calls so. Functions are left out: add and gcd are what programs are asked for.
STANDARD = ("collections", "fractions", "decimal", "typing")
LOWERCASE = {"defaultdict", "deque", "namedtuple"}
OWN = {*dir(builtins), "__name__", "candidate"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Uses(NamedTuple):
    """Uses(names=["f"], imports=["import math"], unsendable=None)"""

    names: list[str]  # of the program: what the tests neither define nor import
    imports: list[str]  # of the standard library, which the tests use without importing it
    unsendable: str | None  # why these tests cannot be run from another process


def examine(setup: str, tests: Sequence[str], entry_point: str = "") -> Uses:
    """Read what tests use; the tested name is the program's, whatever the setup calls so.

    Raises:
        SyntaxError or ValueError: the tests are not Python.
    """
    trees = [ast.parse(text) for text in (setup, *tests)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bound = {name for node in nodes for name in _bound(node)}
    used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    tested = {entry_point} if entry_point else set()
    foreign = used - bound - OWN - tested
    imports = {name: line for name in foreign if (line := _import_of(name)) is not None}
    names = foreign - imports.keys() | tested
    local = {node.name for node in nodes if isinstance(node, FUNCTIONS)} - names
    unsendable = _unsendable(nodes, {*names, "candidate"}, local)
    return Uses(sorted(names), sorted(imports.values()), unsendable)


def _import_of(name: str) -> str | None:
    """How a name of the standard library is imported."""
    if name in sys.stdlib_module_names:
        return f"import {name}"
    if name[0].isupper() or name in LOWERCASE:
        for module in STANDARD:
            if name in vars(importlib.import_module(module)):
                return f"from {module} import {name}"
    return None


def _bound(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            return [name]
        case ast.alias(name=name, asname=alias):
            return [alias or name.split(".")[0]]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
            return [name]
    return []


def _unsendable(nodes: list[ast.AST], theirs: set[str], local: set[str]) -> str | None:
    """What is passed to the program crosses as plain data; a function or a class does not."""
    for call in nodes:
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            continue
        if call.func.id not in theirs:
            continue
        for value in (*call.args, *(keyword.value for keyword in call.keywords)):
            if isinstance(value, ast.Lambda):
                return f"passes a lambda to {call.func.id}"
            if isinstance(value, ast.Name) and value.id in local:
                return f"passes {value.id}, which is no plain data, to {call.func.id}"
    return None


def called_first(test: str) -> str:
    """The function that a test calls first, the outermost on the left; empty if none.

    Built-in functions count only where no other is called: `assert set(f(1)) == {2}` tests f,
    `assert sum(1, 2) == 3` tests the program's own sum.

    Raises:
        SyntaxError or ValueError: the test is not Python.
    """
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(test))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    foreign = [name for name in calls if name not in OWN]
    return (foreign or calls or [""])[0]
