"""Rules of CONTRIBUTING.md that a machine can check."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

SOURCES = sorted((ROOT / "drift").rglob("*.py"))
ALL = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]
MAX_FILE, MAX_FUNCTION = 600, 80  # lines; more of them is a sign of two subjects in one place


def nodes(paths: list[Path]) -> Iterator[tuple[str, ast.AST]]:
    """Every node of some files' code, and its place."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", node


def default_outside_a_dataclass(node: ast.AST) -> bool:
    """hasattr(x, "y"), getattr(x, "y", z) or config.get("y")."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
    if not isinstance(node.func, ast.Attribute) or node.func.attr != "get":
        return False
    owner = ast.unparse(node.func.value)
    return re.fullmatch(r"(self\.)?(config|cfg)(\.\w+)?", owner) is not None


def compares_a_family(node: ast.AST) -> bool:
    if not isinstance(node, ast.Compare):
        return False
    return re.search(r"['\"](llada|dream)['\"]", ast.unparse(node)) is not None


def test_defaults_stand_in_dataclasses_only() -> None:
    assert [place for place, node in nodes(SOURCES) if default_outside_a_dataclass(node)] == []


def test_files_and_functions_are_not_too_long() -> None:
    files = [path for path in ALL if len(path.read_text().splitlines()) > MAX_FILE]
    assert files == []
    functions = [
        f"{place} {node.name}"
        for place, node in nodes(ALL)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION
    ]
    assert functions == []


def test_the_kind_of_device_is_known_to_the_engine_alone() -> None:
    others = [path for path in SOURCES if path.name != "engine.py"]
    assert [path for path in others if "cuda" in path.read_text()] == []


def test_a_familys_name_stands_in_its_own_file() -> None:
    assert [place for place, node in nodes(SOURCES) if compares_a_family(node)] == []
