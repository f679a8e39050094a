"""What manifest.json says of the code."""

import subprocess
from pathlib import Path

from drift.runs.manifest import git_state


def test_only_a_checkouts_own_commit_is_named(tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    assert git_state(packages) == {}
    for words in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m first"):
        subprocess.run(["git", "-C", str(tmp_path), *words.split()], check=True)
    assert git_state(packages) == {}  # of somebody's project around the environment
    commit = (tmp_path / ".git" / "refs" / "heads").iterdir()
    assert git_state(tmp_path) == {"commit": next(commit).read_text().strip(), "dirty": False}
    (packages / "new.py").touch()
    assert git_state(tmp_path)["dirty"]
