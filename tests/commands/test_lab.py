"""The lab's toy against the real sampler and the real learner, and what it says of the maskings."""

import json
from pathlib import Path

import pytest

from drift.toy.report import BEGIN, END
from tests.conftest import Run

SMALL = ("toys=1", "draws=2", "groups=20", "toy.num_words=2", "rollout.gen_length=2",
         "rollout.block_length=2", "rollout.steps=2", "hydra.run.dir=out")  # fmt: skip


def test_the_command_writes_tables_a_plot_and_numbers(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    run("lab", *SMALL, f"page={page}")
    tables = (tmp_path / "out" / "lab.md").read_text()
    assert "| replay | 2.0 |" in tables
    assert page.read_text() == f"before\n{BEGIN}\n{tables}{END}\nafter\n"
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((tmp_path / "out" / "lab.json").read_text())
    assert numbers["mean"]["other"]["replay"][0]["trace_bias"] < 1e-5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["draws=3"], "draws=3 must be even"),
        (["toy.num_words=1"], "toy.num_words=1 with rollout.block_length=2 are 1 joint draws"),
        (["rollout.top_p=0.9"], "rollout.top_p=0.9 is not counted by the lab; leave it null"),
        (["rollout.schedule=dream"], "rollout.schedule=dream is not counted by the lab; leave it"),
        (
            ["rollout=threshold", "rollout.confidence_from=drawn"],
            "rollout.confidence_from=drawn is not counted by the lab; leave it network",
        ),
        (["rollout.gen_length=8", "rollout.steps=8"], "make 26244 states; at most 4096"),
        (["rollout.gen_length=3"], "rollout.gen_length=3 is not a multiple of"),
        (["page=missing.md"], "page=missing.md: no such page"),
        (["rollout.temperature=0"], "rollout.temperature=0 makes every completion of a group the"),
        (["rollout.group_size=1"], "rollout.group_size=1 leaves nothing to compare a completion"),
        (["lag=-1"], "lag=-1.0 must be 0 or more"),
    ],
)
def test_what_the_lab_cannot_count_is_one_line(
    run: Run, tmp_path: Path, overrides: list[str], message: str
) -> None:
    done = run("lab", *SMALL, *overrides, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
