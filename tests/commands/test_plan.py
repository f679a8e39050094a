"""What a run is said to need: counted by other means, or by hand."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def plan(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "plan.py", *words],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_script_says_what_an_8b_model_needs_on_8_gpus() -> None:
    done = plan("model=llada", "task=math", "cluster.num_processes=8", "rollout.block_length=32")
    assert done.returncode == 0, done.stderr
    cells = dict(re.findall(r"^\| ([\w ]+?) +\| +([\d.]+)", done.stdout, flags=re.M))
    total = 8_015_581_184
    assert cells["weights"] == f"{2 * total / 8 / 2**30:.2f}"
    assert cells["master weights"] == f"{4 * total / 8 / 2**30:.2f}"
    assert cells["AdamW moments"] == f"{8 * total / 8 / 2**30:.2f}"
    assert cells["replica"] == f"{2 * total / 2**30:.2f}"
    assert cells["refresh of the replica"] == f"{2 * total * 7 / 8 / 1e9:.1f}"


def test_the_script_has_a_line_for_each_value() -> None:
    done = plan("model=tiny", "cluster.num_processes=2", "--over", "rollout.group_size=4,8")
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]] == ["4", "8"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["cluster.num_processes=7"], "cannot be shared by 7 ranks alike"),
        (["model.path=nowhere"], "model.path=nowhere is not a folder"),
        (["modle=llada"], "modle"),
        (["--over", "seed"], "--over=seed must be KEY=V1,V2"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], reason: str) -> None:
    done = plan(*words)
    assert done.returncode == 1 and reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
