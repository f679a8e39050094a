"""`drift.plan`: its tables, the comparison of several values, and mistakes."""

import re

import pytest

from tests.conftest import Run


def test_an_8b_model_on_8_gpus(run: Run) -> None:
    done = run("plan", "model=llada", "task=math", "cluster=slurm", "cluster.num_processes=8")
    cells = dict(re.findall(r"^\| ([\w ]+?) +\| +([\d.]+)", done.stdout, flags=re.M))
    total = 8_015_581_184
    assert cells["weights"] == f"{2 * total / 8 / 2**30:.2f}"
    assert cells["master weights"] == f"{4 * total / 8 / 2**30:.2f}"
    assert cells["AdamW moments"] == f"{8 * total / 8 / 2**30:.2f}"
    assert cells["replica"] == f"{2 * total / 2**30:.2f}"
    assert cells["refresh of the replica"] == f"{2 * total * 7 / 8 / 1e9:.1f}"


def test_several_values_make_a_line_each(run: Run) -> None:
    done = run("plan", "cluster.num_processes=2", "rollout.group_size=4,8")
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]] == ["4", "8"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["cluster.num_processes=7"], "cannot be shared by 7 ranks alike"),
        (["cluster.num_processes=2,7"], "cannot be shared by 7 ranks alike"),
        (["model.path=nowhere"], "model.path=nowhere is not a folder"),
        (["modle=llada"], "modle: no such option; did you mean model"),
        (["seed=0,1", "optim.lr=1,2"], "seed and optim.lr have several values"),
        (["plan.gpu_gib=-1"], "plan.gpu_gib=-1.0 must be greater than 0"),
    ],
)
def test_a_mistake_is_one_line(run: Run, words: list[str], reason: str) -> None:
    done = run("plan", *words, check=False)
    assert done.returncode == 1 and reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
