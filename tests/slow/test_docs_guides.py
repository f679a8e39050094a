"""The guides to what is added inside the package: followed word by word in a copy of it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.conftest import ROOT, read_lines
from tests.shown import commands_of

CODE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(guide: str, language: str) -> list[str]:
    """The code blocks of a page, without their indent."""
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    return [dedent(code) for name, code in CODE.findall(text) if name == language]


def follow(diff: str, folder: Path) -> None:
    """Make the changes of a diff; the lines that it shows stand in the file exactly once."""
    for hunk in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, *lines = hunk.splitlines()
        before = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
        after = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{name}: not there once:\n{before}"
        (folder / name).write_text(text.replace(before, after), encoding="utf-8")


def call(folder: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def followed(guide: str, files: dict[str, tuple[str, ...]], folder: Path) -> None:
    """A copy of the package with the guide's changes; `files`: where its code blocks belong."""
    for name in ("drift", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").symlink_to(ROOT / "data")
    (folder / "tests/unit/learner").mkdir(parents=True)
    packages = ("tests", "tests/unit", "tests/unit/learner")
    for name in ("pyproject.toml", "tests/conftest.py", "tests/forkserver.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in (f"{package}/__init__.py" for package in packages):
        shutil.copy(ROOT / name, folder / name)
    for language, paths in files.items():
        for path, code in zip(paths, blocks(guide, language), strict=True):
            (folder / path).write_text(code, encoding="utf-8")
    for diff in blocks(guide, "diff"):
        follow(diff, folder)
    call(folder, "ruff", "check", "drift", "tests")
    call(folder, "ruff", "format", "--check", "drift", "tests")


@pytest.mark.parametrize(
    ("guide", "files"),
    [
        (
            "adding_a_masking.md",
            {
                "python": ("drift/learner/masking/suffix.py", "tests/unit/learner/test_suffix.py"),
                "yaml": ("conf/masking/suffix.yaml",),
            },
        ),
        (
            "adding_an_objective.md",
            {
                "python": ("tests/unit/learner/test_cispo.py",),
                "yaml": ("conf/objective/cispo.yaml",),
            },
        ),
    ],
)
def test_the_guides_change_is_tested_and_trains(
    guide: str, files: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    followed(guide, files, tmp_path)
    (test,) = [path for path in files["python"] if path.startswith("tests/")]
    call(tmp_path, "pytest", "-q", "-n0", "-p", "no:cacheprovider", test)
    commands = commands_of(ROOT / "docs" / guide)
    assert commands
    for number, shown in enumerate(commands):
        words = shlex.split(shown.text)[2:]
        kind = "sweep" if "-m" in words else "run"
        call(tmp_path, *words, "debug=smoke", "num_steps=1", "tracking=off",
             "rollout.prompts_per_step=16", f"hydra.{kind}.dir={number}")  # fmt: skip
    assert read_lines(tmp_path / "0/metrics.jsonl")[1]["masking/scored_tokens"]


def test_the_guides_family_loads_and_is_healthy(tmp_path: Path) -> None:
    files = {"python": ("drift/policy/mine.py",), "yaml": ("conf/model/mine.yaml",)}
    followed("adding_a_model.md", files, tmp_path)
    (tmp_path / "rename.py").write_text(
        "from pathlib import Path\n"
        "from drift.policy.loading import FAMILIES, load_policy, save_policy\n"
        'policy = load_policy("data/tiny-countdown")\n'
        'policy.family = FAMILIES["mine"]\n'
        'save_policy(policy, Path("checkpoints/mine"))\n'
    )
    call(tmp_path, "rename")
    (shown,) = commands_of(ROOT / "docs" / "adding_a_model.md")
    call(tmp_path, *shlex.split(shown.text.removeprefix("scripts/run python -m ")))
