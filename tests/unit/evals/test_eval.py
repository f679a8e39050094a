"""`python -m drift.eval`: what it writes, and what an interruption costs."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from drift.cluster.engine import Engine
from drift.common import rng, terminal
from drift.common.errors import CheckpointError, ConfigError
from drift.config.cluster import ClusterConfig
from drift.config.compose import typed
from drift.config.model import Dtype
from drift.config.task import Split
from drift.evals.cell import Cell, CellState, position_in, protocol
from drift.evals.results import done_cells
from drift.policy.loading import load_policy
from drift.rollout.evaluate import Completion, Problems, complete
from drift.tasks import build_task
from tests.configs import composed
from tests.conftest import ROOT, rollout_config

TINY = "data/tiny-countdown"


def test_the_packages_that_grade_are_in_the_protocol() -> None:
    config = typed(composed("task=math500", config="eval"))
    content = protocol(config, build_task(config.task), [])
    assert content["grader_packages"]["sympy"] == version("sympy")
    assert None not in content["grader_packages"].values()


# ---- a cell's files


def new(**changes: Any) -> CellState:
    values: dict[str, Any] = {"checkpoint": "a", "path": "a", "position": 0}
    return CellState(**(values | changes))


def line(sample: int) -> Completion:
    return Completion(
        key="k\u2028", prompt="p", sample=sample, completion="\u2028\n", answer=None, correct=False,
        verdict="no_answer", nfe=1, length=1, tokens=1, finished=True,
    )  # fmt: skip


def test_a_cell_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    cell = Cell(tmp_path / "cell", new())
    with cell.sole_user():
        cell.add([line(0), line(1)], 1, 0.5)
        busy = pytest.raises(ConfigError, match="is being evaluated by another process")
        with busy, Cell(tmp_path / "cell", new()).sole_user():
            pass
    again = Cell(tmp_path / "cell", new(position=3))
    assert again.read() == [line(0), line(1)]
    assert (again.progress.done, again.progress.decode_s, again.progress.position) == (1, 0.5, 0)


def test_a_checkpoint_that_comes_later_stands_behind(tmp_path: Path) -> None:
    for folder in ("base-1", "a-new-1", "base-2"):
        name = folder[:-2]  # the checkpoint of base-2 is base, with other files
        position = position_in(tmp_path, name)
        (tmp_path / folder).mkdir()
        Cell(tmp_path / folder, new(checkpoint=name, position=position, summary={})).save()
    found = [cell.progress for cell in done_cells(tmp_path)]
    assert [(cell.checkpoint, cell.position) for cell in found] == [("base", 0), ("a-new", 1)]


def test_a_cell_whose_completions_are_lost_is_made_again(tmp_path: Path) -> None:
    cell = Cell(tmp_path / "cell", new())
    with cell.sole_user():
        cell.add([line(0)], 1, 0.5)
    os.truncate(cell.completions, 5)
    again = Cell(tmp_path / "cell", new())
    with again.sole_user():
        assert (again.progress.done, again.progress.size) == (0, 0)
    assert cell.completions.read_bytes() == b""


def test_a_cell_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text('{"checkpoint": "a", "color": "red"}')
    with pytest.raises(CheckpointError, match=r"cell\.json is of another version: .*'color'"):
        Cell(tmp_path)


def test_a_part_has_the_completions_of_the_whole_and_no_problems_are_none() -> None:
    config = typed(composed("task=countdown", config="eval"))
    task = build_task(config.task)
    examples = task.examples(Split.test)[:3]
    policy = load_policy(ROOT / TINY)
    ids = [policy.tokenizer(e.prompt, add_special_tokens=False)["input_ids"] for e in examples]
    problems = Problems(split=Split.test, examples=examples, ids=ids)
    engine = Engine(ClusterConfig(), Dtype.float32)
    rollout = rollout_config(temperature=1.5)
    key = rng.stream(0, "eval")
    terminal.alive_at = 0.0
    whole = complete(engine, policy, task, problems, rollout, key=key, samples=2)
    assert terminal.alive_at > 0  # a denoising step is a sign of life
    part = complete(
        engine, policy, task, problems.part(1, 3), rollout, key=key, samples=2, first_row=2
    )
    assert part.rows == whole.rows[2:]
    assert [row.sample for row in whole.rows] == [0, 1] * 3
    assert torch.equal(part.rollout.rows_B, torch.arange(2, 6))
    none = complete(engine, policy, task, problems.part(3, 3), rollout, key=key)
    assert (none.rows, none.rollout.texts) == ([], [])
