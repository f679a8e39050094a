"""Rules of CONTRIBUTING.md that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = sorted((ROOT / "drift").rglob("*.py"))
ALL = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_defaults_stand_in_dataclasses_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        place = f"{relative(path)}:{node.lineno}"
        if isinstance(node.func, ast.Name):
            assert node.func.id != "hasattr", place
            assert not (node.func.id == "getattr" and len(node.args) == 3), place
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            owner = ast.unparse(node.func.value)
            assert not re.fullmatch(r"(self\.)?(config|cfg)(\.\w+)?", owner), place


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_files_are_under_400_lines_and_functions_under_60(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{relative(path)}:{node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_kind_of_device_is_known_to_the_engine_alone(path: Path) -> None:
    assert path.name == "engine.py" or "cuda" not in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_familys_name_stands_in_its_own_file(path: Path) -> None:
    code = ast.parse(path.read_text())
    compared = [n for n in ast.walk(code) if isinstance(n, ast.Compare)]
    for node in compared:
        assert not re.search(r"['\"](llada|dream)['\"]", ast.unparse(node)), relative(path)


def test_importing_drift_and_its_config_imports_no_torch() -> None:
    code = "import sys, drift, drift.config, drift.config.checks, drift.cli.preflight; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
